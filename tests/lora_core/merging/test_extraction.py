"""A correction out of a dense difference, beside the dense optimum; and layers picked by name."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.merging.extraction import extract, whole_error
from lora_loom.lora_core.merging.pick import Pick
from torch import Tensor


def decaying(out: int, columns: int, power: float, seed: int = 0, *kernel: int) -> Tensor:
    """A matrix with singular values k ** -power."""
    generator = torch.Generator().manual_seed(seed)
    width = columns * torch.Size(kernel).numel()
    short = min(out, width)
    left, right = (torch.linalg.qr(torch.randn(size, short, generator=generator))[0] for size in (out, width))
    return (left * torch.arange(1, short + 1) ** -power @ right.T).reshape(out, columns, *kernel)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (300, 200), (200, 300), (1, 5)])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_the_error_is_true_and_near_the_least(shape, power):
    whole = decaying(*shape, power).double()
    found = extract(whole.float(), 8, 1.0, "w")
    sigma = torch.linalg.svdvals(whole)
    least = float(sigma[8:].norm() / sigma.norm())
    left = whole - found.low_rank.to(torch.float64).delta_weight()
    assert found.error == pytest.approx(float(left.norm() / whole.norm()), rel=1e-4, abs=1e-6)
    assert least - 1e-6 <= found.error <= 1.01 * least + 1e-6 and found.low_rank.rank <= 8
    assert found.norm == pytest.approx(float(whole.norm()), rel=1e-6)


def test_what_has_that_rank_is_found_exactly():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(300, 6, generator=generator) @ torch.randn(6, 250, generator=generator)
    found = extract(whole.clone(), 6, 1.0, "w")
    assert found.error < 1e-6 and found.low_rank.rank == 6
    assert extract(whole.clone(), 64, 1.0, "w").low_rank.rank == 6, "no rank for rounding"


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_takes_the_least_rank(energy):
    whole = decaying(120, 100, 1.0)
    found = extract(whole.clone(), 40, energy, "w")
    share = torch.linalg.svdvals(whole.double()).square().cumsum(0)
    assert found.low_rank.rank == int((share < energy * share[-1]).sum()) + 1
    assert found.error**2 <= 1 - energy + 1e-6


def test_without_an_energy_rounding_takes_no_rank():
    """The largest value alone is already all of the norm but for what fp32 rounds."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        left, right = (torch.linalg.qr(torch.randn(size, 2, generator=generator))[0] for size in (300, 250))
        found = extract(left * torch.tensor([1.0, 1e-4]) @ right.T, 2, 1.0, "w")
        assert found.low_rank.rank == 2 and found.error < 1e-5


def test_a_convolution_comes_back_in_its_shape():
    whole = decaying(12, 6, 3.0, 0, 3, 3)
    found = extract(whole.clone(), 12, 1.0, "w")
    assert found.low_rank.shape == (12, 6, 3, 3)
    torch.testing.assert_close(found.low_rank.delta_weight(), whole, atol=1e-6, rtol=0)


def test_the_same_name_gives_the_same_bytes():
    whole = decaying(300, 200, 0.3)
    first, again, other = (extract(whole.clone(), 8, 1.0, name).low_rank.lora_A for name in ("w", "w", "v"))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_difference_and_no_numbers():
    assert extract(torch.zeros(4, 4), 2, 1.0, "w") is None
    with pytest.raises(ValueError, match="w holds NaN or infinite values"):
        extract(torch.full((4, 4), float("nan")), 2, 1.0, "w")


def test_the_whole_error_weighs_layers_by_their_size():
    parts = [extract(decaying(40, 30, 0.5, seed) * size, 4, 1.0, "w") for seed, size in ((0, 1.0), (1, 5.0))]
    lost = sum((part.error * part.norm) ** 2 for part in parts)
    assert whole_error(parts) == pytest.approx((lost / sum(part.norm**2 for part in parts)) ** 0.5)
    assert whole_error([]) == 0.0


NAMES = ["model.blocks.0.attn.q", "model.blocks.0.mlp.fc", "model.blocks.11.attn.q", "text.layers.0.q"]


@pytest.mark.parametrize(
    ("keep", "drop", "taken"),
    [
        ("", "", [0, 1, 2, 3]), ("attn", "", [0, 2]), ("", "attn, text", [1]), ("blocks.*.attn", "blocks.11.", [0]),
        ("mlp\nblocks.11.", "", [1, 2]),
    ],
)  # fmt: skip
def test_layers_by_parts_of_their_names(keep, drop, taken):
    pick = Pick.of(keep, drop)
    pick.check(NAMES)
    assert [index for index, name in enumerate(NAMES) if pick.takes(name)] == taken


def test_patterns_that_hit_nothing_are_told_what_there_is():
    with pytest.raises(ValueError, match=r"no layer has 'atn' in its name; there are model.blocks.\*.attn.q x 2"):
        Pick.of("atn", "").check(NAMES)
    with pytest.raises(ValueError, match="keep and drop select none of the 4 layers"):
        Pick.of("attn", "blocks").check(NAMES)


@pytest.mark.parametrize(("shape", "rank"), [((320, 320), 32), ((400, 700), 32), ((700, 400), 16), ((900, 900), 8)])
@pytest.mark.parametrize("spectrum", ["noise", "even", "step"])
def test_flat_spectra_are_cut_at_the_optimum_to_four_digits(shape, rank, spectrum):
    whole = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    if spectrum != "noise":
        left, sigma, right = torch.linalg.svd(whole, full_matrices=False)
        sigma = (
            torch.linspace(1.0, 0.9, len(sigma)) if spectrum == "even" else (torch.arange(len(sigma)) < 4 * rank) + 0.5
        )
        whole = left * sigma @ right
    sigma = torch.linalg.svdvals(whole.double())
    least = float(sigma[rank:].norm() / sigma.norm())
    assert extract(whole.clone(), rank, 1.0, "w").error <= 1.00005 * least


@pytest.mark.parametrize(("signal", "rank"), [(16, 32), (4, 8), (31, 32)])
def test_a_few_large_values_do_not_hide_how_flat_the_others_are(signal, rank):
    whole = torch.randn(640, 640, generator=torch.Generator().manual_seed(3))
    left, sigma, right = torch.linalg.svd(whole)
    sigma = torch.where(torch.arange(640) < signal, 10.0, torch.linspace(1.0, 0.8, 640))
    least = float(sigma[rank:].norm() / sigma.norm())
    assert extract(left * sigma @ right, rank, 1.0, "w").error <= 1.00005 * least


@pytest.mark.parametrize("rows", [4, 30, 60, 300])
@pytest.mark.parametrize("kind", ["equal", "decaying"])
def test_directions_that_are_used_up_are_counted_once(rows, kind):
    """After a block of 24 directions nothing new, or less than a block, is left of a weight of few rows, or of one
    whose values are all equal."""
    whole = torch.zeros(300, 400)
    whole[:rows] = torch.eye(rows, 400) if kind == "equal" else decaying(rows, 400, 0.2)
    sigma, pauses = torch.linalg.svdvals(whole.double()), []
    found = extract(whole.clone(), 8, 1.0, "w", lambda: pauses.append(None))
    assert len(pauses) == 5 or rows >= 60, "three blocks hold all"
    assert found.error == pytest.approx(float(sigma[8:].norm() / sigma.norm()), rel=5e-5, abs=5e-7)
    torch.testing.assert_close(found.sigma[:8], sigma[: min(8, rows)], rtol=1e-4, atol=0)
