"""The frozen weights of a loaded model, in whatever form they are kept, as DoRA reads them."""

from __future__ import annotations

import comfy.lora
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional as F

from ...lora_core.adapter import TEXT_PREFIX
from ...lora_core.training.dora import Frozen
from .frozen import Casts, is_foreign

_ROWS = 512  # at once


class ComfyFrozen(Frozen):
    """Layers of ComfyUI are cast or dequantised as for a forward pass; layers of third parties, such as those for GGUF
    files, are asked: what they make of given rows tells the weight."""

    def times(self, module: nn.Module, rows: Tensor) -> Tensor:
        if _speaks_for_itself(module):
            zero = module.forward(rows.new_zeros(1, rows.shape[1]))
            return module.forward(rows) - zero
        with Casts(keep=False).of(module, rows) as (weight, _):
            return F.linear(rows, weight.flatten(1))

    def norms(self, module: nn.Module) -> Tensor:
        if _speaks_for_itself(module):
            return self._asked(module)
        weight = module.weight.dequantize() if isinstance(module.weight, QuantizedTensor) else module.weight
        return torch.cat([part.detach().flatten(1).float().norm(dim=1) for part in weight.split(_ROWS)])

    def bias(self, module: nn.Module, like: Tensor) -> Tensor | None:
        if _speaks_for_itself(module):
            return module.forward(like.new_zeros(1, module.in_features)).detach()[0].to(like)
        return super().bias(module, like)

    def _asked(self, module: nn.Module) -> Tensor:
        eye = torch.eye(module.in_features, device=module.weight.device)
        return sum(self.times(module, part).float().square().sum(0) for part in eye.split(_ROWS)).sqrt()


def weight_of(name: str, model, clip=None) -> Tensor:
    """A layer's weight with the MODEL's or CLIP's patches, an fp64 copy on the CPU, whichever clone is loaded."""
    text = name.startswith(TEXT_PREFIX)
    patcher, key = clip.patcher if text else model, f"{name.removeprefix(TEXT_PREFIX)}.weight"
    kept = patcher.backup.get(key)
    weight = kept.weight if kept is not None else comfy.utils.get_attr(patcher.model, key)
    weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    weight = weight.detach().to("cpu", torch.float64, copy=True)
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key, torch.float64)


def _speaks_for_itself(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and is_foreign(module)
