"""A loader as third parties write them for files that ComfyUI does not know: with tensors, layers and a patcher of its
own, and no way for ComfyUI to read the file again. Its quirks are those of the loaders of GGUF files.
"""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from .families import Tiny
from .weights import seeded

BLOCK = 32  # int8 values that share an fp16 scale


class PackedTensor(Tensor):
    """Rows of bytes with the shape of what they mean; everything else about it is that of the bytes."""

    tensor_shape: torch.Size
    patches: list

    @staticmethod
    def __new__(cls, data: Tensor, tensor_shape: torch.Size):
        return data.as_subclass(cls)

    def __init__(self, data: Tensor, tensor_shape: torch.Size):
        self.tensor_shape, self.patches = torch.Size(tensor_shape), []

    def to(self, *args: Any, **kwargs: Any) -> PackedTensor:
        return PackedTensor(super().to(*args, **kwargs).as_subclass(Tensor), self.tensor_shape)._with(self.patches)

    def _with(self, patches: list) -> PackedTensor:
        self.patches = list(patches)
        return self

    def clone(self, *_: Any, **__: Any) -> PackedTensor:
        return self

    def detach(self, *_: Any, **__: Any) -> PackedTensor:
        return self

    @property
    def shape(self) -> torch.Size:
        return getattr(self, "tensor_shape", self.size())


def packed(weight: Tensor) -> PackedTensor:
    """(out, in) as rows of in / 32 blocks: two bytes of scale, 32 of values."""
    blocks = weight.reshape(len(weight), -1, BLOCK)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    values = (blocks / scale.float()).round().to(torch.int8)
    return PackedTensor(torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], -1).flatten(1), weight.shape)


def unpacked(weight: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(weight, PackedTensor) or weight.dtype != torch.uint8:
        return weight.to(dtype).as_subclass(Tensor)
    blocks = weight.as_subclass(Tensor).reshape(len(weight), -1, BLOCK + 2)
    scale, values = blocks[..., :2].contiguous().view(torch.float16), blocks[..., 2:].contiguous().view(torch.int8)
    return (values.to(dtype) * scale.to(dtype)).reshape(weight.shape)


class PackedLayer(nn.Module):
    comfy_cast_weights = True

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                setattr(self, name, nn.Parameter(state_dict[prefix + name], requires_grad=False))

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name, value in self._parameters.items():
            if value is not None:
                destination[prefix + name] = torch.empty(value.size(), dtype=value.dtype, device="meta")

    def cast(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = unpacked(self.weight.to(x.device), x.dtype)
        for patches, key in getattr(self.weight, "patches", []):
            weight = comfy.lora.calculate_weight(patches, weight, key)
        return weight, None if self.bias is None else unpacked(self.bias.to(x.device), x.dtype)


class PackedOps(comfy.ops.manual_cast):
    class Linear(PackedLayer, comfy.ops.manual_cast.Linear):
        def __init__(
            self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
        ):
            nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight = self.bias = None

        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, *self.cast(x))


class PackedPatcher(comfy.model_patcher.ModelPatcher):
    """Hangs patches on the packed tensors, which apply them whenever they are unpacked."""

    def patch_weight_to_device(self, key: str, device_to: Any = None, *more: Any, **named: Any) -> None:
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.patches or not isinstance(weight, PackedTensor):
            return super().patch_weight_to_device(key, device_to, *more, **named)
        comfy.utils.set_attr_param(self.model, key, weight.to(device_to)._with([(self.patches[key], key)]))

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            for parameter in self.model.parameters():
                if isinstance(parameter, PackedTensor):
                    parameter.patches = []
        return super().unpatch_model(device_to, unpatch_weights)

    def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> None:
        super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args: Any, **kwargs: Any) -> PackedPatcher:
        own, self.__class__ = self.__class__, PackedPatcher
        other = super().clone(*args, **kwargs)
        self.__class__ = own
        return other


def load_packed(row: Tiny, network: nn.Module) -> PackedPatcher:
    """A MODEL of seeded weights, those of its linear layers packed, the others fp16. `network` has names and shapes."""
    weights: dict[str, Tensor] = seeded(network.state_dict(), norm=row.norm)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and not module.in_features % BLOCK:
            weights[f"{name}.weight"] = packed(weights[f"{name}.weight"])
    weights = {k: v if isinstance(v, PackedTensor) else PackedTensor(v.half(), v.shape) for k, v in weights.items()}
    model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"custom_operations": PackedOps})
    return PackedPatcher.clone(model)
