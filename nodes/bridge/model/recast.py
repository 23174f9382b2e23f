"""Linear layers whose weights are not of the compute type: cast for each pass, and never kept twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ....lora_core.training.branch import Branch
from ....lora_core.training.passes import Weights, linear, times_weight


class Casts:
    """Weights and biases of layers in the type of what they multiply: cast for every use, or once and kept. Of layers
    in `held`, which lie in blocks that are recomputed, the cast of the recomputation serves the backward pass, too."""

    def __init__(self, keep: bool, held: Collection[nn.Module] = ()):
        self.kept: dict[tuple[nn.Module, torch.dtype], tuple[Tensor, Tensor | None]] | None = {} if keep else None
        self.held = held

    @contextmanager
    def of(self, module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        known = self.kept.get((module, like.dtype)) if self.kept else None
        if known:
            yield known
            return
        comfy.ops.run_every_op()
        kinds = {"dtype": _cast_to(module, like.dtype), "bias_dtype": like.dtype, "device": like.device}
        weight, bias, stream = comfy.ops.cast_bias_weight(module, offloadable=True, **kinds)
        pair = _dequantised(weight, like.dtype) if isinstance(weight, QuantizedTensor) else weight, bias
        if self.kept is not None:
            self.kept[module, like.dtype] = pair
        yield pair
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


class AsStored:
    """The same of layers that are stored in the compute type."""

    held: Collection[nn.Module] = ()

    def of(self, module: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        layer: Any = module
        return nullcontext((layer.weight, layer.bias))


def _cast_to(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the type that ComfyUI is asked to cast a weight to: for a quantised one its own, as a cast to another
    copies its bytes before they are dequantised; what corrects a weight on its way finds it in `dtype`."""
    weight = module.weight
    return weight.dtype if isinstance(weight, QuantizedTensor) and not module.weight_function else dtype


def _dequantised(weight: QuantizedTensor, dtype: torch.dtype) -> Tensor:
    params = replace(weight.params, orig_dtype=dtype)
    return QuantizedTensor(weight._qdata, weight._layout_cls, params).dequantize()


class _Recast(torch.autograd.Function):
    """`x W^T + b`; autograd keeps no cast copy of W for the backward pass, but of layers whose casts are held: there,
    checkpointing drops the first one, as all that a block saves, and brings that of the recomputation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Linear, casts: Casts) -> Tensor:
        ctx.module, ctx.casts = module, casts
        out = x.new_empty(*x.shape[:-1], module.out_features)  # not a view, which nobody could change in place
        _, kept = linear(module, casts, x, out)
        ctx.save_for_backward(kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return times_weight(grad, ctx.module, ctx.casts, *ctx.saved_tensors), None, None


def _linear(module: nn.Module, casts: Casts, x: Tensor) -> Tensor:
    smoothing = getattr(module, "pre_quant_scale", None)
    if smoothing is not None:
        x = x * comfy.model_management.cast_to_device(smoothing, x.device, x.dtype)
    elif branch := Branch.alone_on(module):
        return branch.joined_to(module, casts, x)
    return _Recast.apply(x, module, casts)


def _plain(module: nn.Module, stored: Weights, *args: Any, **kwargs: Any) -> Tensor:
    """As ComfyUI does it, or in one with the branch that hangs on the layer."""
    branch = Branch.alone_on(module)
    if branch is None or kwargs or not _is_one_product(module, *args):
        return type(module).forward(module, *args, **kwargs)
    comfy.ops.run_every_op()
    return branch.joined_to(module, stored, *args)


def _is_one_product(module: nn.Module, x: Tensor) -> bool:
    """Whether the layer multiplies by its weight as it lies there."""
    cast = module.weight_function or module.bias_function or torch.is_autocast_enabled(x.device.type)
    if cast or is_traceable_wrapper_subclass(x):
        return False
    own = (tensor for tensor in (module.weight, module.bias) if tensor is not None)
    return all(each.dtype == x.dtype and each.device == x.device for each in own)


def _convolution(module: nn.Conv2d, casts: Casts, x: Tensor) -> Tensor:
    with casts.of(module, x) as (weight, bias):
        return module._conv_forward(x, weight, bias)


@contextmanager
def recast_in_backward(
    network: nn.Module, dtype: torch.dtype, keep: bool = False, held: Collection[nn.Module] = ()
) -> Iterator[None]:
    """ComfyUI's linear layers whose weights are not of the compute type `dtype` multiply with the dequantised weight,
    forward and backward, and keep no cast copy of it between the two; with `keep` they and the convolutions keep one
    from their first use to the end. Those `held`, of recomputed blocks, keep the one of the recomputation for its
    backward pass. A branch that hangs on a linear layer of any type is computed in one with it, where nothing else is
    in the way.

    That also goes around kernels that have no backward, such as those of --fast fp8_matrix_mult.
    """
    casts = Casts(keep, held)
    replaced = {module: (_linear, casts) for module in cast_layers(network, dtype)}
    if keep:
        replaced |= {
            module: (_convolution, casts) for module in network.modules() if _is_cast_convolution(module, dtype)
        }
    replaced |= {module: (_plain, AsStored()) for module in network.modules() if _is_plain(module, dtype)}
    try:
        for module, (forward, weights) in replaced.items():
            module.forward = partial(forward, module, weights)
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)


@contextmanager
def cast_as_in_sampling(network: nn.Module) -> Iterator[None]:
    """Inside, the layers that `recast_in_backward` changed run as ComfyUI samples them."""
    replaced = {
        module: vars(module).pop("forward")
        for module in network.modules()
        if getattr(vars(module).get("forward"), "func", None) in (_linear, _plain, _convolution)
    }
    try:
        yield
    finally:
        for module, forward in replaced.items():
            module.forward = forward


def cast_layers(network: nn.Module, dtype: torch.dtype) -> list[nn.Module]:
    """Return ComfyUI's linear layers whose weights are not of the compute type."""
    return [module for module in network.modules() if _is_cast(module, dtype)]


def _is_cast_convolution(module: nn.Module, dtype: torch.dtype) -> bool:
    return isinstance(module, comfy.ops.disable_weight_init.Conv2d) and module.weight.dtype != dtype


def _is_cast(module: nn.Module, dtype: torch.dtype) -> bool:
    if type(module).__module__ != comfy.ops.__name__ or not hasattr(module, "in_features"):
        return False
    weight: Any = getattr(module, "weight", None)
    return getattr(weight, "ndim", 0) == 2 and (isinstance(weight, QuantizedTensor) or weight.dtype != dtype)


def _is_plain(module: nn.Module, dtype: torch.dtype) -> bool:
    """A linear layer of ComfyUI that it computes as torch does, in the compute type."""
    kind, known = cast(Any, type(module)), comfy.ops.disable_weight_init.Linear
    if not isinstance(module, known) or "forward" in vars(module) or getattr(module, "weight", None) is None:
        return False
    ways = (kind.forward, kind.forward_comfy_cast_weights)
    usual = ways == (known.forward, known.forward_comfy_cast_weights)
    return usual and module.weight.dtype == dtype and not isinstance(module.weight, QuantizedTensor)
