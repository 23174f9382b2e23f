"""The tiny networks with their weights stored as files of real models store them: every type and layout of ComfyUI.

A further layout is a row in `LAYOUTS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors.torch import save_file
from torch import Tensor, nn

from . import built, patcher_of, write_model
from .families import FAMILIES, Tiny
from .packed import unpacked
from .weights import seeded

try:
    from comfy_kitchen.tensor import AsymW4A8Int8Layout, register_layout_class
except ImportError:  # kitchen before 0.2.31
    AsymW4A8Int8Layout = None

TYPES = {
    "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip
Write = Callable[[str, Tensor], dict[str, Tensor]]


def _text(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _layout(
    kind: str, told: Mapping[str, Any], made: Mapping[str, Any], name: str, weight: Tensor
) -> dict[str, Tensor]:
    """Today's files: a layer's bytes and scales, and beside them what they are. `told` is in the file."""
    quantised = QuantizedTensor.from_float(weight, QUANT_ALGOS[kind]["comfy_tensor_layout"], **made)
    return {**quantised.state_dict(f"{name}.weight"), f"{name}.comfy_quant": _text({"format": kind, **told})}


def _scaled_fp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Files of before: one mark for all layers, which `scaled_fp8` adds, and a scale for each."""
    scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return {f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{name}.scale_weight": scale}


_RECALCULATE = {"scale": "recalculate"}
_ROTATED = {"convrot": True, "convrot_groupsize": 64}
LAYOUTS: dict[str, Write] = {
    "scaled_fp8": _scaled_fp8,
    "float8_e4m3fn": partial(_layout, "float8_e4m3fn", {}, _RECALCULATE),
    "float8_e5m2": partial(_layout, "float8_e5m2", {"full_precision_matrix_mult": True}, _RECALCULATE),
    "mxfp8": partial(_layout, "mxfp8", {}, {}),
    "nvfp4": partial(_layout, "nvfp4", {}, _RECALCULATE),
    "int8_tensorwise": partial(_layout, "int8_tensorwise", {}, _RECALCULATE),
    "int8_rowwise": partial(_layout, "int8_tensorwise", {}, {"per_channel": True}),
    "int8_convrot": partial(_layout, "int8_tensorwise", _ROTATED, {"per_channel": True, **_ROTATED}),
    "convrot_w4a4": partial(_layout, "convrot_w4a4", {"convrot_groupsize": 64}, {"convrot_groupsize": 64}),
    "convrot_w4a4_int8": partial(
        _layout, "convrot_w4a4", {"convrot_groupsize": 64, "linear_dtype": "int8"},
        {"convrot_groupsize": 64, "linear_dtype": "int8"},
    ),
}  # fmt: skip
_W4A8, _W4A8_MADE = "asym_w4a8_int8", {"group_size": 16, "convrot_groupsize": 64}
_READS_W4A8 = _W4A8 in QUANT_ALGOS
if AsymW4A8Int8Layout:
    LAYOUTS[_W4A8] = partial(_layout, _W4A8, _W4A8_MADE, _W4A8_MADE)


def load_stored(name: str, folder: Path, form: str) -> Any:
    """A MODEL of that family whose file has the type or layout `form`, as UNETLoader loads it."""
    row = FAMILIES[name]
    if form in TYPES:
        return _of_type(row, folder, TYPES[form])
    if form == _W4A8 and not _READS_W4A8:
        return _with_w4a8(load_stored(name, folder, "convrot_w4a4"), row)
    weights = quantised(row, LAYOUTS[form])
    if not row.stock:
        return patcher_of(built(row, "cpu", quantised=True), comfy.utils.convert_old_quants(weights)[0])
    path = folder / f"{name}_{form}.safetensors"
    save_file({row.prefix + key: value for key, value in weights.items()}, path)
    return comfy.sd.load_diffusion_model(str(path))


def quantised(row: Tiny, write: Write) -> dict[str, Tensor]:
    """The seeded weights, the linear layers of the blocks as `write` writes them."""
    network = built(row, "meta").diffusion_model
    weights = seeded(network.state_dict(), norm=row.norm)
    layers = [
        name for name, module in network.named_modules() if isinstance(module, nn.Linear) and _suits(name, module)
    ]
    for name in layers:
        weights |= write(name, weights.pop(f"{name}.weight"))
    if write is _scaled_fp8:
        weights["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return weights


def _with_w4a8(model: Any, row: Tiny) -> Any:
    """For a ComfyUI before 0.33, which has no reader of such files: its own layers, weights in kitchen's layout."""
    layout = AsymW4A8Int8Layout.__name__
    QUANT_ALGOS[_W4A8] = {
        "storage_t": torch.int8, "parameters": {"weight_scale"}, "comfy_tensor_layout": layout, "quantize_input": False,
    }  # fmt: skip
    register_layout_class(layout, AsymW4A8Int8Layout)
    weights = seeded(built(row, "meta").diffusion_model.state_dict(), norm=row.norm)
    for name, layer in model.model.diffusion_model.named_modules():
        if getattr(layer, "quant_format", None):
            made = QuantizedTensor.from_float(weights[f"{name}.weight"], layout, **_W4A8_MADE)
            layer.weight = nn.Parameter(made, requires_grad=False)
            layer.quant_format, layer.layout_type = _W4A8, layout
    return model


def _suits(name: str, module: nn.Module) -> bool:
    """Layers that every layout can hold, where published files have them: inside the blocks.

    Not those by whose shape ComfyUI knows a UNet, which packed bytes do not have.
    """
    in_block = any(part.isdigit() for part in name.split(".")[:-1])
    return (
        isinstance(module, nn.Linear) and in_block and not module.in_features % 64 and not name.endswith("attn2.to_k")
    )


def dequantised(name: str, model: Any) -> Any:
    """A MODEL of the same family, fp32, with the very weights that this one computes with."""
    network = model.model.diffusion_model
    twin = patcher_of(built(FAMILIES[name], "cpu"))
    values = dict(network.named_buffers()) | dict(network.named_parameters())
    exact = {key: unpacked(_plain(value), torch.float32) for key, value in values.items()}
    twin.model.diffusion_model.load_state_dict({key: exact[key] for key in twin.model.diffusion_model.state_dict()})
    return twin


def _plain(value: Tensor) -> Tensor:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _of_type(row: Tiny, folder: Path, dtype: torch.dtype) -> Any:
    if row.stock:
        return comfy.sd.load_diffusion_model(str(write_model(row, folder)), model_options={"dtype": dtype})
    model = built(row, "cpu", dtype)
    return patcher_of(model, seeded(model.diffusion_model.state_dict(), norm=row.norm))


class OneLayer(nn.Module):
    """A linear layer of ComfyUI's for quantised weights, `width` to `width`, with random ones of the layout."""

    def __init__(self, form: str, width: int, dtype: torch.dtype):
        super().__init__()
        ops = comfy.ops.mixed_precision_ops({}, dtype)
        self.layer, self.dtype = ops.Linear(width, width, device="cpu", dtype=dtype), dtype
        weights = LAYOUTS[form]("layer", torch.randn(width, width, dtype=dtype) / width**0.5)
        mark = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if form == "scaled_fp8" else {}
        weights = comfy.utils.convert_old_quants(weights | mark)[0]
        self.load_state_dict({**weights, "layer.bias": torch.zeros(width, dtype=dtype)}, strict=False)
        self.requires_grad_(False)

    def get_dtype(self) -> torch.dtype:
        return self.dtype


@torch.inference_mode()  # as loaders run
def one_layer(form: str, width: int, dtype: torch.dtype = torch.bfloat16) -> ModelPatcher:
    """A MODEL of one such layer, which computes in `dtype`."""
    device = comfy.model_management.get_torch_device()
    return ModelPatcher(OneLayer(form, width, dtype), device, comfy.model_management.unet_offload_device())
