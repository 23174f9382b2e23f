"""Kinds turned into plain LoRA: exact where a formula has a rank, else as near as the best of that rank."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.kinds import GLoRA, LoHa, LoKr, placed
from lora_loom.lora_core.kinds.correction import Correction
from lora_loom.lora_core.kinds.dora import DoRA
from lora_loom.lora_core.kinds.full import Difference, Replacement
from lora_loom.lora_core.kinds.oft import OFT
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.conversion import convert, to_low_rank
from lora_loom.lora_core.merging.truncation import Limits
from torch import Tensor

LINEAR, CONV = (40, 32), (40, 16, 3, 3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loha(shape: tuple[int, ...], tucker: bool = False) -> LoHa:
    out, columns, *kernel = shape
    wide = torch.Size(shape[1:]).numel()
    if tucker:
        factors = [randn(3, size, seed=i) for i, size in enumerate((out, columns, out, columns))]
        return LoHa(*factors, 0.7, randn(3, 3, *kernel, seed=5), randn(3, 3, *kernel, seed=6))
    return LoHa(randn(out, 3), randn(3, wide, seed=1), randn(out, 3, seed=2), randn(3, wide, seed=3), 0.7)


def glora(shape: tuple[int, ...], flat: bool = False) -> GLoRA:
    wide = torch.Size(shape[1:]).numel()
    width = wide if flat else shape[1]
    return GLoRA(randn(width, 2), randn(2, width, seed=1), randn(shape[0], 2, seed=2), randn(2, wide, seed=3), 0.3)


def lora(shape: tuple[int, ...]) -> LowRank:
    return LowRank(randn(3, torch.Size(shape[1:]).numel()), randn(shape[0], 3, seed=1), 0.3, shape[2:])


def dora(shape: tuple[int, ...], axis: int) -> DoRA:
    return DoRA(lora(shape), randn(shape[axis], seed=4).abs() + 2, axis)


EXACT = {  # kind, the weight's shape, the rank that its formula has
    "LoHa": (loha(LINEAR), LINEAR, 9),
    "LoHa conv": (loha(CONV), CONV, 9),
    "LoHa tucker": (loha(CONV, tucker=True), CONV, 9),
    "LoKr pair": (LoKr((randn(4, 2),), (randn(10, 3, seed=1), randn(3, 16, seed=2)), 0.5), LINEAR, 6),
    "LoKr pairs": (LoKr((randn(4, 1), randn(1, 2)), (randn(10, 3, seed=1), randn(3, 16, seed=2)), 0.5), LINEAR, 3),
    "LoKr whole": (LoKr((randn(4, 2),), (randn(10, 16, seed=1),)), LINEAR, 20),
    "LoKr conv": (LoKr((randn(4, 2),), (randn(10, 8, 3, 3, seed=1),)), CONV, 20),
    "GLoRA": (glora(LINEAR), LINEAR, 4),
    "GLoRA conv": (glora(CONV), CONV, 20),
    "GLoRA flat": (glora(CONV, flat=True), CONV, 4),
}
DENSE: dict[str, tuple[Correction, tuple[int, ...]]] = {
    "DoRA per row": (dora(LINEAR, 0), LINEAR),
    "DoRA per column": (dora(CONV, 1), CONV),
    "OFT": (OFT(randn(8, 5, 5) * 0.2), LINEAR),
    "difference": (Difference(randn(*CONV)), CONV),
    "slice": (placed(loha((20, 32)), (10, 20), 40), LINEAR),
}


def delta(change: Correction, weight: Tensor) -> Tensor:
    return change.apply_to(weight.double()) - weight.double()


def error(made: LowRank, wanted: Tensor) -> float:
    assert made.shape == tuple(wanted.shape)
    return float((made.to(torch.float64).delta_weight() - wanted).norm() / wanted.norm())


def best(wanted: Tensor, rank: int) -> float:
    sigma = torch.linalg.svdvals(wanted.flatten(1))
    return float(sigma[rank:].norm() / sigma.norm())


@pytest.mark.parametrize("kind", EXACT)
def test_a_formula_with_a_rank_is_converted_exactly(kind: str):
    change, shape, rank = EXACT[kind]
    weight = randn(*shape, seed=9)
    made, lost = to_low_rank(change, Limits(), weight)
    assert made.rank == rank and lost < 1e-7 and error(made, delta(change, weight)) < 1e-6


@pytest.mark.parametrize("kind", EXACT)
def test_a_cut_of_it_is_the_best_there_is(kind: str):
    change, shape, rank = EXACT[kind]
    weight = randn(*shape, seed=9)
    wanted = delta(change, weight)
    made, lost = to_low_rank(change, Limits(rank=2), weight)
    assert made.rank == 2 and lost == pytest.approx(best(wanted, 2), rel=1e-5, abs=1e-7)
    assert error(made, wanted) == pytest.approx(lost, rel=1e-4)
    some, lost = to_low_rank(change, Limits(energy=0.9), weight)
    assert lost**2 <= 0.1 and (some.rank == 1 or best(wanted, some.rank - 1) ** 2 > 0.1)


@pytest.mark.parametrize("kind", DENSE)
def test_anything_else_is_cut_nearly_as_well(kind: str):
    change, shape = DENSE[kind]
    weight = randn(*shape, seed=9)
    wanted = delta(change, weight)
    for rank in (4, 12):
        made, lost = to_low_rank(change, Limits(rank=rank), weight)
        assert error(made, wanted) == pytest.approx(lost, rel=1e-3, abs=1e-6)
        assert made.rank <= rank and lost <= 1.01 * best(wanted, rank) + 1e-5
    made, lost = to_low_rank(change, Limits(rank=40, energy=0.8), weight)
    assert made.rank < 40 and 0.1 < lost**2 <= 0.2 + 1e-6


def test_a_large_matrix_is_sketched_nearly_optimally():
    """The spectrum of a trained difference falls slowly; 400 rows are enough to leave the exact regime of the width."""
    left, right = (torch.linalg.qr(randn(400, 400, seed=seed))[0] for seed in (1, 2))
    sigma = torch.arange(1, 401).float().rsqrt()
    matrix = left * sigma @ right
    made, lost = to_low_rank(Difference(matrix), Limits(rank=32), torch.zeros(400, 400), "w")
    optimum = float(sigma[32:].norm() / sigma.norm())
    assert made.rank == 32 and optimum <= lost < 1.01 * optimum
    again, _ = to_low_rank(Difference(matrix), Limits(rank=32), torch.zeros(400, 400), "w")
    assert torch.equal(made.lora_A, again.lora_A), "the same file gives the same LoRA"


@pytest.mark.parametrize("change, shape", [
    (LoHa(randn(8, 2), torch.zeros(2, 6), randn(8, 2), randn(2, 6)), (8, 6)),
    (LoKr((torch.zeros(2, 2),), (randn(4, 3),)), (8, 6)),
    (Difference(torch.zeros(8, 6)), (8, 6)),
])  # fmt: skip
def test_nothing_stays_nothing(change: Correction, shape: tuple[int, ...]):
    made, lost = to_low_rank(change, Limits(rank=1), randn(*shape))
    assert lost == 0.0 and not made.delta_weight().any() and made.shape == shape


def test_without_the_weight_it_says_so():
    with pytest.raises(ValueError, match="only with the base model"):
        to_low_rank(dora(LINEAR, 0), Limits())
    plain = lora(LINEAR)
    assert to_low_rank(plain, Limits()) == (plain, 0.0)


def test_an_adapter_keeps_what_is_plain_and_says_what_has_no_rank():
    plain, weights = lora(LINEAR), {name: randn(*LINEAR, seed=i) for i, name in enumerate("abc")}
    weights |= {"b.bias": randn(40), "norm": randn(40)}
    others = {"a": (dora(LINEAR, 1),), "b": (loha(LINEAR), dora(LINEAR, 0)), "b.bias": (Difference(randn(40)),),
              "norm": (Replacement(randn(40)),)}  # fmt: skip
    ticks: list[tuple[int, int]] = []
    made = convert(Adapter({"b": lora(LINEAR), "c": plain}, {"k": "v"}, others), Limits(rank=32), weights.__getitem__,
                   lambda *done: ticks.append(done))  # fmt: skip
    assert made.adapter.layers["c"] is plain and not made.adapter.others and made.adapter.metadata == {"k": "v"}
    assert made.left_out == {"norm": "replacement"} and set(made.errors) == {"a", "b"} and ticks[-1] == (4, 4)
    assert torch.equal(made.vectors["b.bias"].values, randn(40))
    step = lora(LINEAR).add_to_(weights["b"].double())
    for item in others["b"]:
        step = item.apply_to(step)
    assert error(made.adapter.layers["b"], step - weights["b"].double()) < 1e-5


def test_slices_of_a_fused_weight_keep_their_formulas():
    swap = lambda tensor: torch.cat(tensor.chunk(2)[::-1])  # noqa: E731
    weight = randn(80, 32)
    slices = (placed(loha((30, 32)), (0, 30), 80), placed(glora((50, 32)), (30, 50), 80, swap))
    made = convert(Adapter({}, {}, {"qkv": slices}), Limits(), lambda _: weight, lambda *_: None)
    wanted = weight.double()
    for item in slices:
        wanted = item.apply_to(wanted)
    layer = made.adapter.layers["qkv"]
    assert layer.rank == 13 and made.errors["qkv"] < 1e-6 and error(layer, wanted - weight.double()) < 1e-6
    cut = convert(Adapter({}, {}, {"qkv": slices}), Limits(rank=6), lambda _: weight, lambda *_: None)
    assert cut.adapter.layers["qkv"].rank == 6
    assert error(cut.adapter.layers["qkv"], wanted - weight.double()) == pytest.approx(cut.errors["qkv"], rel=1e-4)


def test_the_error_of_the_whole_weighs_layers_by_what_they_do():
    weights = {"a": randn(*LINEAR), "b": randn(*CONV)}
    others = {"a": (OFT(randn(8, 5, 5) * 0.2),), "b": (Difference(randn(*CONV) * 3),)}
    made = convert(Adapter({}, {}, others), Limits(rank=5), weights.__getitem__, lambda *_: None)
    wanted = {name: delta(items[0], weights[name]) for name, items in others.items()}
    lost = sum(float((made.adapter.layers[n].delta_weight() - each).square().sum()) for n, each in wanted.items())
    total = sum(float(each.square().sum()) for each in wanted.values())
    assert made.error == pytest.approx((lost / total) ** 0.5, rel=1e-4) and made.error < max(made.errors.values())


def test_what_is_not_a_number_is_named():
    broken = {"w": (Difference(torch.full(LINEAR, torch.nan)),)}
    with pytest.raises(ValueError, match="w holds NaN or infinite values"):
        convert(Adapter({}, {}, broken), Limits(), lambda _: randn(*LINEAR), lambda *_: None)
