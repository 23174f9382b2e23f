"""We read from a file what ComfyUI, diffusers and PEFT apply of it; they read back what we write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats, save, spelling
from lora_loom.lora_core.files.faults import UnsafeFileError, UnsupportedWeightsError
from lora_loom.lora_core.files.formats import FileLayer
from lora_loom.lora_core.low_rank import LowRank
from torch import Tensor

STYLES = ("native", "kohya", "peft")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(rank: int = 4, out: int = 24, columns: int = 16, alpha: float = 2.0, kernel: tuple = ()) -> LowRank:
    return LowRank(randn(rank, columns, seed=1), randn(out, rank, seed=2), alpha, kernel)


def in_comfy(tensors: dict[str, Tensor], layer: str, shape: tuple[int, ...]) -> Tensor:
    """The delta that ComfyUI itself adds to a zero weight."""
    import comfy.lora

    patches = comfy.lora.load_lora(tensors, {layer: "w.weight"}, log_missing=False)
    zero = torch.zeros(shape)
    comfy.lora.calculate_weight([(1.0, patches["w.weight"], 1.0, None, None)], zero, "w.weight")
    assert zero.abs().sum() > 0, "ComfyUI applied nothing"
    return zero


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    return float((left - right).norm()) <= tolerance * float(right.norm())


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("written", spelling.SPELLINGS, ids=lambda written: written.up)
@pytest.mark.parametrize("alpha", [None, 2.0, 7.0])
def test_every_spelling_means_what_comfyui_makes_of_it(written: spelling.Spelling, alpha: float | None):
    tensors = {"x.to_q" + written.up: randn(24, 4), "x.to_q" + written.down: randn(4, 16)}
    if alpha is not None:
        tensors["x.to_q.alpha"] = torch.tensor(alpha)
    layer = formats.decode(tensors).layers["x.to_q"]
    assert layer.alpha == (4.0 if alpha is None else alpha)
    assert close(layer.delta_weight(), in_comfy(tensors, "x.to_q", (24, 16)))


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("up, down, mid, shape", [
    ((24, 4, 1, 1), (4, 8, 3, 3), None, (24, 8, 3, 3)),
    ((24, 4, 1, 1), (4, 8, 1, 1), None, (24, 8, 1, 1)),
    ((24, 4), (4, 8), None, (24, 8, 1, 1)),
    ((24, 4), (4, 72), None, (24, 8, 3, 3)),
    ((24, 4, 1), (4, 8, 5), None, (24, 8, 5)),
    ((24, 4, 1, 1, 1), (4, 8, 1, 3, 3), None, (24, 8, 1, 3, 3)),
    ((24, 4, 1, 1), (4, 8, 1, 1), (4, 4, 3, 3), (24, 8, 3, 3)),
    ((24, 4), (4, 8, 1, 1), (4, 4, 3, 3), (24, 8, 3, 3)),
])  # fmt: skip
def test_convolutions_as_comfyui_applies_them(up: tuple, down: tuple, mid: tuple | None, shape: tuple):
    tensors = {"c.lora_up.weight": randn(*up), "c.lora_down.weight": randn(*down), "c.alpha": torch.tensor(2.0)}
    if mid:
        tensors["c.lora_mid.weight"] = randn(*mid)
    weight = torch.zeros(shape)
    formats.decode(tensors).layers["c"].add_to_(weight)
    assert close(weight, in_comfy(tensors, "c", shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_dtypes_are_read_exactly(dtype: torch.dtype):
    up, down = randn(24, 4).to(dtype), randn(4, 16).to(dtype)
    layer = formats.decode({"x.lora_B.weight": up, "x.lora_A.weight": down}).layers["x"]
    assert torch.equal(layer.lora_A.float(), down.float()) and torch.equal(layer.lora_B.float(), up.float())
    assert layer.delta_weight().shape == (24, 16)


def test_factors_of_two_dtypes_get_one():
    layer = formats.decode({"x.lora_B.weight": randn(24, 4), "x.lora_A.weight": randn(4, 16).bfloat16()}).layers["x"]
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32


def test_whole_number_alpha_and_parameters_are_read():
    up = torch.nn.Parameter(randn(24, 4))
    layer = formats.decode({"x.lora_up.weight": up, "x.lora_down.weight": randn(4, 16), "x.alpha": torch.tensor(8)})
    assert layer.layers["x"].alpha == 8.0 and not layer.layers["x"].lora_B.requires_grad


def test_an_adapter_of_any_name_is_read_and_two_of_a_layer_are_not():
    """PEFT puts the adapter's name into its keys."""
    tensors = {"x.lora_A.style_1.weight": randn(4, 16), "x.lora_B.style_1.weight": randn(24, 4)}
    (layer,) = formats.decode(tensors).layers.values()
    assert torch.equal(layer.lora_A, tensors["x.lora_A.style_1.weight"]) and layer.alpha == 4.0
    more = {"x.lora_A.other.weight": randn(4, 16), "x.lora_B.other.weight": randn(24, 4)}
    with pytest.raises(UnsafeFileError, match="which is the same factor"):
        formats.decode(tensors | more)


def test_read_keeps_names_order_and_metadata(tmp_path: Path):
    adapter = Adapter({"b.y": linear(), "a.x": linear()})
    path = tmp_path / "x.safetensors"
    save.save(path, formats.encode(adapter, "peft"), {"title": "t"})
    again = formats.read(path)
    assert set(again.layers) == {"a.x", "b.y"} and again.metadata["title"] == "t"
    assert list(formats.read(str(path)).layers) == list(again.layers)


def test_other_weights_are_refused_before_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "oft.safetensors"
    save.save(path, {"x.oft_R.weight": torch.ones(2, 2), "x.alpha": torch.tensor(1.0)})
    monkeypatch.setattr(formats.reader, "tensors_of", None)
    with pytest.raises(UnsupportedWeightsError, match="PEFT's OFT"):
        formats.read(path)


# ---- alpha in diffusers' metadata ------------------------------------------------------------------------------------


def peft_tensors(*names: str, rank: int = 4) -> dict[str, Tensor]:
    return {f"{name}.{part}": randn(*shape) for name in names
            for part, shape in (("lora_B.weight", (24, rank)), ("lora_A.weight", (rank, 16)))}  # fmt: skip


@pytest.mark.parametrize("config, alphas", [
    ({"transformer.r": 4, "transformer.lora_alpha": 16}, (16.0, 16.0)),
    ({"r": 4, "lora_alpha": 16}, (16.0, 16.0)),
    ({"unet.r": 4, "unet.lora_alpha": 16}, (4.0, 4.0)),
    ({"transformer.lora_alpha": 16, "transformer.use_rslora": True}, (32.0, 32.0)),
    ({"transformer.lora_alpha": 16, "transformer.alpha_pattern": {"0.to_q": 2}}, (2.0, 16.0)),
    ({"transformer.lora_alpha": 16, "transformer.alpha_pattern": {"^blocks.0.to_k": 2}}, (16.0, 2.0)),
    ({"transformer.lora_alpha": 16, "transformer.alpha_pattern": {"^0.to_k": 2}}, (16.0, 16.0)),
    ({"transformer.lora_alpha": 16, "transformer.alpha_pattern": None}, (16.0, 16.0)),
    ({}, (4.0, 4.0)),
])  # fmt: skip
def test_alpha_of_diffusers_metadata(config: dict, alphas: tuple[float, float]):
    names = ("transformer.blocks.0.to_q", "transformer.blocks.0.to_k")
    adapter = formats.decode(peft_tensors(*names), {"lora_adapter_metadata": json.dumps(config)})
    assert tuple(adapter.layers[name].alpha for name in names) == alphas


def test_an_alpha_tensor_outranks_the_metadata():
    tensors = {**peft_tensors("x"), "x.alpha": torch.tensor(3.0)}
    assert formats.decode(tensors, {"lora_adapter_metadata": '{"lora_alpha": 16}'}).layers["x"].alpha == 3.0


@pytest.mark.parametrize("text", ["[", "[1]", "[" * 100_000, '{"lora_alpha": "16"}', '{"lora_alpha": true}',
                                  '{"lora_alpha": NaN}', '{"lora_alpha": 1e9}'])  # fmt: skip
def test_broken_diffusers_metadata_is_refused(text: str):
    with pytest.raises(UnsafeFileError):
        formats.decode(peft_tensors("x"), {"lora_adapter_metadata": text})


def test_patterns_from_a_file_are_never_run_as_regular_expressions():
    config = {"lora_alpha": 4, "alpha_pattern": {"(a+)+b": 1}}
    with pytest.raises(UnsupportedWeightsError, match="pattern"):
        formats.decode(peft_tensors("a" * 60), {"lora_adapter_metadata": json.dumps(config)})


# ---- writing ---------------------------------------------------------------------------------------------------------


layers = st.builds(
    lambda rank, out, inner, kernel, scale, dtype: LowRank(
        randn(rank, inner * torch.Size(kernel).numel(), seed=3).to(dtype), randn(out, rank, seed=4).to(dtype),
        float(torch.tensor(scale * rank)), kernel),
    st.integers(1, 5), st.integers(5, 9), st.integers(5, 9), st.sampled_from([(), (1, 1), (3, 3), (5,), (1, 3, 3)]),
    st.floats(0.01, 8.0) | st.floats(-8.0, -0.01), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(layer=layers, style=st.sampled_from(STYLES))
def test_round_trip(layer: LowRank, style: formats.Style):
    tensors = formats.encode(Adapter({"x": layer}), style, dtype=torch.float32)
    again = formats.decode(tensors).layers["x"]
    assert again.kernel == layer.kernel and again.shape == layer.shape
    if style == "peft":
        assert again.alpha == again.rank and not any(key.endswith(".alpha") for key in tensors)
        assert close(again.delta_weight(), layer.to(torch.float32).delta_weight(), 1e-6)
    else:
        assert again.alpha == layer.alpha
        assert torch.equal(again.lora_A, layer.lora_A.float()) and torch.equal(again.lora_B, layer.lora_B.float())


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "kernel, columns, shape", [((), 16, (24, 16)), ((3, 3), 72, (24, 8, 3, 3)), ((5,), 5, (24, 1, 5))]
)
def test_comfyui_applies_what_we_write(style: formats.Style, kernel: tuple, columns: int, shape: tuple):
    layer = linear(columns=columns, kernel=kernel)
    tensors = formats.encode(Adapter({"x": layer}), style, dtype=torch.float32)
    assert close(in_comfy(tensors, "x", shape), layer.delta_weight())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float32, 1e-6)])
def test_tensors_are_plain(style: formats.Style, dtype: torch.dtype, tolerance: float):
    with torch.inference_mode():
        layer = linear()
        tensors = formats.encode(Adapter({"x": layer}), style, dtype=dtype)
        again = formats.decode(tensors).layers["x"].to(torch.float32)
        assert close(again.delta_weight(), layer.delta_weight(), tolerance)
    for key, tensor in tensors.items():
        assert tensor.is_contiguous() and tensor.device.type == "cpu" and not tensor.is_inference()
        assert tensor.dtype == (torch.float32 if key.endswith(".alpha") else dtype)
        assert tensor.data_ptr() not in (layer.lora_A.data_ptr(), layer.lora_B.data_ptr())


@pytest.mark.parametrize("style", STYLES)
def test_a_fused_layer_is_written_in_slices(style: formats.Style):
    fused = linear(out=72)
    pieces = [FileLayer("to_" + letter, (24 * i, 24)) for i, letter in enumerate("qkv")]
    tensors = formats.encode(Adapter({"qkv": fused}), style, {"qkv": pieces}, torch.float32)
    again = formats.decode(tensors).layers
    assert list(again) == ["to_q", "to_k", "to_v"]
    assert close(torch.cat([again[piece.name].delta_weight() for piece in pieces]), fused.delta_weight())


def test_names_fall_back_to_the_layers_own():
    tensors = formats.encode(Adapter({"a": linear(), "b": linear()}), "native", {"a": [FileLayer("z")]})
    assert set(formats.decode(tensors).layers) == {"z", "b"}


def test_two_layers_under_one_name_are_refused():
    names = {"a": [FileLayer("z")], "b": [FileLayer("z")]}
    with pytest.raises(ValueError, match="two layers would get the same name 'z.lora_down.weight'"):
        formats.encode(Adapter({"a": linear(), "b": linear()}), "native", names)


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="native, kohya or peft"):
        formats.encode(Adapter({"a": linear()}), "lycoris")


@pytest.mark.parametrize("style", STYLES)
def test_values_beyond_half_precision_are_refused(style: formats.Style):
    layer = LowRank(randn(4, 16), randn(24, 4) * 1e12, 4.0)
    with pytest.raises(ValueError, match="'x.lora_(up|B|down|A).weight' reaches .* save as bf16 or fp32"):
        formats.encode(Adapter({"x": layer}), style)
    assert formats.encode(Adapter({"x": layer}), style, dtype=torch.bfloat16)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sizes", [(1.0, 1e6), (1e-7, 1e7), (3e-2, 1e-6), (1e-9, 3.0)])
def test_what_one_factor_cannot_hold_in_half_precision_the_other_takes(style: formats.Style, sizes: tuple):
    down, up = randn(4, 16) * sizes[0], randn(24, 4) * sizes[1]
    layer = LowRank(down, torch.cat([up[:, :3], torch.zeros(24, 1)], 1), 3.0)
    again = formats.decode(formats.encode(Adapter({"x": layer}), style)).layers["x"]
    assert again.to(torch.float32).distance(layer) < 1e-3 * layer.norm()
    whole = formats.encode(Adapter({"x": layer}), "native", dtype=torch.float32)
    assert torch.equal(whole["x.lora_down.weight"], layer.lora_A), "only where there is need"


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        formats.encode(Adapter({"x": LowRank(randn(4, 16), randn(24, 4) * float("nan"), 4.0)}), "native")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("alpha", [0.0, 3e4, -5e5])
def test_alphas_that_readers_refuse_are_folded_in(style: formats.Style, alpha: float):
    layer = linear(alpha=alpha)
    again = formats.decode(formats.encode(Adapter({"x": layer}), style, dtype=torch.float32)).layers["x"]
    assert again.alpha == 4.0
    assert torch.allclose(again.delta_weight(), layer.delta_weight(), rtol=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_a_rank_that_cannot_be_is_cut_without_loss(style: formats.Style):
    wide = LowRank.concat([linear(rank=12), linear(rank=12).scaled(0.5)])
    again = formats.decode(formats.encode(Adapter({"x": wide}), style, dtype=torch.float32)).layers["x"]
    assert wide.rank == 24 and again.rank <= 16
    assert close(again.delta_weight(), wide.delta_weight())


# ---- layers that must be alike ---------------------------------------------------------------------------------------


def three_ranks(*names: str) -> Adapter:
    layers = (LowRank(randn(rank, 16, seed=rank), randn(24, rank), 0.5 * rank + 1) for rank in (2, 8, 4))
    return Adapter(dict(zip(names, layers, strict=True)))


@pytest.mark.parametrize(
    ("style", "names", "filled"),
    [
        ("peft", ("transformer.a", "transformer.b", "transformer.c"), (8, 8, 8)),
        ("peft", ("unet.a", "unet.b", "text_encoder.c"), (8, 8, 4)),
        ("peft", ("text_encoder.a", "text_encoder_2.b", "text_encoder_2.c"), (2, 8, 8)),
        ("kohya", ("lora_unet_a", "lora_te_b", "lora_te_c"), (2, 8, 8)),
        ("kohya", ("lora_te1_a", "lora_te2_b", "lora_te2_c"), (2, 8, 8)),
        ("kohya", ("lora_unet_a", "lora_unet_b", "lora_unet_c"), (2, 8, 4)),
        ("native", ("x.a", "x.b", "x.c"), (2, 8, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_each_network_gets_one_rank_where_readers_know_but_one(style, names, filled, dtype):
    ours = three_ranks(*names)
    tensors = formats.encode(ours, style, None, dtype)
    again = formats.decode(tensors)
    for (name, layer), rank in zip(ours.layers.items(), filled, strict=True):
        assert again.layers[name].rank == rank
        assert close(
            again.layers[name].to(torch.float32).delta_weight(),
            layer.delta_weight(),
            1e-3 if dtype != torch.float32 else 1e-6,
        )
        if style == "kohya" and rank != layer.rank:
            assert float(tensors[f"{name}.alpha"]) == rank
    added = sum((rank - layer.rank) * 40 for layer, rank in zip(ours.layers.values(), filled, strict=True))
    assert formats.zeros(ours, style) == added
    assert sum(tensor.numel() for tensor in tensors.values() if tensor.ndim) == ours.num_parameters() + added


def test_alphas_of_text_layers_are_made_one_where_only_they_differ():
    ours = Adapter({f"lora_te_{part}": linear(alpha=alpha) for part, alpha in (("a", 1.0), ("b", 3.0))})
    tensors = formats.encode(ours, "kohya", None, torch.float32)
    assert [float(tensors[f"lora_te_{part}.alpha"]) for part in "ab"] == [4.0, 4.0] and formats.zeros(
        ours, "kohya"
    ) == 0
    for name, layer in formats.decode(tensors).layers.items():
        assert close(layer.delta_weight(), ours.layers[name].delta_weight())


def test_a_small_weight_does_not_make_ranks_differ():
    """One rank on all: the weight that can have less gets the others' rank, too."""
    ours = Adapter({"unet.a": linear(rank=12), "unet.conv_in": linear(rank=12, out=8, columns=36, kernel=(3, 3))})
    again = formats.decode(formats.encode(ours, "peft", None, torch.float32))
    assert {layer.rank for layer in again.layers.values()} == {12}
    for name, layer in again.layers.items():
        assert close(layer.delta_weight(), ours.layers[name].delta_weight())
