"""LowRank against dense fp64 algebra written out independently of it."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.low_rank import LowRank
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KERNELS = ((), (1,), (3,), (1, 1), (3, 3), (1, 3), (2, 3, 2))
WIDE = dict(max_examples=60, deadline=None, derandomize=True)

kernels, dtypes, seeds = st.sampled_from(KERNELS), st.sampled_from(DTYPES), st.integers(0, 2**31)
sides, ranks = st.integers(1, 12), st.integers(1, 9)
alphas = st.floats(0.01, 64).map(lambda a: round(a, 3))


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(seed: int, out: int, channels: int, rank: int, alpha: float, kernel=(), dtype=torch.float64) -> LowRank:
    a = random(seed, rank, channels * prod(kernel), dtype=dtype)
    return LowRank(a, random(seed + 1, out, rank, dtype=dtype), alpha, kernel)


def dense(item: LowRank) -> Tensor:
    """`(alpha / rank) * B @ A` in fp64 and in the shape of a weight: einsum over spelled-out indices."""
    rank, kernel = item.lora_A.shape[0], item.kernel
    a = item.lora_A.double().reshape(rank, -1, *kernel)
    return torch.einsum("or,r...->o...", item.lora_B.double(), a) * (item.alpha / rank)


def rounding(item: LowRank, units: float) -> Tensor:
    """`units` roundings of the products' magnitudes, per element: what any order of summation may be off by."""
    size = item.lora_B.double().abs() @ item.lora_A.double().abs() * abs(item.scaling)
    dtype = item.lora_A.dtype
    return (size * units * torch.finfo(dtype).eps + torch.finfo(dtype).tiny).reshape(dense(item).shape)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to a fraction `tolerance` of the expected Frobenius norm."""
    assert actual.shape == expected.shape
    error, scale = float((actual.double() - expected).norm()), float(expected.norm())
    assert error <= tolerance * scale, f"off by {error:g} of {scale:g}"


class Tensors(TorchDispatchMode):
    """Every tensor any operation returns, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.shapes += [tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result

    @property
    def largest(self) -> int:
        return max(map(prod, self.shapes))


# --- what a LowRank is ---


@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, rank=ranks, alpha=alphas, kernel=kernels, dtype=dtypes)
def test_delta_weight_is_alpha_over_rank_times_b_a(seed, out, channels, rank, alpha, kernel, dtype):
    item = make(seed, out, channels, rank, alpha, kernel, dtype)
    delta = item.delta_weight()
    assert delta.dtype == dtype and delta.shape == item.shape == (out, channels, *kernel)
    assert bool(((delta.double() - dense(item)).abs() <= rounding(item, rank + 2)).all())
    assert item.scaling == pytest.approx(alpha / rank) and item.rank == rank
    assert item.num_parameters() == rank * (channels * prod(kernel) + out)


@pytest.mark.parametrize(
    ("a", "b", "kernel"),
    [((2, 6), (4, 3), ()), ((2, 6, 1), (4, 2), ()), ((2, 6), (4, 2, 1), ()), ((0, 6), (4, 0), ()), ((2, 6), (4,), ())],
)
def test_factors_that_do_not_pair_are_refused_with_both_shapes(a, b, kernel):
    with pytest.raises(ValueError, match="do not pair") as caught:
        LowRank(torch.zeros(a), torch.zeros(b), 1.0, kernel)
    assert str(a) in str(caught.value) and str(b) in str(caught.value)


def test_a_kernel_that_does_not_divide_the_columns_is_refused():
    with pytest.raises(ValueError, match=r"10 columns, which kernel \(3, 3\) does not divide"):
        LowRank(torch.zeros(2, 10), torch.zeros(4, 2), 1.0, (3, 3))


def test_to_changes_both_factors_and_nothing_else():
    item = make(0, 5, 4, 2, 3.0, (3, 3))
    moved = item.to(torch.float32)
    assert moved.lora_A.dtype == moved.lora_B.dtype == torch.float32
    assert (moved.alpha, moved.kernel, moved.shape) == (3.0, (3, 3), item.shape)


# --- files' factors: conv and Tucker, against LyCORIS' formula and ComfyUI's own code ---


def comfy_delta(up: Tensor, down: Tensor, alpha: float, mid: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    from comfy.weight_adapter.lora import LoRAAdapter

    adapter = LoRAAdapter(set(), (up, down, alpha, mid, None, None))
    weight = torch.zeros(shape, dtype=torch.float64)
    return adapter.calculate_weight(weight, "k", 1.0, 1.0, None, lambda w: w, intermediate_dtype=torch.float64)


@pytest.mark.usefixtures("comfyui")
@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, rank=ranks, alpha=alphas, kernel=kernels)
def test_from_conv_equals_comfyui(seed, out, channels, rank, alpha, kernel):
    down, up = random(seed, rank, channels, *kernel), random(seed + 1, out, rank, *(1 for _ in kernel))
    item = LowRank.from_conv(down, up, alpha)
    assert item.shape == (out, channels, *kernel)
    close(dense(item), comfy_delta(up, down, alpha, None, item.shape), 1e-13)


@pytest.mark.usefixtures("comfyui")
@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, rank=ranks, alpha=alphas, kernel=kernels.filter(lambda k: len(k) == 2))
def test_tucker_equals_lycoris_and_comfyui(seed, out, channels, rank, alpha, kernel):
    down, up = random(seed, rank, channels, 1, 1), random(seed + 1, out, rank, 1, 1)
    mid = random(seed + 2, rank, rank, *kernel)
    item = LowRank.from_conv(down, up, alpha, mid)
    rebuilt = torch.einsum("u v k l, v i, o u -> o i k l", mid, down[..., 0, 0], up[..., 0, 0]) * (alpha / rank)
    assert item.shape == (out, channels, *kernel)
    close(dense(item), rebuilt, 1e-13)
    close(dense(item), comfy_delta(up, down, alpha, mid, item.shape), 1e-13)


@pytest.mark.parametrize(("rank_up", "rank_down"), [(3, 5), (5, 3)])
def test_tucker_core_that_is_not_square_scales_by_the_rank_of_down(rank_up, rank_down):
    down, up, mid = random(1, rank_down, 4, 1, 1), random(2, 6, rank_up, 1, 1), random(3, rank_up, rank_down, 3, 3)
    item = LowRank.from_conv(down, up, 2.0, mid)
    rebuilt = torch.einsum("uvkl,vi,ou->oikl", mid, down[..., 0, 0], up[..., 0, 0]) * (2.0 / rank_down)
    assert item.rank == rank_up
    close(dense(item), rebuilt, 1e-13)


# --- adding to a weight ---


@settings(**WIDE)
@given(
    seed=seeds, out=sides, channels=sides, rank=ranks, alpha=alphas, kernel=kernels, dtype=dtypes,
    strength=st.sampled_from([1.0, -0.7, 0.35, 2.0, 0.0]),
)  # fmt: skip
def test_add_is_in_place_and_right_to_rounding(seed, out, channels, rank, alpha, kernel, dtype, strength):
    item = make(seed, out, channels, rank, alpha, kernel, dtype)
    weight = random(seed + 5, *item.shape, dtype=dtype)
    before, storage = weight.double().clone(), weight.data_ptr()
    assert item.add_to_(weight, strength) is weight and weight.data_ptr() == storage and weight.dtype == dtype
    expected = before + strength * dense(item)
    eps = torch.finfo(dtype).eps
    bound = abs(strength) * rounding(item, rank + 2) + eps * (expected.abs() + before.abs())
    assert bool(((weight.double() - expected).abs() <= bound).all())


def test_strength_zero_leaves_every_bit():
    weight = random(3, 8, 6, dtype=torch.float32)
    before = weight.clone()
    make(0, 8, 6, 2, 4.0).add_to_(weight, 0.0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "every other row"])
def test_add_reaches_a_weight_that_is_not_contiguous(layout, dtype):
    kernel = (3, 3) if layout == "channels_last" else ()
    item = make(0, 8, 6, 3, 2.0, kernel, torch.float64)
    big = random(9, 16, 6, *kernel, dtype=dtype)
    view = {"transposed": lambda: random(9, 6, 8, dtype=dtype).T, "every other row": lambda: big[::2],
            "channels_last": lambda: big[:8].to(memory_format=torch.channels_last)}[layout]()  # fmt: skip
    assert not view.is_contiguous()
    before, others, strides = view.double().clone(), big[1::2].clone(), view.stride()
    assert item.add_to_(view, 0.5) is view and view.stride() == strides
    close(view, before + 0.5 * dense(item), {torch.float64: 1e-14, torch.float32: 2e-7}.get(dtype, 6e-3))
    if layout == "every other row":
        assert torch.equal(big[1::2], others)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_narrow_weights_are_rounded_once(dtype):
    """The sum in fp32, then one rounding: never a product or a partial sum in the narrow type."""
    item = make(0, 16, 12, 4, 2.0, dtype=torch.float32)
    weight = random(7, 16, 12, dtype=torch.float32).to(dtype)
    once = (weight.double() + 0.25 * dense(item)).float().to(dtype)
    item.add_to_(weight, 0.25)
    assert (weight.float() == once.float()).float().mean() > 0.99  # fp32 itself may fall on the other side of a tie
    close(weight, once.double(), 0.01)


def test_add_allocates_nothing_of_the_weights_size():
    item, weight = make(0, 512, 400, 4, 2.0, dtype=torch.float32), torch.zeros(512, 400)
    with Tensors() as made:
        item.add_to_(weight, 0.5)
    own = [shape for shape in made.shapes if prod(shape) >= weight.numel()]
    assert made.shapes.count((512, 400)) == len(own) <= 2  # the view and the result of addmm_, both the weight itself
    close(weight, 0.5 * dense(item), 1e-6)


def test_add_to_a_flattened_convolution():
    item = make(0, 8, 6, 3, 2.0, (3, 3))
    weight = torch.zeros(8, 54, dtype=torch.float64)
    close(item.add_to_(weight), dense(item).reshape(8, 54), 1e-14)


@pytest.mark.parametrize("shape", [(6, 8), (8, 7), (4, 12), (8, 6, 3, 3), (48,)])
def test_a_weight_of_another_shape_is_refused_untouched(shape):
    weight = torch.ones(shape)
    with pytest.raises(ValueError, match=r"shape \(8, 6\) does not fit a weight of shape") as caught:
        make(0, 8, 6, 2, 1.0).add_to_(weight)
    assert str(shape) in str(caught.value) and bool((weight == 1).all())


# --- algebra ---


@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, rank=ranks, alpha=alphas, kernel=kernels, strength=st.floats(-3, 3))
def test_scaled(seed, out, channels, rank, alpha, kernel, strength):
    item = make(seed, out, channels, rank, alpha, kernel)
    scaled = item.scaled(strength)
    assert scaled.lora_A is item.lora_A and scaled.lora_B is item.lora_B and scaled.kernel == kernel
    close(dense(scaled), strength * dense(item), 1e-14)


@settings(**WIDE)
@given(
    seed=seeds, out=sides, channels=sides, kernel=kernels,
    parts=st.lists(st.tuples(ranks, alphas, dtypes, st.floats(-2, 2)), min_size=1, max_size=5),
)  # fmt: skip
def test_concat_is_the_exact_sum_of_mixed_ranks_alphas_and_types(seed, out, channels, kernel, parts):
    items = [make(seed + 7 * i, out, channels, r, a, kernel, d).scaled(s) for i, (r, a, d, s) in enumerate(parts)]
    total = LowRank.concat(items)
    assert total.rank == sum(item.rank for item in items) and total.alpha == total.rank and total.scaling == 1.0
    assert total.shape == (out, channels, *kernel)
    widest = torch.float64 if any(d == torch.float64 for _, _, d, _ in parts) else torch.float32
    assert total.lora_A.dtype == total.lora_B.dtype == widest
    magnitude = sum(float(dense(item).norm()) for item in items)
    error = float((dense(total) - sum(dense(item) for item in items)).norm())
    tolerance, least = (1e-13, 1e-300) if widest == torch.float64 else (3e-7, 1e-36)  # fp32 loses digits below 1.2e-38
    assert error <= tolerance * magnitude + least


def test_concat_of_a_linear_spelling_and_a_1x1_convolution_keeps_the_convolution():
    linear, conv = make(0, 5, 4, 2, 1.0), make(3, 5, 4, 3, 2.0, (1, 1))
    for items in ([linear, conv], [conv, linear]):
        total = LowRank.concat(items)
        assert total.shape == (5, 4, 1, 1)
        close(dense(total).flatten(1), dense(linear) + dense(conv).flatten(1), 1e-14)


@pytest.mark.parametrize(
    "others",
    [[(5, 3, ())], [(4, 4, ())], [(5, 4, (3, 3))], []],
    ids=["columns", "rows", "kernel", "nothing"],
)
def test_corrections_of_different_weights_do_not_add(others):
    items = [make(0, 5, 4, 2, 1.0)] * bool(others) + [make(1, o, c, 2, 1.0, k) for o, c, k in others]
    with pytest.raises(ValueError, match="cannot add corrections"):
        LowRank.concat(items)


def test_kernels_of_the_same_size_but_other_shape_do_not_add():
    with pytest.raises(ValueError, match="cannot add corrections"):
        LowRank.concat([make(0, 5, 4, 2, 1.0, (1, 3)), make(1, 5, 4, 2, 1.0, (3, 1))])


@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, rank=ranks, before=st.integers(0, 5), after=st.integers(0, 5))
def test_in_rows_places_the_correction_and_rows_takes_it_back(seed, out, channels, rank, before, after):
    item = make(seed, out, channels, rank, 1.7)
    fused = item.in_rows(before, before + out + after)
    expected = torch.zeros(before + out + after, channels, dtype=torch.float64)
    expected[before : before + out] = dense(item)
    close(dense(fused), expected, 1e-14)
    outside = torch.cat([dense(fused)[:before], dense(fused)[before + out :]])
    assert not outside.any()
    back = fused.rows(before, out)
    assert torch.equal(back.lora_B, item.lora_B) and back.lora_A is item.lora_A and back.alpha == item.alpha
    assert back.lora_B.data_ptr() == fused.lora_B[before:].data_ptr()  # a view


def test_qkv_split_and_joined_again():
    fused = make(0, 12, 5, 3, 2.0)
    parts = [fused.rows(start, 4).in_rows(start, 12) for start in (0, 4, 8)]
    close(dense(LowRank.concat(parts)), dense(fused), 1e-14)


@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, left=ranks, right=ranks, alpha=alphas, kernel=kernels, dtype=dtypes)
def test_inner_norm_and_distance_equal_the_dense_ones(seed, out, channels, left, right, alpha, kernel, dtype):
    one, two = (make(seed + i, out, channels, r, a, kernel, dtype) for i, r, a in ((0, left, alpha), (50, right, 3.0)))
    size = float(dense(one).norm()) * float(dense(two).norm())
    # rank-deficient products cancel: what is summed is as large as the norms of the factors
    summed = prod(float(f.double().norm()) for f in (one.lora_A, one.lora_B, two.lora_A, two.lora_B))
    tolerance = 1e-13 * (summed * one.scaling * two.scaling + size)
    assert abs(one.inner(two) - float((dense(one) * dense(two)).sum())) <= tolerance
    assert one.norm() == pytest.approx(float(dense(one).norm()), rel=1e-6, abs=1e-12)
    apart = float((dense(one) - dense(two)).norm())
    assert one.distance(two) == pytest.approx(apart, rel=1e-6) == two.distance(one)


def test_distance_of_neighbours_is_right_although_the_norms_agree_to_twelve_digits():
    item = make(0, 30, 20, 4, 3.0)
    near = LowRank(item.lora_A + 1e-9 * random(9, 4, 20), item.lora_B, 3.0)
    expected = float((dense(near) - dense(item)).norm())
    assert item.distance(near) == pytest.approx(expected, rel=1e-6) and item.distance(item) <= 1e-14 * item.norm()


def test_distance_of_fp32_factors_has_no_rounding_of_its_own():
    item = LowRank(random(0, 3, 20, dtype=torch.float32), torch.arange(90.0).view(30, 3), 0.7)
    same = LowRank(item.lora_A, item.lora_B * 3, 0.7 / 3)  # whole numbers: exact
    assert item.distance(same) <= 1e-14 * item.norm()


@settings(**WIDE)
@given(seed=seeds, out=sides, channels=sides, rank=ranks, alpha=alphas, kernel=kernels, dtype=dtypes)
def test_singular_values_equal_the_dense_ones(seed, out, channels, rank, alpha, kernel, dtype):
    item = make(seed, out, channels, rank, alpha, kernel, dtype)
    values, reference = item.singular_values(), torch.linalg.svdvals(dense(item).flatten(1))
    count = min(out, channels * prod(kernel), rank)
    assert values.dtype == torch.float64 and len(values) == count
    torch.testing.assert_close(values, reference[:count], rtol=1e-7, atol=float(reference[0]) * 1e-7)


# --- truncation ---


def best(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    """The nearest matrix of that rank and its distance, from a dense SVD (Eckart and Young)."""
    u, s, v = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(matrix.shape), float(s[rank:].norm())


def epsilon(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=seeds, out=st.integers(1, 24), channels=st.integers(1, 24), rank=st.integers(1, 16), keep=st.integers(1, 18),
    alpha=alphas, kernel=kernels, dtype=dtypes, scale=st.sampled_from([1.0, 1e-4, 1e3]),
)  # fmt: skip
def test_truncate_to_a_rank_is_the_eckart_young_optimum(seed, out, channels, rank, keep, alpha, kernel, dtype, scale):
    item = make(seed, out, channels, rank, alpha * scale, kernel, dtype)
    full = dense(item)
    nearest, optimum = best(full, keep)
    cut = item.truncate(keep)
    assert cut.rank <= min(keep, rank, out, channels * prod(kernel))
    assert cut.alpha == cut.rank and cut.shape == item.shape
    assert cut.lora_A.dtype == cut.lora_B.dtype == dtype
    error, size = float((dense(cut) - full).norm()), float(full.norm())
    assert error <= optimum + epsilon(dtype) * size and error >= optimum * (1 - 1e-9) - 1e-12 * size
    values = torch.linalg.svdvals(full.flatten(1))
    if keep < len(values) and values[keep] < 0.9 * values[keep - 1]:  # otherwise the nearest is not unique
        close(dense(cut), nearest, 10 * epsilon(dtype))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, rank=st.integers(1, 12), energy=st.floats(0.05, 0.999), most=st.none() | st.integers(1, 12))
def test_truncate_by_energy_keeps_the_fewest_that_reach_it(seed, rank, energy, most):
    item = make(seed, 20, 15, rank, 2.0)
    squares = torch.linalg.svdvals(dense(item)).square()
    share = squares.cumsum(0) / squares.sum()
    fewest = next(i + 1 for i, value in enumerate(share.tolist()) if value >= energy)
    cut = item.truncate(most, energy)
    assert cut.rank == min(fewest, most or rank, rank)
    close(dense(cut), best(dense(item), cut.rank)[0], 1e-7)


def test_all_energy_of_an_exact_rank_loses_nothing():
    item = make(0, 20, 15, 6, 2.0)
    cut = item.truncate(energy=1.0)
    assert cut.rank == 6
    close(dense(cut), dense(item), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_low_rank_survives_without_loss(dtype):
    """A sum that has rank 6 written with rank 24 comes back whole at rank 6, and at no rank more than 6."""
    item = make(0, 40, 30, 6, 3.0, dtype=dtype)
    doubled = LowRank.concat([item.to(torch.float64).scaled(s) for s in (1.0, 0.5, -2.0, 1.5)])
    for cut in (doubled.truncate(6), doubled.truncate(24), doubled.truncate()):
        assert cut.rank == 6
        close(dense(cut), dense(item), 1e-12)
    close(dense(item.truncate(6)), dense(item), epsilon(dtype))


def test_components_are_balanced_and_ordered():
    cut = make(0, 40, 30, 8, 3.0).truncate(5)
    left, right = cut.lora_B.norm(dim=0), cut.lora_A.norm(dim=1)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=0)
    assert bool((left.diff() < 0).all())
    gram = cut.lora_B.T @ cut.lora_B
    assert float((gram - gram.diag().diag()).norm()) < 1e-9 * float(gram.norm())


def test_nothing_is_clamped():
    """Some extractors clip the largest entries of the factors; one entry a million times the rest must come through."""
    item = make(0, 30, 20, 4, 4.0)
    spiked = LowRank(item.lora_A.clone(), item.lora_B.clone(), 4.0)
    spiked.lora_B[3, 1], spiked.lora_A[1, 7] = 1e4, 1e4
    cut = spiked.truncate(4)
    assert float(dense(spiked).abs().max()) > 1e7
    close(dense(cut), dense(spiked), 1e-9)
    close(dense(spiked.truncate(1)), best(dense(spiked), 1)[0], 1e-9)


@pytest.mark.parametrize("zero", ["B", "A", "both"])
def test_a_correction_that_is_zero_truncates_to_zero_of_rank_one(zero):
    item = make(0, 12, 9, 4, 2.0, dtype=torch.float32)
    a, b = (torch.zeros_like(f) if zero in (n, "both") else f for n, f in (("A", item.lora_A), ("B", item.lora_B)))
    nothing = LowRank(a, b, 2.0)
    for cut in (nothing.truncate(3), nothing.truncate(energy=0.9), nothing.truncate(2, 1.0)):
        assert cut.rank == 1 and not dense(cut).any()
        assert bool(cut.lora_A.isfinite().all()) and bool(cut.lora_B.isfinite().all())


def test_rank_above_the_weights_sides_gives_at_most_the_side():
    item = make(0, 5, 40, 16, 2.0)
    cut = item.truncate()
    assert cut.rank == 5 and len(item.singular_values()) == 5
    close(dense(cut), dense(item), 1e-12)
    assert make(0, 40, 5, 16, 2.0).truncate(9).rank == 5


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e6, 1e15])
def test_tiny_and_huge_corrections_keep_their_relative_accuracy(scale):
    item = make(0, 20, 15, 5, 2.0, dtype=torch.float32)
    scaled = LowRank(item.lora_A * scale, item.lora_B * scale, 2.0)
    cut = scaled.truncate(3)
    assert cut.rank == 3 and cut.lora_A.dtype == torch.float32
    close(dense(cut), best(dense(scaled), 3)[0], 5e-7)


@pytest.mark.parametrize(
    ("rank", "energy"), [(0, None), (-1, None), (None, 0.0), (None, 1.01), (None, float("nan")), (2, -1.0)]
)
def test_impossible_truncations_are_refused(rank, energy):
    with pytest.raises(ValueError, match=r"use rank >= 1 and 0 < energy <= 1"):
        make(0, 5, 4, 2, 1.0).truncate(rank, energy)


def test_a_huge_weight_is_never_formed():
    """20000 x 20000 in fp64 would be 3.2 GB; nothing larger than a factor of twice the rank may appear."""
    side, rank = 20_000, 8
    item = make(0, side, side, rank, 4.0, dtype=torch.float32)
    other = make(9, side, side, rank, 4.0, dtype=torch.float32)
    with Tensors() as made:
        total = LowRank.concat([item, other.scaled(0.5)])
        cut = total.truncate(rank)
        figures = (cut.norm(), total.norm(), cut.distance(total), float(total.singular_values()[0]), total.inner(cut))
    assert made.largest <= side * rank * 3  # distance joins a cut and its total
    assert cut.shape == (side, side) and cut.rank == rank
    cut_norm, norm, distance, _, inner = figures
    assert cut_norm**2 + distance**2 == pytest.approx(norm**2, rel=1e-6)  # Pythagoras: the cut is a projection
    assert inner == pytest.approx(cut_norm**2, rel=1e-6)
