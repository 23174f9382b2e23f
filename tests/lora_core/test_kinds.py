"""Every kind of correction: read from a file's tensors and applied, against ComfyUI's own adapters and plain fp64."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.lora
import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.faults import UnsafeFileError
from lora_loom.lora_core.kinds import DoRA
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.chain import Step, chain
from lora_loom.lora_core.merging.exact_sum import Weighted, exact_sum
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
        plain = isinstance(change, LowRank)
        weight = change.add_to_(weight.clone(), strength) if plain else change.apply_to(weight, strength)
    return weight


def in_comfy(tensors: Mapping[str, Tensor], weight: Tensor, strength: float = 1.0) -> Tensor:
    """The same in ComfyUI, whose adapters log errors and go on: a weight that did not change is a failure here."""
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


# ---- DoRA ------------------------------------------------------------------------------------------------------------


SHAPES = {"linear": (24, 16), "square": (16, 16), "conv": (12, 8, 3, 3), "conv1x1": (12, 8, 1, 1)}


def dora_scale(shape: tuple[int, ...], axis: int) -> Tensor:
    size = [count if index == axis else 1 for index, count in enumerate(shape)]
    return randn(*size, seed=5).abs() + 0.5


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


@pytest.mark.parametrize("key", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_dora_of_peft(key: str):
    """Magnitudes per row of W + delta_W; the reference is PEFT's own layer, merged."""
    peft = pytest.importorskip("peft")
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


def test_plain_loras_are_summed_up_to_the_next_kind_that_depends_on_the_weight():
    plain, dora = lora(24, 16), {**lora(24, 16), "x.dora_scale": dora_scale((24, 16), 1)}
    rows = [(plain, 0.5), (plain, -0.2), (dora, 0.7), (plain, 1.0), (plain, 0.0)]
    steps = chain([Weighted("", formats.decode(tensors), strength, 0.0) for tensors, strength in rows])["x"]
    assert [type(step.change) for step in steps] == [LowRank, DoRA, LowRank]
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
