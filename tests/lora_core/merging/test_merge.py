"""Merge methods by their invariants, and the cuts by the dense optimum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging import METHODS
from lora_loom.lora_core.merging.core_space import CoreSpace
from lora_loom.lora_core.merging.merge import merge
from lora_loom.lora_core.merging.settings import MergeSettings
from lora_loom.lora_core.merging.truncation import Limits
from lora_loom.lora_core.stack.weighted import Weighted, exact_sum
from torch import Tensor

SHAPES = {"diffusion_model.a": (20, 16), "diffusion_model.b": (11, 30), "diffusion_model.c": (9, 9)}
RANDOM = {name for name, row in METHODS.items() if row.by_chance}
ELEMENTWISE = {"ties", "dare", "della", "magnitude"}
SHAPE = (20, 16)
quick = settings(max_examples=25, deadline=None, derandomize=True)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed: int, out: int, columns: int, rank: int = 3, alpha: float = 2.0) -> LowRank:
    return LowRank(random(seed, rank, columns), random(seed + 1, out, rank), alpha)


def part(seed: int, strength: float = 1.0, rank: int = 3, names=tuple(SHAPES), alpha: float = 2.0) -> Weighted:
    made = {name: layer(seed + 2 * i, *SHAPES[name], rank, alpha) for i, name in enumerate(names)}
    return Weighted(f"part {seed}", Adapter(made), strength, strength)


def of(*layers: LowRank, strengths=()) -> list[Weighted]:
    """A part for each correction of the one layer `w`."""
    strengths = strengths or (1.0,) * len(layers)
    return [
        Weighted(str(i), Adapter({"w": each}), s, s) for i, (each, s) in enumerate(zip(layers, strengths, strict=True))
    ]


def dense(item: LowRank) -> Tensor:
    return item.lora_B.double() @ item.lora_A.double() * (item.alpha / item.lora_A.shape[0])


def merged(method: str, parts: list[Weighted], **choices) -> Tensor:
    return dense(merge(parts, MergeSettings(method, **choices)).layers["w"])


def close(value: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    assert float((value - wanted).norm()) <= tolerance * float(wanted.norm())


def orthogonal_pair() -> tuple[LowRank, LowRank]:
    """Corrections that share neither columns nor rows."""
    left, right = (torch.linalg.qr(random(seed, size, 6))[0] for seed, size in ((1, SHAPE[0]), (2, SHAPE[1])))
    scale = torch.tensor([5.0, 3.0, 2.0, 4.0, 2.5, 1.5], dtype=torch.float64)
    return tuple(LowRank(right[:, s].T.contiguous(), left[:, s] * scale[s], 3.0) for s in (slice(0, 3), slice(3, 6)))


# -- the space they work in --------------------------------------------------------------------------------------------


@quick
@given(out=st.integers(2, 14), columns=st.integers(2, 14), ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_the_core_space_holds_every_part_exactly(out, columns, ranks):
    terms = [layer(10 * i, out, columns, rank) for i, rank in enumerate(ranks)]
    space = CoreSpace.of(terms)
    for basis in (space.left, space.right.T):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    for term, core in zip(terms, space.cores, strict=True):
        close(space.left @ core @ space.right, dense(term), 1e-12)
    core = space.cores.sum(0)
    found = space.decompose(core)
    close(dense(found.keep(99)), sum(map(dense, terms)), 1e-6)
    torch.testing.assert_close(found.sigma, torch.linalg.svdvals(sum(map(dense, terms)))[: len(found.sigma)])


@pytest.mark.parametrize("method", METHODS)
def test_factors_do_not_matter_only_what_they_do(method):
    """Another pair of factors, another alpha and strength, padding with zeros: the same correction, the same merge."""
    first, second = layer(0, *SHAPE), layer(10, *SHAPE, rank=4)
    mix = random(30, 3, 3) + 3 * torch.eye(3, dtype=torch.float64)
    other = LowRank(mix @ first.lora_A, first.lora_B @ torch.linalg.inv(mix), first.alpha)
    zeros = (torch.zeros(2, SHAPE[1], dtype=torch.float64), torch.zeros(SHAPE[0], 2, dtype=torch.float64))
    padded = LowRank(torch.cat([second.lora_A, zeros[0]]), torch.cat([second.lora_B, zeros[1]], 1), second.alpha * 1.5)
    rescaled = LowRank(padded.lora_A / 64, padded.lora_B * 64, padded.alpha)
    close(merged(method, of(other, rescaled)), merged(method, of(first, second)), 1e-8)


@pytest.mark.parametrize(
    "method", sorted(set(METHODS) - {"slerp", "karcher"})
)  # for them it is also a direction's weight
def test_strength_is_part_of_the_correction(method):
    first, second = layer(0, *SHAPE), layer(10, *SHAPE)
    doubled = replace(second, alpha=second.alpha * 2)
    close(merged(method, of(first, second, strengths=(1.0, 2.0))), merged(method, of(first, doubled)), 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_stronger_by_a_factor_is_that_factor_times_the_merge(method):
    pair = layer(0, *SHAPE), layer(10, *SHAPE)
    plain, louder = (merged(method, of(*pair, strengths=s)) for s in ((1.0, 0.5), (3.0, 1.5)))
    close(louder, 3 * plain, 1e-8)


@pytest.mark.parametrize("method", sorted(set(METHODS) - RANDOM - {"null_space", "slerp"}))
def test_order_does_not_matter(method):
    terms = [layer(0, *SHAPE), layer(10, *SHAPE, rank=4), layer(20, *SHAPE, rank=2)]
    close(merged(method, of(*terms[::-1])), merged(method, of(*terms)), 1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_amount_goes_from_the_sum_to_the_method(method):
    pair = of(layer(0, *SHAPE), layer(10, *SHAPE))
    plain, full = dense(exact_sum(pair)["w"]), merged(method, pair)
    close(merged(method, pair, amount=0.0), plain)
    close(merged(method, pair, amount=0.25), 0.75 * plain + 0.25 * full)


@pytest.mark.parametrize("method", METHODS)
def test_what_only_one_lora_changes_is_left_alone(method):
    parts = [
        part(0, names=("diffusion_model.a", "diffusion_model.b")),
        part(100, 0.5, 4, ("diffusion_model.b", "diffusion_model.c")),
    ]
    result = merge(parts, MergeSettings(method))
    assert result.lone == 2 and list(result.layers) == list(SHAPES)
    close(dense(result.layers["diffusion_model.a"]), dense(parts[0].adapter.layers["diffusion_model.a"]))
    close(dense(result.layers["diffusion_model.c"]), 0.5 * dense(parts[1].adapter.layers["diffusion_model.c"]))


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_only_one_lora_changes_are_left_alone(method):
    """The LoRAs change a fused weight: one has only q, one all, one only v."""
    query, whole, value = layer(0, 10, 16), layer(10, 30, 16, rank=4), layer(20, 10, 16)
    parts = of(query.in_rows(0, 30), whole, strengths=(0.8, 1.0))
    result, alone = merged(method, parts), merged(method, of(query, whole.rows(0, 10), strengths=(0.8, 1.0)))
    close(result[10:], dense(whole)[10:])
    if method not in RANDOM:
        close(result[:10], alone, 1e-6)
    ends = of(query.in_rows(0, 30), value.in_rows(20, 30))
    close(merged(method, ends), dense(exact_sum(ends)["w"]))
    assert merge(ends, MergeSettings(method)).lone == 1
    both = of(query.in_rows(10, 30), value.in_rows(10, 30))
    close(merged(method, both)[10:20], merged(method, of(query, value)), 1e-6)
    cut = merge(parts, MergeSettings(method), Limits(rank=2))
    best = torch.linalg.svdvals(result)
    assert cut.error == pytest.approx(float(best[2:].norm() / best.norm()), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (4, 4), (1, 6)])
def test_more_rank_than_the_weight_can_have(method, shape):
    pair = of(layer(0, *shape, rank=4), layer(10, *shape, rank=5))
    result = merge(pair, MergeSettings(method)).layers["w"]
    assert result.shape == shape and result.rank <= min(shape) and bool(torch.isfinite(dense(result)).all())


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_twins(method):
    """Corrections that are zero, equal or opposite are no accident."""
    one, zero = layer(0, *SHAPE), LowRank(random(0, 3, SHAPE[1]), torch.zeros(SHAPE[0], 3, dtype=torch.float64), 3.0)
    for pair in (of(zero, zero), of(one, zero), of(one, one)):
        assert bool(torch.isfinite(merged(method, pair)).all())


TWINS = {"dare": 2.0, "magnitude": 2.0, "orthogonal": 2**0.5}  # of the others the merge of twins is the twin


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"iso"}))
def test_twins_give_the_twin_and_nothing_else(method):
    """Also at strengths of their own, where they cancel in part, and when one was rounded: no direction that none of
    them has comes in."""
    one = layer(0, *SHAPE)
    rounded = one.to(torch.float16).to(torch.float64)
    close(merged(method, of(one, one), density=1.0), TWINS.get(method, 1.0) * dense(one), 1e-6)
    for second, strength in ((one, 0.5), (one, -0.5), (rounded, 0.5)):
        result = merged(method, of(one, second, strengths=(1.0, strength)), density=1.0)
        share = float((result * dense(one)).sum() / dense(one).square().sum())
        close(result, share * dense(one), 1e-6 if second is one else 5e-3)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"k_lora", "null_space"}))  # which take one of the two
def test_opposites_leave_nothing(method):
    one, other = layer(0, *SHAPE), layer(10, *SHAPE)
    with pytest.raises(ValueError, match="the merge is empty: in all 1 layers the LoRAs cancel"):
        merge(of(one, one, strengths=(0.7, -0.7)), MergeSettings(method, density=1.0))
    parts = [
        Weighted(str(i), Adapter({"w": one, "v": each}), s, s) for i, (each, s) in enumerate([(one, 1), (other, -1)])
    ]
    found = merge(parts, MergeSettings(method, density=1.0))
    assert found.cancelled == ["w"] and list(found.layers) == ["v"] and found.errors == {"w": 0.0, "v": 0.0}


@pytest.mark.parametrize("method", METHODS)
def test_an_idle_lora_leaves_the_other_as_it_is(method):
    some, idle = layer(0, *SHAPE), replace(layer(5, *SHAPE), lora_B=torch.zeros(SHAPE[0], 3, dtype=torch.float64))
    for pair in (of(idle, some), of(some, idle)):
        assert merge(pair, MergeSettings(method)).lone == 1
        close(merged(method, pair), dense(some))


# -- what each of them promises ----------------------------------------------------------------------------------------


def test_ties_keeps_what_agrees_and_averages_it():
    one = layer(0, *SHAPE)
    close(merged("ties", of(one, one, one), density=1.0), dense(one))
    close(merged("ties", of(*orthogonal_pair()), density=1.0), sum(map(dense, orthogonal_pair())))


def test_ties_elects_the_stronger_sign():
    one = layer(0, *SHAPE)
    close(merged("ties", of(one, one, strengths=(2.0, -1.0)), density=1.0), 2 * dense(one))


def test_ties_trims_small_entries():
    space = CoreSpace.of([layer(0, *SHAPE), layer(10, *SHAPE)])
    kept = space.left.T @ merged("ties", of(layer(0, *SHAPE), layer(10, *SHAPE)), density=0.1) @ space.right.T
    assert int((kept.abs() > 1e-6).sum()) <= 2 * round(0.1 * space.cores[0].numel())


@pytest.mark.parametrize("method", ["dare", "magnitude"])
def test_density_one_drops_nothing(method):
    pair = of(layer(0, *SHAPE), layer(10, *SHAPE))
    close(merged(method, pair, density=1.0), dense(exact_sum(pair)["w"]))


def test_dare_is_the_sum_on_average():
    pair = of(layer(0, *SHAPE), layer(10, *SHAPE))
    mean = sum(merged("dare", pair, density=0.5, seed=seed) for seed in range(300)) / 300
    close(mean, dense(exact_sum(pair)["w"]), 0.12)


@pytest.mark.parametrize("method", sorted(RANDOM))
def test_chance_is_seeded_and_differs_between_layers(method):
    pair = [part(0), part(100)]
    again, other = (merge(pair, MergeSettings(method, seed=seed)) for seed in (4, 5))
    for name, each in merge(pair, MergeSettings(method, seed=4)).layers.items():
        assert torch.equal(dense(each), dense(again.layers[name])) and not torch.equal(
            dense(each), dense(other.layers[name])
        )
    same = {name: layer(0, *SHAPE) for name in "vw"}, {name: layer(10, *SHAPE) for name in "vw"}
    two = merge([Weighted("", Adapter(layers), 1.0, 1.0) for layers in same], MergeSettings(method)).layers
    assert not torch.allclose(dense(two["v"]), dense(two["w"]))


def test_della_keeps_large_entries_more_often():
    cores = CoreSpace.of([layer(0, *SHAPE), layer(10, *SHAPE)])
    pair, sizes, hits = of(layer(0, *SHAPE), layer(10, *SHAPE)), cores.cores.abs().amax(0), 0.0
    for seed in range(60):
        hits = hits + ((cores.left.T @ merged("della", pair, density=0.4, seed=seed) @ cores.right.T).abs() > 1e-8)
    large = sizes > sizes.flatten().median()
    assert float(hits[large].mean()) > 1.3 * float(hits[~large].mean())


@pytest.mark.parametrize("method", ["slerp", "karcher"])
def test_the_middle_of_two_directions(method):
    first, second = map(dense, orthogonal_pair())
    length = (first.norm() + second.norm()) / 2
    middle = (first / first.norm() + second / second.norm()) / 2**0.5
    close(merged(method, of(*orthogonal_pair())), middle * length)
    one = layer(0, *SHAPE)
    close(merged(method, of(one, one)), dense(one))


def test_strength_decides_where_on_the_circle():
    first, second = map(dense, orthogonal_pair())
    result = merged("slerp", of(*orthogonal_pair(), strengths=(3.0, 1.0)))
    assert float((result * first).sum() / result.norm() / first.norm()) == pytest.approx(
        torch.cos(torch.tensor(torch.pi / 8))
    )


@quick
@given(seed=st.integers(0, 999), strengths=st.tuples(st.floats(0.2, 2), st.floats(-2, -0.2) | st.floats(0.2, 2)))
def test_the_karcher_mean_of_two_is_slerp(seed, strengths):
    pair = of(layer(seed, *SHAPE), layer(seed + 7, *SHAPE), strengths=strengths)
    close(merged("karcher", pair), merged("slerp", pair), 1e-6)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.only_two])
def test_methods_for_two(method):
    with pytest.raises(ValueError, match=f"{method} works with two LoRAs, but there are 3; use karcher"):
        merge(of(*(layer(i, *SHAPE) for i in (0, 10, 20))), MergeSettings(method))


def test_null_space_leaves_the_first_to_its_inputs():
    terms = [layer(0, *SHAPE), layer(10, *SHAPE, rank=4), layer(20, *SHAPE, rank=2)]
    result, first = merged("null_space", of(*terms)), terms[0]
    close(result @ first.lora_A.T, dense(first) @ first.lora_A.T)
    unread = random(40, SHAPE[1], 5)
    unread = unread - torch.linalg.pinv(first.lora_A) @ (first.lora_A @ unread)
    both = terms[0].lora_A, terms[1].lora_A
    unread_by_two = unread - torch.linalg.pinv(torch.cat(both)) @ (torch.cat(both) @ unread)
    close(result @ unread_by_two, dense(terms[2]) @ unread_by_two)


def test_null_space_where_the_weight_is_narrower_than_the_ranks():
    """All that the first two read is kept from the third, though their sum does not answer to all of it."""
    first, second, third = (layer(seed, 4, 16, rank=3) for seed in (0, 10, 20))
    reads = torch.cat([first.lora_A, second.lora_A])
    result, pair = (merged("null_space", of(*terms)) for terms in ((first, second, third), (first, second)))
    free = torch.eye(16, dtype=torch.float64) - torch.linalg.pinv(reads) @ reads
    close(result - pair, dense(third) @ free)


def test_orthogonal_sum_is_as_loud_as_strangers():
    pair = of(layer(0, *SHAPE), layer(10, *SHAPE))
    energies = [float(dense(each.adapter.layers["w"]).square().sum()) for each in pair]
    assert float(merged("orthogonal", pair).square().sum()) == pytest.approx(sum(energies), rel=1e-6)
    close(merged("orthogonal", of(*orthogonal_pair())), sum(map(dense, orthogonal_pair())))


def test_tsv_keeps_all_singular_values():
    terms = layer(0, *SHAPE), layer(10, *SHAPE)
    values = torch.cat([torch.linalg.svdvals(dense(term))[:3] for term in terms]).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(merged("tsv", of(*terms)))[:6], values, rtol=1e-6, atol=0)
    close(merged("tsv", of(*orthogonal_pair())), sum(map(dense, orthogonal_pair())))


def test_tsv_where_the_weight_has_no_room():
    """The strongest stay, in whatever order they come; vectors are orthonormal again."""
    terms = [layer(seed, 6, 16, rank=3) for seed in (0, 10, 20, 30)]
    result = merged("tsv", of(*terms))
    best = torch.cat([torch.linalg.svdvals(dense(term))[:1] for term in terms]).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(result)[:4], best, rtol=1e-6, atol=0)
    close(
        merged("tsv", of(*(layer(seed, 1, 16) for seed in (0, 10)))),
        merged("tsv", of(*(layer(seed, 1, 16) for seed in (10, 0)))),
    )


def test_iso_makes_them_equal_and_keeps_their_sum():
    pair = of(layer(0, *SHAPE), layer(10, *SHAPE))
    before, after = (torch.linalg.svdvals(x) for x in (dense(exact_sum(pair)["w"]), merged("iso", pair)))
    torch.testing.assert_close(after[:6], before[:6].mean().expand(6), rtol=1e-6, atol=0)


def test_k_lora_takes_the_one_that_stands_out():
    loud = {"v": layer(0, *SHAPE, alpha=9.0), "w": layer(2, *SHAPE, alpha=1.0)}
    even = {"v": layer(20, *SHAPE), "w": layer(22, *SHAPE)}
    parts = [Weighted("loud", Adapter(loud), 1.0, 1.0), Weighted("even", Adapter(even), 1.0, 1.0)]
    result = merge(parts, MergeSettings("k_lora")).layers
    close(dense(result["v"]), dense(loud["v"]))
    close(dense(result["w"]), dense(even["w"]))


@pytest.mark.parametrize("method", METHODS)
def test_departure_is_the_distance_from_the_sum(method):
    pair = [part(0), part(100, 0.7)]
    result, plain = merge(pair, MergeSettings(method)), exact_sum(pair)
    gone = sum(float((dense(result.layers[name]) - dense(each)).square().sum()) for name, each in plain.items())
    total = sum(float(dense(each).square().sum()) for each in plain.values())
    assert result.departure == pytest.approx((gone / total) ** 0.5, rel=1e-5) and result.departure > 0
    for name, sigma in result.sums.items():
        torch.testing.assert_close(sigma, torch.linalg.svdvals(dense(plain[name]))[: len(sigma)])


def test_settings_that_mean_nothing():
    for wrong in ({"method": "median"}, {"density": -0.1}, {"density": 1.1}, {"amount": -0.1}):
        with pytest.raises(ValueError, match="unknown method|density"):
            MergeSettings(**wrong)


# -- cuts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sum", "ties", "tsv"])
def test_errors_of_layers_and_of_the_whole(method):
    pair = [part(0, rank=4), part(100, 0.7)]
    full, cut = merge(pair, MergeSettings(method)), merge(pair, MergeSettings(method), Limits(rank=2))
    assert set(full.errors.values()) == {0.0} and full.error == 0.0
    lost = {name: float((dense(cut.layers[name]) - dense(each)).norm()) for name, each in full.layers.items()}
    for name, each in full.layers.items():
        sigma = torch.linalg.svdvals(dense(each))
        assert cut.layers[name].rank == 2
        assert cut.errors[name] == pytest.approx(lost[name] / float(sigma.norm()), rel=1e-5)
        assert lost[name] == pytest.approx(float(sigma[2:].norm()), rel=1e-5)
    norm = sum(float(dense(each).square().sum()) for each in full.layers.values()) ** 0.5
    assert cut.error == pytest.approx(sum(x * x for x in lost.values()) ** 0.5 / norm, rel=1e-5)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_energy_takes_the_fewest_values(energy):
    pair = [part(0, rank=4), part(100)]
    cut, plain = merge(pair, limits=Limits(energy=energy)), exact_sum(pair)
    for name, each in plain.items():
        share = torch.linalg.svdvals(dense(each)).square().cumsum(0)
        assert cut.layers[name].rank == int((share < energy * share[-1]).sum()) + 1
        assert cut.errors[name] <= (1 - energy) ** 0.5 + 1e-9


@pytest.mark.parametrize("limits", [{"ratio": 1.0}, {"ratio": 2.5}, {"share": 0.6}, {"share": 0.97}])
def test_ratio_and_share_look_at_the_values_themselves(limits):
    pair = [part(0, rank=4), part(100)]
    cut, plain = merge(pair, limits=Limits(**limits)), exact_sum(pair)
    for name, each in plain.items():
        sigma = torch.linalg.svdvals(dense(each))
        sigma = sigma[sigma > sigma[0] * 1e-6]
        kept = cut.layers[name].rank
        if "ratio" in limits:
            assert kept == int((sigma >= sigma[0] / limits["ratio"] * (1 - 1e-9)).sum())
        else:
            wanted = limits["share"] * sigma.sum()
            assert sigma[:kept].sum() >= wanted and sigma[: kept - 1].sum() < wanted


def test_convolutions_that_look_at_one_place_have_the_rank_of_all():
    generator = torch.Generator().manual_seed(5)
    layers = {
        name: LowRank(
            torch.randn(6, 12 * taps, generator=generator), torch.randn(20, 6, generator=generator), 6.0, kernel
        )
        for name, kernel, taps in [("linear", (), 1), ("one", (1, 1), 1), ("wide", (3, 3), 9), ("line", (3,), 3)]
    }

    def ranks(**limits) -> list[int]:
        made = merge([Weighted("", Adapter(layers), 1.0, 1.0)], limits=Limits(**limits))
        return [made.layers[name].rank for name in layers]

    assert ranks(rank=4, conv_rank=2) == [4, 4, 2, 2]
    assert ranks(rank=2, conv_rank=5) == [2, 2, 5, 5]
    assert ranks(conv_rank=3) == [6, 6, 3, 3]
    assert ranks(rank=4) == [4, 4, 4, 4]


def test_a_rank_above_what_there_is_changes_nothing():
    cut = merge([part(0), part(100)], limits=Limits(rank=50))
    assert set(cut.errors.values()) == {0.0} == {cut.error}
    for name, each in exact_sum([part(0), part(100)]).items():
        close(dense(cut.layers[name]), dense(each), 1e-12)


def numbers(layers) -> int:
    return sum(each.num_parameters() for each in layers.values())


def best_by_search(spectra: dict[str, Tensor], widths: dict[str, int], room: int) -> float:
    """The least energy lost by any choice of ranks with at most `room` numbers."""
    (one, two, three), best = spectra, float("inf")
    for i in range(len(spectra[one]) + 1):
        for j in range(len(spectra[two]) + 1):
            for k in range(len(spectra[three]) + 1):
                if i * widths[one] + j * widths[two] + k * widths[three] <= room:
                    lost = (
                        spectra[one][i:].square().sum()
                        + spectra[two][j:].square().sum()
                        + spectra[three][k:].square().sum()
                    )
                    best = min(best, float(lost))
    return best


@pytest.mark.parametrize("kilobytes", [1.5, 1.7, 1.9])
def test_size_is_shared_out_best_over_all_layers(kilobytes):
    pair = [part(0, rank=4), part(100, 0.3, names=("diffusion_model.a",))]
    plain, cut = exact_sum(pair), merge(pair, limits=Limits(megabytes=kilobytes / 1e3))
    spectra = {name: torch.linalg.svdvals(dense(each)) for name, each in plain.items()}
    room = kilobytes * 1e3 - sum(300 + 3 * len(name) for name in plain)
    assert 2 * numbers(cut.layers) <= room < 2 * numbers(plain)
    assert len({each.rank for each in cut.layers.values()}) > 1, "more where there is more to keep"
    lost = cut.error**2 * sum(float(sigma.square().sum()) for sigma in spectra.values())
    best = best_by_search(spectra, {name: sum(SHAPES[name]) for name in plain}, int(room / 2))
    assert best * (1 - 1e-9) <= lost <= best * 1.06, "but for the last component, which may be one of another width"


def test_a_wide_layer_pays_for_its_width():
    """When layers hold the same amount, most is kept of the one that takes the least room."""
    shapes = {"wide": (150, 130), "small": (12, 10), "middle": (40, 20)}
    layers = {name: layer(index, *shape, 4) for index, (name, shape) in enumerate(shapes.items())}
    layers = {name: each.scaled(1 / each.norm()) for name, each in layers.items()}
    cut = merge([Weighted("", Adapter(layers), 1.0, 1.0)], limits=Limits(megabytes=0.002))
    spectra = {name: torch.linalg.svdvals(dense(each))[:4] for name, each in layers.items()}
    best = best_by_search(spectra, {name: sum(shape) for name, shape in shapes.items()}, numbers(cut.layers))
    assert cut.error**2 * 3 == pytest.approx(best, rel=1e-6) and cut.errors["small"] < cut.errors["wide"]


def test_where_the_strongest_is_too_wide_for_the_room_the_others_have_it():
    layers = {"wide": layer(0, 300, 300, 2).scaled(100), "small": layer(2, 10, 12, 4)}
    cut = merge([Weighted("", Adapter(layers), 1.0, 1.0)], limits=Limits(megabytes=0.0008))
    assert {name: each.rank for name, each in cut.layers.items()} == {"small": 3}


def test_a_layer_for_which_there_is_no_room_is_told():
    faint = {name: each.scaled(1e-6) for name, each in part(0, names=("diffusion_model.c",)).adapter.layers.items()}
    parts = [part(100, names=("diffusion_model.a",)), Weighted("faint", Adapter(faint), 1.0, 1.0)]
    cut = merge(parts, limits=Limits(megabytes=0.00088))
    assert set(cut.layers) == {"diffusion_model.a"} and cut.errors["diffusion_model.c"] == 1.0
    with pytest.raises(ValueError, match=r"size_mb 0.0001 is too small for 2 layers; use 0.0\d+ or more"):
        merge(parts, limits=Limits(megabytes=0.0001))


def test_many_loras_take_no_more_rank_than_there_is():
    parts = [part(10 * i, 0.3, rank=4) for i in range(20)]
    plain = exact_sum(parts)
    for name, each in merge(parts).layers.items():
        assert plain[name].rank == 80 and each.rank == min(SHAPES[name])
        close(dense(each), dense(plain[name]), 1e-6)


def test_what_was_added_is_subtracted_again():
    """Where only it was, nothing stays; elsewhere what fp16 holds as well as any LoRA."""
    first, second = part(0), part(100, 0.01, names=("diffusion_model.a",))
    both = Weighted("both", Adapter(exact_sum([first, second])), 1.0, 1.0)
    result = merge([both, replace(first, strength=-1.0, text_strength=-1.0)])
    assert list(result.layers) == ["diffusion_model.a"] and result.cancelled == [
        "diffusion_model.b",
        "diffusion_model.c",
    ]
    left = result.layers["diffusion_model.a"]
    close(dense(left.to(torch.float16)), 0.01 * dense(second.adapter.layers["diffusion_model.a"]), 2e-3)
    for limits in (Limits(rank=2), Limits(energy=0.9), Limits(megabytes=1.0)):
        cut = merge([both, replace(first, strength=-1.0, text_strength=-1.0)], limits=limits)
        assert cut.cancelled == result.cancelled and list(cut.layers) == list(result.layers)


def test_an_inverse_is_a_subtraction_too():
    """Whether the sign is in alpha or in a factor."""
    first, second = part(0), part(100, 0.01)
    inverse = {n: replace(each, lora_B=-each.lora_B) for n, each in first.adapter.layers.items()}
    parts = [Weighted("both", Adapter(exact_sum([first, second])), 1.0, 1.0), Weighted("-", Adapter(inverse), 1.0, 1.0)]
    for name, each in merge(parts).layers.items():
        close(dense(each.to(torch.float16)), 0.01 * dense(second.adapter.layers[name]), 2e-3)
    with pytest.raises(ValueError, match="the merge is empty"):
        merge([first, parts[1]])


def test_chance_does_not_depend_on_the_order_of_layers():
    pair = [part(0), part(100)]
    turned = [replace(each, adapter=Adapter(dict(reversed(each.adapter.layers.items())))) for each in pair]
    for method in RANDOM:
        one, other = (merge(parts, MergeSettings(method, seed=3)).layers for parts in (pair, turned))
        assert list(one) != list(other) and all(torch.equal(dense(one[name]), dense(other[name])) for name in one)


def test_rank_caps_size_and_energy():
    pair = [part(0, rank=4), part(100)]
    for limits in (Limits(rank=3, megabytes=1.0), Limits(rank=3, energy=0.99999)):
        assert {each.rank for each in merge(pair, limits=limits).layers.values()} == {3}


def test_limits_that_mean_nothing():
    for wrong in ({"rank": -1}, {"energy": 0.0}, {"energy": 1.5}, {"megabytes": -1.0}):
        with pytest.raises(ValueError, match="rank and size_mb must be 0 or more"):
            Limits(**wrong)


def test_progress_counts_layers_and_can_cancel():
    seen = []
    merge([part(0), part(100)], tick=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(KeyboardInterrupt):
        merge([part(0)], limits=Limits(rank=1), tick=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))


def test_the_result_is_fp32_whatever_the_parts_are():
    halves = [
        replace(each, adapter=each.adapter.map(lambda low: low.to(torch.float16))) for each in (part(0), part(100))
    ]
    for limits in (Limits(), Limits(rank=2)):
        for each in merge(halves, limits=limits).layers.values():
            assert each.lora_A.dtype == each.lora_B.dtype == torch.float32
