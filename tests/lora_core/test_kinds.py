"""Every kind of correction: read from a file's tensors and applied, against ComfyUI's own adapters and plain fp64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import peft
import pytest
import torch
from harness.comfyui import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core import kinds
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats, save
from lora_loom.lora_core.files.conversions import converted
from lora_loom.lora_core.files.faults import UnsafeFileError, UnsupportedWeightsError
from lora_loom.lora_core.files.layers import PLAIN, TensorInfo, check_layers
from lora_loom.lora_core.kinds import Difference, DoRA, GLoRA, LoHa, placed
from lora_loom.lora_core.stack.chain import Step, chain
from lora_loom.lora_core.stack.weighted import Weighted, exact_sum
from lora_loom.lora_core.stored import keys_of
from lora_loom.lora_core.weight_sum import write_sum
from torch import Tensor

STRENGTHS = (1.0, 0.35, -0.8)
TIGHT = 1e-6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def changed(tensors: Mapping[str, Tensor], weight: Tensor, strength: float = 1.0, name: str = "x") -> Tensor:
    """The weight as our reader and kinds change it."""
    adapter = formats.decode(tensors)
    assert name in adapter.layers or name in adapter.others
    return applied(chain([Weighted("x", adapter, strength, strength)])[name], weight)


def applied(steps: list[Step], weight: Tensor) -> Tensor:
    for change, strength in steps:
        plain = isinstance(change, tuple)
        weight = write_sum(weight, change, weight.clone()) if plain else change.apply_to(weight, strength)
    return weight


def in_comfy(tensors: Mapping[str, Tensor], weight: Tensor, strength: float = 1.0) -> Tensor:
    """The same in ComfyUI, whose adapters log errors and go on: a weight that did not change is a failure here."""
    import comfy.lora

    patches = comfy.lora.load_lora(dict(tensors), {"x": "x.weight"}, log_missing=False)
    patch = [(strength, patches["x.weight"], 1.0, None, None)]
    made = comfy.lora.calculate_weight(patch, weight.clone(), "x.weight")
    assert not torch.equal(made, weight), "ComfyUI applied nothing"
    return made


def close(left: Tensor, right: Tensor, base: Tensor, tolerance: float = TIGHT) -> bool:
    """To a share of the change, not of the weight, so that a wrong scale shows; the share allows for fp32 sums."""
    assert left.shape == right.shape and left.dtype == right.dtype
    change = max(float((right - base).norm()), float(right.norm()) * 0.1)
    return float((left - right).norm()) <= tolerance * change


def lora(out: int, columns: int, kernel: tuple[int, ...] = (), rank: int = 4) -> dict[str, Tensor]:
    up, down = randn(out, rank, *(1 for _ in kernel), seed=1), randn(rank, columns, *kernel, seed=2)
    return {"x.lora_up.weight": up * 0.3, "x.lora_down.weight": down * 0.3, "x.alpha": torch.tensor(2.5)}


# ---- every kind against ComfyUI --------------------------------------------------------------------------------------


def loha(*shape: int, tucker: bool = False, flat: bool = False) -> dict[str, Tensor]:
    out, columns, *kernel = shape
    if tucker:
        factors = {"w1_a": (3, out), "w1_b": (3, columns), "w2_a": (3, out), "w2_b": (3, columns)}
        factors |= {"t1": (3, 3, *kernel), "t2": (3, 3, *kernel)}
    else:
        wide = columns * torch.Size(kernel).numel()
        factors = {"w1_a": (out, 3), "w1_b": (3, wide), "w2_a": (out, 3), "w2_b": (3, wide)}
    return filled({f"hada_{part}": size for part, size in factors.items()}, 3.5)


def lokr(w1: str, w2: str, *shape: int) -> dict[str, Tensor]:
    """`w1` and `w2` are whole, pair or tucker; a 4 x 2 of blocks."""
    out, columns, *kernel = shape
    sides = {"w1": {"whole": {"": (4, 2)}, "pair": {"_a": (4, 2), "_b": (2, 2)}}}
    inner = (out // 4, columns // 2)
    flat = inner[1] * torch.Size(kernel).numel()
    sides["w2"] = {"whole": {"": (*inner, *kernel)}, "pair": {"_a": (inner[0], 3), "_b": (3, flat)},
                   "tucker": {"_a": (3, inner[0]), "_b": (3, inner[1])}}  # fmt: skip
    parts = {f"lokr_{side}{part}": size for side, which in (("w1", w1), ("w2", w2))
             for part, size in sides[side][which].items()}  # fmt: skip
    return filled(parts | ({"lokr_t2": (3, 3, *kernel)} if w2 == "tucker" else {}), 1.5)


def glora(*shape: int, early: bool = False, rank: int = 3) -> dict[str, Tensor]:
    out, columns, *kernel = shape
    wide = columns * torch.Size(kernel).numel()
    one = tuple(1 for _ in kernel)
    sizes = {"a1": (columns, rank, *one), "a2": (rank, columns, *one), "b1": (out, rank, *one),
             "b2": (rank, columns, *kernel)}  # fmt: skip
    if early:
        sizes = {"a2": (wide, rank), "a1": (rank, wide), "b2": (out, rank), "b1": (rank, wide)}
    return filled({f"{part}.weight": size for part, size in sizes.items()}, 1.5)


def oft(rows: int, size: int, alpha: float | None = None, rescale: bool = False) -> dict[str, Tensor]:
    tensors = filled({"oft_blocks": (rows // size, size, size)}, alpha)
    return tensors | ({"x.rescale": torch.full((rows, 1), 1.1)} if rescale else {})


def boft(rows: int, size: int, stages: int, alpha: float = 0.0, kernel: int = 0) -> dict[str, Tensor]:
    tensors = filled({"oft_blocks": (stages, rows // size, size, size)}, alpha)
    ones = (1,) * (1 + kernel)
    return tensors | {"x.rescale": 1 + 0.1 * randn(rows, *ones, seed=8)}


def filled(sizes: Mapping[str, tuple[int, ...]], alpha: float | None) -> dict[str, Tensor]:
    tensors = {f"x.{part}": randn(*size, seed=seed) * 0.4 for seed, (part, size) in enumerate(sizes.items())}
    return tensors if alpha is None else {**tensors, "x.alpha": torch.tensor(alpha)}


LINEAR, CONV, CONV3D = (24, 16), (24, 16, 3, 3), (24, 16, 1, 3, 3)
KINDS = {
    "LoHa": (loha(*LINEAR), LINEAR),
    "LoHa conv": (loha(*CONV), CONV),
    "LoHa tucker": (loha(*CONV, tucker=True), CONV),
    **{f"LoKr {a} {b}": (lokr(a, b, *LINEAR), LINEAR) for a in ("whole", "pair") for b in ("whole", "pair")},
    **{f"LoKr {a} {b} conv": (lokr(a, b, *CONV), CONV) for a in ("whole", "pair") for b in ("whole", "pair", "tucker")},
    "LoKr pair on conv3d": (lokr("whole", "pair", *CONV3D), CONV3D),
    "LoKr of rank 1": (filled({"lokr_w1": (1, 1), "lokr_w2_a": (24, 1), "lokr_w2_b": (1, 16)}, 0.7), LINEAR),
    "GLoRA": (glora(*LINEAR), LINEAR),
    "GLoRA square": (glora(16, 16), (16, 16)),
    "GLoRA conv": (glora(*CONV), CONV),
    "GLoRA 1x1": (glora(24, 16, 1, 1), (24, 16, 1, 1)),
    "GLoRA early": (glora(*LINEAR, early=True), LINEAR),
    "GLoRA early square": (glora(16, 16, early=True), (16, 16)),
    "GLoRA early conv": (glora(*CONV, early=True), CONV),
    "GLoRA all square": (glora(8, 8, rank=8), (8, 8)),
    "OFT": (oft(24, 6), LINEAR),
    "OFT conv": (oft(24, 4, 0.0), CONV),
    "OFT limited": (oft(24, 6, 1.5), LINEAR),
    "OFT not limited": (oft(24, 6, 50.0), LINEAR),
    "OFT rescaled": (oft(24, 6, rescale=True), LINEAR),
    "BOFT": (boft(24, 6, 3), LINEAR),
    "BOFT of one stage": (boft(24, 2, 1), LINEAR),
    "BOFT conv": (boft(32, 4, 3, kernel=2), (32, 8, 3, 3)),
    "BOFT limited": (boft(24, 6, 2, 0.9), LINEAR),
    "difference": (filled({"diff": CONV}, 3.0), CONV),
    "norm": (filled({"w_norm": (24,)}, None), (24,)),
    "replacement": (filled({"set_weight": LINEAR}, None), LINEAR),
}


def test_every_kind_is_compared_with_comfyuis() -> None:
    compared = {type(items[0]) for tensors, _ in KINDS.values() for items in formats.decode(tensors).others.values()}
    assert {kind.__name__ for kind in kinds.KINDS} - {kind.__name__ for kind in compared} == set()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_has_names_in_hashes(kind) -> None:
    assert keys_of(kind)


def test_a_help_page_names_every_kind() -> None:
    pages = (ROOT / "web" / "docs" / node / "en.md" for node in ("LoraLoom_LoadLoraStack", "LoraLoom_ConvertLora"))
    told = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert [kind.kind for kind in kinds.KINDS if kind.kind not in told] == []


def test_no_part_is_of_two_kinds() -> None:
    """The reader goes by them, and the last kind would take the part of the first."""
    counts = Counter([*PLAIN, *(part for kind in kinds.KINDS for part in kind.PARTS)])
    assert [part for part, count in counts.items() if count > 1] == []


TAKE_DORA = ("LoHa", "LoHa conv", "LoHa tucker", "LoKr pair pair", "LoKr whole pair conv", "GLoRA", "GLoRA early conv")
IN_COMFY = [kind for kind in KINDS if "tucker" not in kind or "LoHa" in kind]  # of LoKr it logs an error of torch.kron


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("kind", IN_COMFY)
def test_every_kind_is_what_comfyui_applies(kind: str, strength: float):
    tensors, shape = KINDS[kind]
    weight = randn(*shape, seed=11)
    assert close(changed(tensors, weight, strength), in_comfy(tensors, weight, strength), weight)


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("kind", [kind for kind in IN_COMFY if "x.alpha" in KINDS[kind][0] and "BOFT" not in kind])
def test_every_kind_without_alpha(kind: str):
    tensors, shape = KINDS[kind]
    tensors = {name: tensor for name, tensor in tensors.items() if name != "x.alpha"}
    weight = randn(*shape, seed=11)
    assert close(changed(tensors, weight, 0.6), in_comfy(tensors, weight, 0.6), weight)


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["LoHa tucker", "LoKr pair pair", "GLoRA", "OFT", "BOFT", "difference"])
def test_every_kind_from_files_of_16_bits(kind: str, dtype: torch.dtype):
    tensors, shape = KINDS[kind]
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    weight = randn(*shape, seed=11)
    assert close(changed(tensors, weight, 0.6), in_comfy(tensors, weight, 0.6), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_fp64(kind: str):
    """fp32 arithmetic is the rounded fp64 one; a weight of 16 bits is computed in fp32 and rounded once."""
    tensors, shape = KINDS[kind]
    weight = randn(*shape, seed=11)
    wide = changed({name: tensor.double() for name, tensor in tensors.items()}, weight.double(), 0.6)
    assert close(changed(tensors, weight, 0.6).double(), wide, weight.double())
    half = changed(tensors, weight.bfloat16(), 0.6)
    assert torch.equal(half, changed(tensors, weight.bfloat16().float(), 0.6).bfloat16())


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("axis", [0, 1], ids=["per row", "per column"])
@pytest.mark.parametrize("kind", TAKE_DORA)
def test_dora_on_every_kind_that_takes_it(kind: str, axis: int):
    tensors, shape = KINDS[kind]
    tensors = {**tensors, "x.dora_scale": dora_scale(shape, axis)}
    weight = randn(*shape, seed=11)
    assert close(changed(tensors, weight, 0.6), in_comfy(tensors, weight, 0.6), weight)


def test_rotations_are_orthogonal_and_strength_0_is_nothing():
    for tensors in (oft(24, 6, 1.5), {k: v for k, v in boft(24, 6, 3).items() if k != "x.rescale"}):
        weight = randn(24, 16).double()
        ((item,),) = formats.decode(tensors).others.values()
        made = item.apply_to(weight)
        torch.testing.assert_close(made.norm(dim=0), weight.norm(dim=0), rtol=1e-12, atol=0)
        assert float((made - weight).norm()) > 0.3 * float(weight.norm())
        assert torch.equal(item.apply_to(weight, 0.0), weight)


@pytest.mark.parametrize("w1", ["whole", "pair"])
def test_kronecker_with_a_core_is_lycoris(w1: str):
    """ComfyUI's own adapter fails on these; the reference is the definition."""
    tensors = lokr(w1, "tucker", *CONV)
    left = tensors["x.lokr_w1"] if w1 == "whole" else tensors["x.lokr_w1_a"] @ tensors["x.lokr_w1_b"]
    right = torch.einsum("ijxy,ic,jd->cdxy", *(tensors[f"x.lokr_{part}"] for part in ("t2", "w2_a", "w2_b")))
    wanted = torch.einsum("ab,cdxy->acbdxy", left, right).reshape(CONV) * 1.5 / 3
    assert close(changed(tensors, torch.zeros(CONV)), wanted, torch.zeros(CONV))


def test_kronecker_of_a_three_dimensional_kernel_is_lycoris():
    """ComfyUI's own adapter unfolds 2-D kernels only; the reference is the definition."""
    tensors = lokr("whole", "whole", *CONV3D)
    w1, w2 = tensors["x.lokr_w1"], tensors["x.lokr_w2"]
    wanted = torch.einsum("ab,cdxyz->acbdxyz", w1, w2).reshape(CONV3D)
    assert close(changed(tensors, torch.zeros(CONV3D)), wanted, torch.zeros(CONV3D))


def test_biases_are_named_after_their_layer():
    tensors = {
        **lora(24, 16),
        "x.diff_b": randn(24),
        "y.w_norm": randn(8),
        "y.b_norm": randn(8),
        "z.bias.diff": randn(4),
    }
    adapter = formats.decode(tensors)
    assert list(adapter.layers) == ["x"] and set(adapter.others) == {"x.bias", "y", "y.bias", "z.bias"}
    assert torch.equal(changed(tensors, torch.zeros(24), 0.5, "x.bias"), tensors["x.diff_b"] * 0.5)
    assert adapter.kinds() == {"LoRA": 1, "full difference": 4}


def test_an_infinite_alpha_means_nothing_to_a_whole_lokr():
    tensors = {**lokr("whole", "whole", *LINEAR), "x.alpha": torch.tensor(float("inf"))}
    assert close(changed(tensors, torch.zeros(LINEAR)), changed(KINDS["LoKr whole whole"][0], torch.zeros(LINEAR)),
                 torch.zeros(LINEAR))  # fmt: skip


BROKEN = {
    "LoHa without a factor": ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2)}, "hada_w2_b is missing"),
    "LoHa ranks": ({"hada_w1_a": (4, 2), "hada_w1_b": (3, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4)}, "disagree"),
    "LoHa sides": ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 5)}, "its sides"),
    "LoHa one core": ({"hada_w1_a": (2, 4), "hada_w1_b": (2, 4), "hada_w2_a": (2, 4), "hada_w2_b": (2, 4),
                       "hada_t1": (2, 2, 3, 3)}, "only one of"),
    "LoHa core": ({"hada_w1_a": (2, 4), "hada_w1_b": (2, 4), "hada_w2_a": (2, 4), "hada_w2_b": (2, 4),
                   "hada_t1": (2, 3, 3, 3), "hada_t2": (2, 2, 3, 3)}, "around"),
    "LoHa of 3 dimensions": ({"hada_w1_a": (4, 2, 1), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4)},
                             "2 dimensions"),
    "LoKr without w2": ({"lokr_w1": (2, 2)}, "lokr_w2 is one matrix or two"),
    "LoKr with both": ({"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (2, 2)}, "lokr_w1 is"),
    "LoKr half a pair": ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 2)}, "lokr_w2 is one matrix or two"),
    "LoKr ranks": ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 2), "lokr_w2_b": (3, 2)}, "disagree"),
    "LoKr core": ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 2), "lokr_w2_b": (3, 2), "lokr_t2": (2, 2, 3, 3)}, "around"),
    "LoKr core of a whole": ({"lokr_w1": (2, 2), "lokr_w2": (2, 2), "lokr_t2": (2, 2, 3, 3)}, "stands between"),
    "LoKr of one dimension": ({"lokr_w1": (2,), "lokr_w2": (2, 2)}, "has shape"),
    "GLoRA without": ({"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (4, 2)}, "b2.weight is missing"),
    "GLoRA ranks": ({"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (4, 3), "b2.weight": (3, 4)}, "disagree"),
    "OFT not square": ({"oft_blocks": (4, 2, 3)}, "has shape"),
    "OFT of two dimensions": ({"oft_blocks": (4, 4)}, "has shape"),
    "OFT rescale": ({"oft_blocks": (4, 2, 2), "rescale": (4, 1)}, "rescale has shape"),
    "OFT of rescale alone": ({"rescale": (4, 1)}, "oft_blocks is missing"),
    "BOFT odd": ({"oft_blocks": (1, 4, 3, 3)}, "do not divide"),
    "BOFT stages": ({"oft_blocks": (4, 4, 2, 2)}, "do not divide"),
    "two differences": ({"diff": (4, 4), "w_norm": (4, 4)}, "change the same values"),
    "two kinds": ({"diff": (4, 4), "oft_blocks": (4, 2, 2)}, "twice, as OFT and full difference"),
    "plain and whole": ({"lora_up.weight": (4, 2), "lora_down.weight": (2, 4), "diff": (4, 4)}, "twice, as LoRA and"),
    "DoRA on OFT": ({"oft_blocks": (4, 2, 2), "dora_scale": (8, 1)}, "no such scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_pieces_that_do_not_belong_together_are_refused_by_shape(name: str):
    shapes, fault = BROKEN[name]
    described = {f"x.{part}": TensorInfo("F32", shape) for part, shape in shapes.items()}
    with pytest.raises(UnsafeFileError, match=fault):
        check_layers("f", described)


@pytest.mark.parametrize("part", ["hada_w2_b", "lokr_w2", "oft_blocks", "diff", "a2.weight", "dora_scale"])
def test_values_that_are_not_finite_are_refused(part: str):
    tensors = {**next(t for t, _ in KINDS.values() if f"x.{part}" in t)} if part != "dora_scale" else lora(24, 16)
    tensors[f"x.{part}"] = torch.full(tensors[f"x.{part}"].shape if part != "dora_scale" else (24, 1), float("nan"))
    with pytest.raises(UnsafeFileError, match=f"NaN or infinite values in 'x.{part}'"):
        formats.decode(tensors)


@pytest.mark.parametrize(
    "kind, alpha", [("LoHa", float("inf")), ("LoKr pair pair", float("nan")), ("GLoRA", 1e9), ("OFT", -1.0)]
)
def test_alphas_of_no_sense_are_refused(kind: str, alpha: float):
    with pytest.raises(UnsafeFileError, match="x.alpha"):
        formats.decode({**KINDS[kind][0], "x.alpha": torch.tensor(alpha)})


def test_factors_of_huge_products_are_judged_by_their_shapes():
    """A Kronecker product of small factors may claim a weight of 10^16 numbers: it fits none, and none is made."""
    tensors = {"x.lokr_w1": torch.ones(10_000, 1), "x.lokr_w2_a": torch.ones(10**4, 1),
               "x.lokr_w2_b": torch.ones(1, 10**4)}  # fmt: skip
    ((item,),) = formats.decode(tensors).others.values()
    assert item.shape == (10**8, 10**4) and not item.fits((24, 16)) and item.num_parameters() == 30_000


SIZES = st.sampled_from([(2, 2)] * 8 + [(1, 2), (2, 1), (2,), (2, 2, 2), (2, 2, 3, 3), (4, 1, 2, 2)])
GROUPS = [
    LoHa.PARTS[:4],
    LoHa.PARTS,
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    GLoRA.PARTS,
    ("oft_blocks", "rescale"),
    ("oft_blocks", "diff"),
    ("diff",),
]
PIECES = st.sampled_from(GROUPS).flatmap(lambda parts: st.fixed_dictionaries(dict.fromkeys(parts, SIZES)))
SCALE = st.none() | st.tuples(
    st.sampled_from(["dora_scale", "lora_magnitude_vector"]), st.sampled_from([(2, 1), (1, 2), (2, 2), (2,), (0,)])
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(pieces=PIECES, scale=SCALE, alpha=st.sampled_from([None, 0.0, 2.0]))
def test_what_the_guard_lets_through_can_be_applied(pieces: dict[str, tuple], scale: tuple | None, alpha: float):
    """Pieces of any shape are refused with a sentence, or they change a weight that they fit."""
    tensors = {f"x.{part}": torch.ones(shape) for part, shape in pieces.items()}
    tensors |= {} if scale is None else {f"x.{scale[0]}": torch.ones(scale[1])}
    tensors |= {} if alpha is None else {"x.alpha": torch.tensor(alpha)}
    try:
        adapter = formats.decode(tensors)
    except (UnsafeFileError, UnsupportedWeightsError):
        return
    for (item,) in adapter.others.values():
        shape = item.shape if len(item.shape) > 1 or isinstance(item, Difference) else (*item.shape, 3)
        if item.fits(shape):
            assert item.apply_to(torch.ones(shape)).shape == shape
        assert not item.fits((shape[0] + 1, *shape[1:]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(kind=st.sampled_from(sorted(KINDS)), strength=st.floats(-2, 2), start=st.integers(0, 5), more=st.integers(0, 5))
def test_rows_of_a_fused_weight(kind: str, strength: float, start: int, more: int):
    """On rows of a taller weight a kind does what it does on them alone, and nothing to the others."""
    tensors, shape = KINDS[kind]
    ((item,),) = formats.decode(tensors).others.values()
    weight = randn(start + shape[0] + more, *shape[1:], seed=3)
    whole = placed(item, (start, shape[0]), len(weight))
    assert whole.fits(tuple(weight.shape)) and not whole.fits((start + shape[0] - 1, *shape[1:]))
    made, rows = whole.apply_to(weight, strength), slice(start, start + shape[0])
    assert torch.equal(made[rows], item.apply_to(weight[rows], strength))
    assert torch.equal(made[:start], weight[:start]) and torch.equal(made[rows.stop :], weight[rows.stop :])


def test_rows_in_another_order():
    """The halves of a modulation are the other way round in diffusers than in ComfyUI."""
    swap = lambda tensor: torch.cat(tensor.chunk(2)[::-1])  # noqa: E731
    for kind in ("LoHa", "OFT", "difference"):
        tensors, shape = KINDS[kind]
        ((item,),) = formats.decode(tensors).others.values()
        weight = randn(*shape, seed=3)
        assert torch.equal(placed(item, None, shape[0], swap).apply_to(swap(weight)), swap(item.apply_to(weight)))


# ---- files that ComfyUI renames, and weights it makes larger ---------------------------------------------------------


def control() -> dict[str, Tensor]:
    """As Black Forest Labs' control LoRAs are spelled: a wider input, biases, and norms that are replaced."""
    shapes = {"img_in.lora_A.weight": (4, 16), "img_in.lora_B.weight": (24, 4), "img_in.lora_B.bias": (24,),
              "single_blocks.0.linear1.lora_A.weight": (4, 24), "single_blocks.0.linear1.lora_B.weight": (48, 4),
              "single_blocks.0.norm.key_norm.scale": (8,)}  # fmt: skip
    return {name: randn(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def uso() -> dict[str, Tensor]:
    parts = ("double_blocks.18.processor.qkv_lora1", "double_blocks.18.processor.qkv_lora2",
             "double_blocks.18.processor.proj_lora1", "double_blocks.18.processor.proj_lora2",
             "single_blocks.37.processor.qkv_lora", "single_blocks.37.processor.proj_lora")  # fmt: skip
    return {
        f"{part}.{side}.weight": randn(*shape) for part in parts for side, shape in (("up", (8, 2)), ("down", (2, 8)))
    }


def fun() -> dict[str, Tensor]:
    name = "lora_unet__blocks_0_cross_attn_k"
    return {
        f"{name}.lora_down.weight": randn(2, 8),
        f"{name}.lora_up.weight": randn(8, 2),
        f"{name}.alpha": torch.ones(()),
    }


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize(
    "tensors", [control(), uso(), fun(), lora(8, 8)], ids=["control", "USO", "Wan Fun", "as it is"]
)
def test_files_are_renamed_as_comfyui_renames_them(tensors: dict[str, Tensor], tmp_path: Path):
    from comfy.lora_convert import convert_lora

    wanted = convert_lora(dict(tensors))
    made = converted("f", tensors, torch.tensor)
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in made)
    save.save(tmp_path / "f.safetensors", tensors)
    read, decoded = formats.read(tmp_path / "f.safetensors"), formats.decode(tensors)
    assert read.kinds() == decoded.kinds() and set(read.layers) == set(decoded.layers)
    suffixes = (".lora_up.weight", ".lora_B.weight")
    pairs = {name.removesuffix(end) for name in wanted for end in suffixes if name.endswith(end)}
    assert (
        set(read.layers) | {name for name, (item, *_) in read.others.items() if item.kind == "widening LoRA"} == pairs
    )


def test_two_tensors_that_would_get_one_name_are_refused():
    tensors = {**fun(), "lora_unet_blocks_0_cross_attn_k.alpha": torch.ones(())}
    with pytest.raises(UnsafeFileError, match="same meaning"):
        formats.decode(tensors)


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("old, new", [((24, 8), (24, 16)), ((20, 16), (24, 16)), ((24, 16), (24, 16)),
                                      ((24, 8, 3, 3), (24, 16, 3, 3))])  # fmt: skip
def test_a_weight_is_made_larger_as_in_comfyui(old: tuple, new: tuple, strength: float):
    tensors = {**lora(new[0], new[1], new[2:]), "x.reshape_weight": torch.tensor(new)}
    weight = randn(*old)
    ((item,),) = formats.decode(tensors).others.values()
    padded = torch.zeros(new)
    padded[tuple(slice(0, size) for size in old)] = weight
    assert item.fits(old) and item.new_shape == new and not item.fits((new[0] + 1, *old[1:]))
    assert close(changed(tensors, weight, strength), in_comfy(tensors, weight, strength), padded)


@pytest.mark.parametrize("values, fault", [
    (torch.tensor([24, 17]), "its factors make"), (torch.tensor([16, 24]), "its factors make"),
    (torch.tensor([-24, -16]), "its factors make"), (torch.tensor([24.0, 16.0]), "F32"),
    (torch.tensor([[24, 16]]), "shape of a weight"), (torch.tensor([24]), "shape of a weight"),
])  # fmt: skip
def test_new_shapes_of_no_sense_are_refused(values: Tensor, fault: str):
    with pytest.raises(UnsafeFileError, match=fault):
        formats.decode({**lora(24, 16), "x.reshape_weight": values})


def test_a_new_shape_goes_with_a_plain_lora_only():
    for tensors in (KINDS["LoHa"][0], {**lora(24, 16), "x.dora_scale": torch.ones(24, 1)}):
        with pytest.raises(UnsafeFileError, match="not plain LoRA"):
            formats.decode({**tensors, "x.reshape_weight": torch.tensor([24, 16])})
    with pytest.raises(UnsafeFileError, match="without the factors"):
        formats.decode({"x.reshape_weight": torch.tensor([24, 16])})


# ---- DoRA ------------------------------------------------------------------------------------------------------------


UPDATES = {
    "LoRA": lambda shape: lora(shape[0], shape[1], shape[2:]),
    "LoKr": lambda shape: {"x.lokr_w1": randn(4, 2), "x.lokr_w2": randn(shape[0] // 4, shape[1] // 2, *shape[2:])},
}
SHAPES = {"linear": (24, 16), "square": (16, 16), "conv": (12, 8, 3, 3), "conv1x1": (12, 8, 1, 1)}


def dora_scale(shape: tuple[int, ...], axis: int) -> Tensor:
    size = [count if index == axis else 1 for index, count in enumerate(shape)]
    return randn(*size, seed=5).abs() + 0.5


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("axis", [0, 1], ids=["per row", "per column"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dora_is_what_comfyui_applies(shape: tuple[int, ...], axis: int, strength: float):
    tensors = {**lora(shape[0], shape[1], shape[2:]), "x.dora_scale": dora_scale(shape, axis)}
    weight = randn(*shape)
    assert close(changed(tensors, weight, strength), in_comfy(tensors, weight, strength), weight)


def test_dora_of_the_paper_in_fp64():
    """Magnitudes per column of W + delta_W: the columns of the result have exactly those norms."""
    shape = (24, 16)
    tensors = {name: tensor.double() for name, tensor in lora(*shape).items()}
    tensors["x.dora_scale"] = dora_scale(shape, 1).double()
    made = changed(tensors, randn(*shape).double())
    torch.testing.assert_close(made.norm(dim=0), tensors["x.dora_scale"][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["LoRA", "LoKr"])
@pytest.mark.parametrize("shape, axis", [((24, 16), 0), ((16, 24), 1), ((16, 16), 1), ((12, 8, 3, 3), 0)])
def test_a_flat_scale_is_of_the_side_that_is_as_long(shape: tuple[int, ...], axis: int, kind: str):
    """Rows or columns of the result have exactly those norms; of a square weight the columns."""
    tensors = {name: tensor.double() for name, tensor in UPDATES[kind](shape).items()}
    tensors["x.dora_scale"] = dora_scale(shape, axis).flatten().double()
    weight = randn(*shape).double()
    plain = changed({name: tensor for name, tensor in tensors.items() if "dora" not in name}, weight)
    others = [index for index in range(len(shape)) if index != axis]
    wanted = plain / torch.linalg.vector_norm(plain, dim=others, keepdim=True) * dora_scale(shape, axis).double()
    made = changed(tensors, weight)
    torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-9)
    norms = torch.linalg.vector_norm(made, dim=others)
    torch.testing.assert_close(norms, tensors["x.dora_scale"], rtol=1e-6, atol=0)


@pytest.mark.usefixtures("comfyui")
def test_a_flat_scale_per_column_is_what_comfyui_applies():
    tensors = {**lora(24, 16), "x.dora_scale": dora_scale((24, 16), 1).flatten()}
    weight = randn(24, 16)
    assert close(changed(tensors, weight), in_comfy(tensors, weight), weight)


def test_a_flat_scale_that_is_as_long_as_no_side_does_not_fit():
    (dora,) = formats.decode({**lora(24, 16), "x.dora_scale": torch.ones(20)}).others["x"]
    assert not dora.fits((24, 16)) and not dora.fits((20, 16))


@pytest.mark.parametrize("key", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_dora_of_peft(key: str):
    """Magnitudes per row of W + delta_W; the reference is PEFT's own layer, merged."""
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False)).requires_grad_(False)
    weight = linear[0].weight.clone()
    model = peft.get_peft_model(linear, peft.LoraConfig(r=4, lora_alpha=2.5, target_modules=["0"], use_dora=True))
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        layer.lora_magnitude_vector["default"].weight.mul_(torch.linspace(0.5, 2, 24))
    held = {"lora_B.weight": layer.lora_B["default"], "lora_A.weight": layer.lora_A["default"]}
    tensors = {f"x.{part}": of.weight.detach().clone() for part, of in held.items()} | {"x.alpha": torch.tensor(2.5)}
    tensors[f"x.{key}"] = layer.lora_magnitude_vector["default"].weight.detach().clone()
    merged = model.merge_and_unload()[0].weight
    assert close(changed(tensors, weight), merged.detach(), weight)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_kinds_of_peft(kind: str, conv: bool):
    """Compare what is read of PEFT's own names with PEFT's own dense correction."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 24, 3) if conv else torch.nn.Linear(16, 24)
    config = {"LoHa": peft.LoHaConfig, "LoKr": peft.LoKrConfig}[kind](r=2, alpha=3, target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(layer), config)
    held = {
        name: randn(*tensor.shape, seed=len(name)) for name, tensor in peft.get_peft_model_state_dict(model).items()
    }
    peft.set_peft_model_state_dict(model, held)
    wanted = model.base_model.model[0].get_delta_weight("default").detach().reshape(layer.weight.shape)
    tensors = {name.replace("base_model.model.0.", "x."): tensor for name, tensor in held.items()}
    made = changed({**tensors, "x.alpha": torch.tensor(3.0)}, torch.zeros_like(wanted))
    assert close(made, wanted, torch.zeros_like(wanted))


@pytest.mark.parametrize("name, shape, fault", [
    ("dora_scale", (24, 16), "not one number per row or column"),
    ("dora_scale", (2, 1, 3), "not one number per row or column"),
    ("dora_scale", (0,), "data|dimensions"),
])  # fmt: skip
def test_scales_of_no_shape_are_refused(name: str, shape: tuple[int, ...], fault: str):
    with pytest.raises(UnsafeFileError, match=fault):
        formats.decode({**lora(24, 16), f"x.{name}": torch.ones(shape)})


def test_a_scale_alone_or_twice_is_refused():
    with pytest.raises(UnsafeFileError, match="without the factors"):
        formats.decode({"x.dora_scale": torch.ones(24, 1)})
    with pytest.raises(UnsafeFileError, match="same factor"):
        formats.decode({**lora(24, 16), "x.dora_scale": torch.ones(24, 1), "x.lora_magnitude_vector": torch.ones(24)})


def test_a_scale_of_another_weight_does_not_fit():
    (dora,) = formats.decode({**lora(24, 16), "x.dora_scale": torch.ones(20, 1)}).others["x"]
    assert isinstance(dora, DoRA) and not dora.fits((24, 16))
    assert DoRA(dora.update, torch.ones(24)).fits((24, 16))


# ---- several on one weight -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("comfyui")
def test_plain_loras_are_summed_up_to_the_next_kind_that_depends_on_the_weight():
    plain, dora = lora(24, 16), {**lora(24, 16), "x.dora_scale": dora_scale((24, 16), 1)}
    rows = [(plain, 0.5), (plain, -0.2), (dora, 0.7), (plain, 1.0), (plain, 0.0)]
    steps = chain([Weighted("", formats.decode(tensors), strength, 0.0) for tensors, strength in rows])["x"]
    assert [type(step.change) for step in steps] == [tuple, DoRA, tuple]
    weight = randn(24, 16)
    wanted = weight
    for tensors, strength in rows[:-1]:
        wanted = in_comfy(tensors, wanted, strength)
    assert close(applied(steps, weight), wanted, weight)


def test_an_exact_sum_never_drops_other_kinds():
    dora = formats.decode({**lora(24, 16), "x.dora_scale": dora_scale((24, 16), 0)})
    with pytest.raises(ValueError, match="DoRA"):
        exact_sum([Weighted("mine", dora, 1.0, 1.0)])


def test_an_adapter_counts_and_moves_all_it_holds():
    dora = formats.decode({**lora(24, 16), "x.dora_scale": dora_scale((24, 16), 0)})
    assert dora.kinds() == {"DoRA": 1} and dora.num_parameters() == 4 * 40 + 24
    (moved,) = (item.to(torch.float64) for item in dora.others["x"])
    assert {tensor.dtype for tensor in moved.tensors()} == {torch.float64} and len(moved.tensors()) == 3
    assert Adapter({}).kinds() == {}
    with pytest.raises(ValueError, match="not scaled"):
        dora.scaled(0.5)
