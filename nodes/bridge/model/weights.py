"""The weights of a model as they were loaded, in whatever form they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import cast

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import get_key_weight
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.training.dora import WeightReader
from ..host.device import release
from ..host.wires import Clip, Model
from .frozen import is_foreign
from .recast import Casts

_ROWS, _UNITS = 512, 2048  # at once; a layer of a third party may unpack its weight for each lot


class ComfyWeightReader(WeightReader):
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
        if getattr(module, "weight_function", None):  # which corrects it whenever it is cast
            with Casts(keep=False).of(module, torch.empty(0, device=cast(Tensor, module.weight).device)) as (weight, _):
                return _row_norms(weight)
        weight = cast(Tensor, module.weight)
        return _row_norms(weight.dequantize() if isinstance(weight, QuantizedTensor) else weight)

    def bias(self, module: nn.Module, like: Tensor) -> Tensor | None:
        if _speaks_for_itself(module):
            return module.forward(like.new_zeros(1, cast(int, module.in_features))).detach()[0].to(like)
        return super().bias(module, like)

    def _asked(self, module: nn.Module) -> Tensor:
        eye = torch.eye(cast(int, module.in_features), device=cast(Tensor, module.weight).device)
        parts = (self.times(module, part).float().square().sum(0) for part in eye.split(_ROWS))
        return reduce(torch.add, parts).sqrt()


def weight_of(name: str, model: Model, clip: Clip | None = None) -> Tensor:
    """A layer's weight with the MODEL's or CLIP's patches, an fp64 copy on the CPU, whichever clone is loaded."""
    patcher, key = cast(Clip, clip).patcher if name.startswith(TEXT_PREFIX) else model, key_of(name, model, clip)
    weight = base_weight(patcher, key, torch.device("cpu")).to(torch.float64, copy=True)
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key, torch.float64)


def key_of(name: str, model: Model, clip: Clip | None = None) -> str:
    """Return the state dict's key of a layer's weight, or of a parameter that has a name of its own."""
    network = cast(Clip, clip).cond_stage_model if name.startswith(TEXT_PREFIX) else model.model
    path, _, last = (key := name.removeprefix(TEXT_PREFIX)).rpartition(".")
    return key if last in network.get_submodule(path)._parameters else f"{key}.weight"


def stored(patcher: Model, key: str) -> Tensor:
    """A parameter as it is kept, without the patches that are in it now."""
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    return patcher.backup[key].weight if key in patcher.backup else get_key_weight(patcher.model, key)[0]


def base_weight(patcher: Model, key: str, device: torch.device) -> Tensor:
    """Return a parameter of a MODEL or CLIP without its patches, on `device`: dequantised, in whichever type its loader
    gives it, fp32 where that is a third party's. It may be the model's own. Raises ValueError when only that loader can
    read it.

    A third party's packed weights may have their patches inside, so such a model is unloaded first.
    """
    weight, (_, _, dequantise) = stored(patcher, key), get_key_weight(patcher.model, key)
    if dequantise is not None:
        return dequantise(comfy.model_management.cast_to_device(weight, device, None, copy=True), inplace=True)
    path, _, kind = key.rpartition(".")
    module = patcher.model.get_submodule(path)
    if kind == "weight" and _speaks_for_itself(module) and _is_packed(weight, module):
        if patcher.model.current_weight_patches_uuid is not None:
            release(patcher)
        return probed_weight(module, device)
    if not weight.is_floating_point() or is_traceable_wrapper_subclass(weight):
        raise ValueError(f"{key} is stored as {type(weight).__name__} of {weight.dtype}, which only its own loader can "
                         "read; load the model with a loader of ComfyUI")  # fmt: skip
    return comfy.model_management.cast_to_device(weight.detach().as_subclass(Tensor), device, None)


def _is_packed(weight: Tensor, module: nn.Module) -> bool:
    return weight.dtype.itemsize == 1 or weight.size() != (module.out_features, module.in_features)


def probed_weight(module: nn.Module, device: torch.device) -> Tensor:
    """Return the weight of a linear layer of a third party, fp32, by what it makes of each input alone."""
    lots = _unit_rows(cast(int, module.in_features), device)
    return torch.cat([ComfyWeightReader().times(module, rows).T for rows in lots], 1)


def _unit_rows(width: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, width, _UNITS):
        rows = torch.zeros(min(_UNITS, width - start), width, device=device)
        rows.diagonal(start).fill_(1.0)
        yield rows


def _row_norms(weight: Tensor) -> Tensor:
    return torch.cat([part.detach().flatten(1).float().norm(dim=1) for part in weight.split(_ROWS)])


def _speaks_for_itself(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and is_foreign(module)
