"""The frozen weights of a base model, in whatever form it keeps them: differentiable, and never kept twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ....lora_core.swap import swapped
from ..host.device import release
from ..host.wires import Model


@contextmanager
def static_clone(model: Model) -> Iterator[Model]:
    """Yield a clone of a MODEL whose weights are plain parameters, moved by whoever loads it; unload it on leaving.

    Under dynamic VRAM the modules' weights stay on the CPU and layers compute from a buffer that is used again before
    the backward pass, so the run opts out: the dynamic patcher is unloaded, and a static one takes over the same
    modules through parameters that share the memory of its weights. No file is read again, and a loader needs no
    reload hook. It costs what --disable-dynamic-vram costs while training: all weights in VRAM. RAM holds nothing more:
    weights that are pages of the file, as ComfyUI's loaders map them, stay so. The one exception is a weight whose file
    has another type than the model is meant to have, which is converted, as loading without dynamic VRAM does. On
    leaving, the originals are put back as they were and the copies in VRAM dropped.
    """
    with ExitStack() as undo:
        if model.is_dynamic():
            release(model)
            patcher = model.clone(disable_dynamic=True, model_override=model.get_clone_model_override())
        else:
            patcher = model.clone()
        undo.callback(unload, patcher)
        if model.is_dynamic():
            undo.enter_context(_weights_set_aside(patcher))  # left before unloading, which would copy VRAM to RAM
        yield patcher


def unload(patcher: Model) -> None:
    """Unload a model that was loaded outside inference mode, so that ComfyUI can sample it again.

    Moving a quantised layer makes a new parameter of its weight, and fails when that is not an inference tensor as all
    of ComfyUI's are; loading it for training has made it an ordinary one.
    """
    with torch.inference_mode():
        for slots, name, value in _tensors(patcher.model):
            if isinstance(value, QuantizedTensor) and not value.is_inference():
                same = QuantizedTensor(value._qdata, value._layout_cls, value._params)
                slots[name] = nn.Parameter(same, requires_grad=False)
        release(patcher)


@contextmanager
def _weights_set_aside(patcher: Model) -> Iterator[None]:
    modules = list(patcher.model.modules())
    kept = [(slots, name, value) for slots, name, value in _tensors(patcher.model)]
    regions = {module: vars(module).pop("_v") for module in modules if "_v" in vars(module)}
    try:
        for module in modules:
            for slots in (module._parameters, module._buffers):
                for name, value in slots.items():
                    if value is not None:
                        slots[name] = _shared(value, getattr(module, f"{name}_comfy_model_dtype", None))
        yield
    finally:
        for slots, name, value in kept:
            slots[name] = value
        patcher.backup.clear()  # unpatched weights, which are in their places again
        for module in modules:
            if module in regions:
                module._v = regions[module]
            if hasattr(module, "_v_signature"):
                module._v_signature = None  # what VRAM still holds is not known to be current


@contextmanager
def ordinary_tensors(network: nn.Module) -> Iterator[None]:
    """Replace inference tensors among parameters and buffers by ordinary tensors that share their memory."""
    unfit = [place for place in _tensors(network) if _is_inference(place[2])]
    with swapped((slots, name, _shared(value)) for slots, name, value in unfit):
        yield


def _is_inference(value: Tensor) -> bool:
    return value.is_inference() and not is_traceable_wrapper_subclass(value)


def _tensors(network: nn.Module) -> list[tuple[dict, str, Tensor]]:
    """Return where every parameter and buffer is kept, its name there, and the tensor."""
    places = [slots for module in network.modules() for slots in (module._parameters, module._buffers)]
    return [(slots, name, value) for slots in places for name, value in slots.items() if value is not None]


def for_autograd(tensor: Tensor) -> Tensor:
    """Return an inference tensor, which autograd does not take, as an ordinary one on the same memory."""
    with unset_fake_temporarily():
        return _shared(tensor)


def _shared(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An ordinary tensor of the same class and attributes on the same memory; a copy only where `dtype` differs."""
    if is_traceable_wrapper_subclass(tensor):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    plain = ordinary(tensor)
    if dtype is not None and type(tensor) in (Tensor, nn.Parameter):
        plain = plain.to(dtype)
    return alike(plain, tensor)


def ordinary(tensor: Tensor) -> Tensor:
    """Return a Tensor on the same memory, of no other class and no inference tensor."""
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def alike(plain: Tensor, tensor: Tensor) -> Tensor:
    """Return the memory of `plain` as a tensor of the class and attributes of the other."""
    if type(tensor) is Tensor:
        return plain
    shared: Any = Tensor._make_subclass(type(tensor), plain)
    shared.__dict__.update(tensor.__dict__)
    return shared


def check_backward(network: nn.Module, dtype: torch.dtype) -> None:
    """Raise ValueError for a linear layer of a third party through which no gradient comes; one of each kind is tried.

    Such kernels are made for sampling alone, and training would go on with most of the gradient missing.
    """
    kinds = {}
    for path, module in network.named_modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features") and is_foreign(module):
            kinds.setdefault((type(module), type(getattr(module, "weight", None))), (path, module))
    for path, module in kinds.values():
        if not _has_backward(module, dtype):
            raise ValueError(
                f"{path} is a {type(module).__name__} of {type(module).__module__}, which has no backward pass, so "
                "this model cannot be trained; load the base model as bf16, fp16, fp8 or GGUF"
            )


def is_foreign(module: nn.Module) -> bool:
    return not type(module).__module__.startswith(("torch.", "comfy."))


def _has_backward(module: nn.Module, dtype: torch.dtype) -> bool:
    device = next((tensor.device for _, _, tensor in _tensors(module)), None)
    x = torch.ones(1, cast(int, module.in_features), dtype=dtype, device=device, requires_grad=True)
    try:
        module(x).float().sum().backward()
    except RuntimeError:
        return False
    return x.grad is not None
