"""Factors as a file of a style has them: how they are spelled, scaled and brought into its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..low_rank import LowRank
from . import layers, one_rank, spelling

Style = Literal["native", "kohya", "peft"]
_FAINT = 2.0**-13  # size of fp16 numbers of which some are so small that they lose digits


class FileLayer(NamedTuple):
    """Says where a layer goes in a file; `rows` (start, length) when the file splits a fused weight, `reorder` when it
    has the weight's rows in another order."""

    name: str
    rows: tuple[int, int] | None = None
    reorder: Callable[[Tensor], Tensor] | None = None


def feasible(layer: LowRank) -> LowRank:
    rank = one_rank.possible_rank(layer)
    return layer if layer.rank == rank else layer.truncate(rank=rank)


def factors(
    name: str, layer: LowRank, style: Style, before_peft: bool, dtype: torch.dtype
) -> dict[str, Tensor]:  # fmt: skip
    if style == "peft":
        suffixes, layer = _peft_spelling(name) if before_peft else spelling.PEFT, one_rank.unscaled(layer)
    else:
        suffixes = spelling.KOHYA
        layer = layer if 1e-6 < abs(layer.alpha) <= layers.MAX_ALPHA else one_rank.unscaled(layer)
    layer = _balanced(layer) if dtype == torch.float16 else layer
    ones = (1,) * len(layer.kernel)
    factors = {
        name + suffixes.down: layer.lora_A.reshape(layer.rank, *layer.shape[1:]),
        name + suffixes.up: layer.lora_B.reshape(*layer.lora_B.shape, *ones),
    }
    if style != "peft":
        factors[name + spelling.ALPHA] = torch.tensor(layer.alpha, dtype=torch.float32)
    return factors


def _peft_spelling(name: str) -> spelling.Spelling:
    """Return the spelling of a layer in a file of plain LoRA layers. ComfyUI knows the attention of a UNet only by the
    processor names diffusers had before PEFT. diffusers still converts a file of that time, but then every layer of the
    UNet must be spelled as it was."""
    if not name.startswith("unet."):
        return spelling.PEFT
    return spelling.PROCESSOR if ".processor." in name else spelling.BEFORE_PEFT


def since_peft(name: str) -> str:
    """Return the name of a UNet's layer in files with DoRA, which came with PEFT and which ComfyUI does not read."""
    name = name.replace(".processor.to_", ".to_")
    return f"{name}.0" if name.startswith("unet.") and name.endswith(".to_out") else name


def _balanced(layer: LowRank) -> LowRank:
    """The same correction; where one factor of a component is too large or too faint for fp16, both are made alike."""
    down, up = layer.lora_A.detach().float(), layer.lora_B.detach().float()
    sizes = torch.stack([down.square().mean(1).sqrt(), up.square().mean(0).sqrt()])
    peak = max(float(down.abs().max()), float(up.abs().max()))
    if peak <= torch.finfo(torch.float16).max and bool(((sizes > _FAINT) | (sizes == 0)).all()):
        return layer
    factor = torch.exp2((sizes[1] / sizes[0]).log2().div(2).round()).nan_to_num(1.0, 1.0, 1.0)
    factor[sizes.amin(0) == 0] = 1.0
    return replace(layer, lora_A=down * factor[:, None], lora_B=up / factor)


def cast_to(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.ndim == 0:
        return tensor
    peak, limit = float(torch.linalg.vector_norm(tensor.detach(), torch.inf)), torch.finfo(dtype).max
    if not isfinite(peak):
        raise ValueError(f"{key!r} holds NaN or infinite values: training diverged; lower the learning rate")
    if peak > limit:
        raise ValueError(f"{key!r} reaches {peak:.4g}, above the {limit:.4g} of {dtype}; save as bf16 or fp32")
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
