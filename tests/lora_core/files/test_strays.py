"""Tensors beside a file's layers are left out and named; those that have a meaning there are applied."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from lora_loom.lora_core.files import formats, guard, strays
from lora_loom.lora_core.files.faults import UnsafeFileError, UnsupportedWeightsError
from lora_loom.lora_core.kinds import Difference
from lora_loom.lora_core.low_rank import LowRank
from safetensors.torch import save_file
from torch import Tensor, nn

GENERATOR = torch.Generator().manual_seed(7)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


LAYER = {"x.lora_up.weight": randn(24, 4), "x.lora_down.weight": randn(4, 16), "x.alpha": torch.tensor(2.0)}
STRAYS = {
    "bundle_emb.../../w.clip_l": (randn(2, 8), "embedding for prompts"),
    "bundle_emb.w.string_to_param.*": (torch.full((2, 8), float("nan")), "embedding for prompts"),
    "emb_params": (randn(1, 8), "embedding for prompts"),
    "text_encoder.lora_embedding_A": (randn(4, 8), "LoRA of an embedding table"),
    "y.oft_R.weight": (randn(2, 2), "PEFT's OFT"),
    "diffusion_model.blocks.0.diff_m": (randn(1, 6, 8), "change of a modulation"),
    "step": (torch.tensor(100), "counter"),
    "x.num_batches_tracked": (torch.tensor(3, dtype=torch.int8), "counter"),
    "text_model.embeddings.position_ids": (torch.arange(77), "position numbers"),
    "x.bias_indices": (torch.ones(2, 3, dtype=torch.int16), "sparse bias of LyCORIS"),
    "y.alpha": (torch.tensor(float("nan")), "strength without its layer"),
    "y.scalar": (torch.ones(2, 2), "strength without its layer"),
    "y.lora_B.bias": (randn(5), "bias of a factor"),
    "x.lora_A.bias": (randn(4), "bias of a factor"),
    "conv_in.modules_to_save.weight": (randn(3, 3), "whole weight"),
    "on": (torch.tensor(True), "unknown"),
    "nobody.knows": (torch.full((2,), float("inf")).to(torch.float8_e5m2), "unknown"),
}


@pytest.mark.parametrize("name", STRAYS)
def test_the_rest_is_read_and_the_stray_named(name: str, tmp_path: Path) -> None:
    """From a file and from memory, and the layer is as it is without it."""
    tensor, what = STRAYS[name]
    save_file({**LAYER, name: tensor}, path := tmp_path / "a.safetensors")
    for adapter in (formats.read(path), formats.read(path, mapped=False), formats.decode({**LAYER, name: tensor})):
        assert adapter.left_out == (name,) and list(adapter.layers) == ["x"] and not adapter.others
        assert torch.equal(adapter.layers["x"].delta_weight(), formats.decode(LAYER).layers["x"].delta_weight())
        assert strays.left_out_note(adapter.left_out) == f"1 tensor besides the layers not used: {what} ({name!r})"


def test_many_are_counted_and_the_first_named() -> None:
    names = [*(f"bundle_emb.{number}" for number in range(5)), "step"]
    said = strays.left_out_note(names)
    assert said.startswith(
        "6 tensors besides the layers not used: embedding for prompts ('bundle_emb.0', 'bundle_emb.1'"
    )
    assert said.endswith(" and 3 more), counter ('step')")


def test_nothing_is_left_out_of_what_is_all_layers() -> None:
    assert formats.decode(LAYER).left_out == ()


@pytest.mark.parametrize("name", STRAYS)
def test_a_file_of_nothing_else_is_refused(name: str, tmp_path: Path) -> None:
    save_file({name: STRAYS[name][0]}, path := tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedWeightsError, match="'a.safetensors' contains no LoRA that can be read; 1 tensor"):
        formats.read(path)


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"x.lora_up.weight": None}, "without the up factor"),
        ({"x.lora_down.weight": None}, "without the down factor"),
        ({"x.lora_down.weight": randn(3, 16)}, "factors of different ranks"),
        ({"x.lora_B.bias": randn(23)}, "23 numbers on a layer of 24 rows"),
        ({"x.lora_B.bias": torch.ones(24, dtype=torch.int32)}, "stores the factor"),
        ({"x.scalar": torch.ones(2)}, "not one number"),
        ({"x.scalar": torch.tensor(float("nan"))}, "'x.scalar' to nan"),
        ({"x.scalar": torch.tensor(1e6)}, "'x.scalar' to 1000000.0"),
    ],
)
def test_a_broken_layer_is_refused_and_not_left_out(change: dict[str, Tensor | None], fault: str) -> None:
    tensors = {name: tensor for name, tensor in ({**LAYER, **change}).items() if tensor is not None}
    with pytest.raises(UnsafeFileError, match=fault):
        formats.decode({**tensors, "z.lora_up.weight": randn(8, 2), "z.lora_down.weight": randn(2, 8)})


@pytest.mark.parametrize(
    "name",
    ["x.lora_up.scale_weight", "x.lora_down.weight.absmax", "x.lora_E", "x.lora_AB.weight", "x.oft_R.weight"],
)
def test_a_piece_that_makes_something_else_of_the_factors_is_refused(name: str) -> None:
    """Scales of quantised factors, AdaLoRA's singular values, a matrix in the middle."""
    with pytest.raises(UnsupportedWeightsError, match="has an unknown part 'x.* of the layer 'x', without which"):
        formats.decode({**LAYER, name: torch.ones(4)})
    assert formats.decode({**LAYER, name.replace("x.", "y."): torch.ones(4)}).left_out == (name.replace("x.", "y."),)


# ---- LyCORIS' use_scalar ---------------------------------------------------------------------------------------------

KINDS = {
    "LoRA": LAYER,
    "LoHa": {"x.hada_w1_a": randn(24, 3), "x.hada_w1_b": randn(3, 16), "x.hada_w2_a": randn(24, 3),
             "x.hada_w2_b": randn(3, 16), "x.alpha": torch.tensor(2.0)},
    "LoKr": {"x.lokr_w1": randn(4, 4), "x.lokr_w2": randn(6, 4)},
    "GLoRA": {"x.a1.weight": randn(16, 3), "x.a2.weight": randn(3, 16), "x.b1.weight": randn(24, 3),
              "x.b2.weight": randn(3, 16)},
}  # fmt: skip


def change_of(tensors: dict[str, Tensor]) -> Tensor:
    adapter = formats.decode(tensors)
    assert adapter.left_out == ()
    weight = torch.linspace(-1, 1, 24 * 16).reshape(24, 16)
    if "x" in adapter.layers:
        return adapter.layers["x"].delta_weight()
    return adapter.others["x"][0].difference(weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scalar", [torch.tensor(0.3), torch.tensor([-1.5]), torch.tensor(0.0), torch.tensor(2)])
def test_a_scalar_multiplies_the_change(kind: str, scalar: Tensor) -> None:
    """As in the forward pass of LyCORIS' modules: `make_weight() * scalar * scale`."""
    wanted = float(scalar) * change_of(KINDS[kind])
    torch.testing.assert_close(change_of({**KINDS[kind], "x.scalar": scalar}), wanted, rtol=1e-6, atol=1e-6)


def test_a_scalar_inside_dora_and_of_kinds_that_have_none() -> None:
    scale = {"x.dora_scale": torch.ones(24, 1)}
    (dora,) = formats.decode({**LAYER, **scale, "x.scalar": torch.tensor(0.5)}).others["x"]
    assert dora.update.alpha == 1.0
    adapter = formats.decode({"x.diff": randn(24, 16), "x.scalar": torch.tensor(0.5)})
    assert adapter.left_out == ("x.scalar",) and isinstance(adapter.others["x"][0], Difference)


# ---- PEFT's lora_bias ------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.c = nn.Linear(16, 24), nn.Conv2d(3, 5, 3)

    def forward(self, rows: Tensor, image: Tensor) -> Tensor:
        return self.x(rows).sum() + self.c(image).sum()


@pytest.mark.parametrize("rslora", [False, True])
def test_a_bias_of_peft_is_applied_as_peft_does(tmp_path: Path, rslora: bool) -> None:
    torch.manual_seed(3)
    net, config = (
        Net(),
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=["x", "c"], lora_bias=True, use_rslora=rslora),
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = peft.get_peft_model(net, config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(value, std=0.2)
    tensors = {name: tensor.contiguous() for name, tensor in peft.get_peft_model_state_dict(model).items()}
    scaling = 6 / (2 if rslora else 4)
    tensors |= {f"base_model.model.{name}.alpha": torch.tensor(4 * scaling) for name in "xc"}
    merged = model.merge_and_unload().state_dict()
    adapter = formats.decode(tensors)
    assert adapter.left_out == () and set(adapter.others) == {"base_model.model.x.bias", "base_model.model.c.bias"}
    for name in "xc":
        layer, (bias,) = adapter.layers[f"base_model.model.{name}"], adapter.others[f"base_model.model.{name}.bias"]
        for part, change in (("weight", layer.delta_weight()), ("bias", bias.values)):
            wanted = merged[f"{name}.{part}"] - before[f"{name}.{part}"]
            assert wanted.norm() > 0.1
            torch.testing.assert_close(change, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("also", [{"x.dora_scale": torch.ones(24, 1)}, {"x.reshape_weight": torch.tensor([24, 16])}])
def test_a_bias_beside_what_peft_does_not_have_it_with_is_left_out(also: dict[str, Tensor]) -> None:
    assert formats.decode({**LAYER, **also, "x.lora_B.bias": randn(24)}).left_out == ("x.lora_B.bias",)


# ---- alpha 0, types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_0_switches_a_layer_off(kind: str) -> None:
    if kind != "LoKr":  # both of whose matrices are whole, so that alpha means nothing
        assert not change_of({**KINDS[kind], "x.alpha": torch.tensor(0.0)}).any()


def test_what_is_switched_off_can_be_worked_with() -> None:
    """Cut, decomposed, added up and written, and nothing is divided by its strength."""
    (off,) = formats.decode({**LAYER, "x.alpha": torch.tensor(0.0)}).layers.values()
    assert not off.truncate(rank=2, energy=0.9).delta_weight().any() and off.norm() == 0.0
    assert not off.singular_values().any() and off.decompose().error(1) == 0.0
    assert not LowRank.concat([off, off]).delta_weight().any()
    for style in ("native", "kohya", "peft"):
        again = formats.decode(formats.encode(formats.decode({**LAYER, "x.alpha": torch.tensor(0.0)}), style))
        assert not again.layers["x"].delta_weight().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_every_type_of_float_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in LAYER.items()}
    save_file(tensors, path := tmp_path / "a.safetensors")
    layer = formats.read(path).layers["x"]
    wanted = tensors["x.lora_up.weight"].double() @ tensors["x.lora_down.weight"].double() / 2
    torch.testing.assert_close(layer.to(torch.float64).delta_weight(), wanted, rtol=1e-6, atol=1e-6)
    assert layer.lora_A.dtype in (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("value", [1e39, -1e300, 3.41e38])
def test_numbers_that_fp32_does_not_hold_are_named(value: float, tmp_path: Path) -> None:
    wide = {**LAYER, "x.lora_up.weight": LAYER["x.lora_up.weight"].double().index_fill(0, torch.tensor([3]), value)}
    save_file(wide, path := tmp_path / "a.safetensors")
    with pytest.raises(UnsafeFileError, match=r"holds .* in 'x.lora_up.weight', above the 3.4e\+38 of fp32"):
        formats.read(path)
    wide["x.lora_up.weight"].clamp_(-3.4e38, 3.4e38)
    save_file(wide, path)
    assert formats.read(path).layers["x"].lora_B.isfinite().all()


def test_files_too_large_for_any_lora_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(LAYER, path := tmp_path / "a.safetensors")
    monkeypatch.setattr(guard, "MAX_FILE", 500)
    with pytest.raises(UnsafeFileError, match="more than the 500 that any LoRA needs"):
        guard.inspect(path)
