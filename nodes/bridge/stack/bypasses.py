"""Ways to change what a layer computes without writing into its weight, for weights that cannot take a correction
without losing it to rounding, and for what is on for a part of sampling only.

Each way is made of a timeline, the steps that a parameter goes through in order, and may hang on copies of a model at
once. `held` are its tensors, where `Beside` shows them to ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional

from ....lora_core.kinds.correction import mapped
from ....lora_core.low_rank import LowRank
from ....lora_core.stack.chain import Step, applied
from ....lora_core.training.targets import weight_shape
from ....lora_core.weight_sum import concatenated
from ..model.frozen import for_autograd, is_foreign
from ..model.fused_layers import insist
from ..model.spans import Clock, Timed, When
from ..model.weights import probed_weight

Timeline = Sequence[Timed]

_CONVOLUTIONS = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}
_CONVOLVING = tuple(_CONVOLUTIONS)
_NUMBERS = count(1)


class Way:
    """Says how one parameter's timeline takes effect; `hang` gives the call that takes it off again."""

    @staticmethod
    def suits(module: nn.Module, parameter: str, timeline: Timeline) -> bool:
        raise NotImplementedError

    def __init__(self, timeline: Timeline, parameter: str, clock: Clock, dtype: torch.dtype):
        self.timeline, self.clock = timeline, clock
        self.held = nn.ModuleList(_held(each.step.change) for each in timeline)

    def hang(self, module: nn.Module) -> Callable[[], object]:
        raise NotImplementedError

    def switch(self, module: nn.Module) -> None:
        """Called when the clock has changed."""

    def steps(self, device: torch.device) -> list[Step]:
        """Those that are on, with their tensors on the device."""
        pairs = zip(self.timeline, self.held, strict=True)
        own = ((each, cast(nn.ParameterList, held)) for each, held in pairs if self.clock.now.has(each.when))
        return [_filled(each.step, held, device) for each, held in own]


class Hooked(Way):
    """A forward hook, which takes effect only when the layer itself is called; `ran` is set when it was."""

    ran = False

    def hang(self, module: nn.Module) -> Callable[[], object]:
        handle, let_go = module.register_forward_hook(self._called), insist(module)

        def take_off() -> None:
            handle.remove()
            let_go()

        return take_off

    def _called(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        self.ran = True
        return self(module, args, output)

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        raise NotImplementedError


class Bypass(Hooked):
    """`y = layer(x) + B (A x)`, for plain LoRAs of linear and convolution layers: a forward hook. Branches add up, and
    add to what ComfyUI's bypass loader does inside the layer; that one replaces `forward`, and only the last of several
    works. All LoRAs of a span and a region are one pair of factors: two products, however many there are."""

    @staticmethod
    def suits(module: nn.Module, parameter: str, timeline: Timeline) -> bool:
        plain = parameter == "weight" and all(isinstance(each.step.change, tuple) for each in timeline)
        return plain and (bool(module.groups == 1) if isinstance(module, _CONVOLVING) else _is_linear(module))

    def __init__(self, timeline: Timeline, parameter: str, clock: Clock, dtype: torch.dtype):
        """`dtype` is what the layer most likely computes in; factors of another type are cast in every forward."""
        self.timeline, self.clock = timeline, clock
        terms: dict[When, tuple[LowRank, ...]] = {each.when: () for each in timeline}
        for each in timeline:
            terms[each.when] += cast(tuple[LowRank, ...], each.step.change)
        self.moments = list(terms)
        self.held = nn.ModuleList(_held(concatenated(each, dtype, "cpu")) for each in terms.values())

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = _plain(args[0])
        x = x if x.dtype is output.dtype else x.to(output.dtype)
        now = self.clock.now
        for when, held in zip(self.moments, self.held, strict=True):
            if now.has(when):
                factors: Any = held._parameters  # which a ParameterList would look up by name
                lora_A, lora_B = factors.values()
                lora_A, lora_B = _like(lora_A, output), _like(lora_B, output)
                output = _added(module, x, output, lora_A, lora_B)
        return output


class Corrected(Way):
    """The layer computes with the corrected parameter: the last of the functions through which ComfyUI casts it, worked
    out anew in every forward. It finds the weight as it is loaded, dequantised, in the type of the layer's input."""

    @staticmethod
    def suits(module: nn.Module, parameter: str, timeline: Timeline) -> bool:
        cast = isinstance(module, comfy.ops.CastWeightBiasOp) and parameter in ("weight", "bias")
        return cast and not is_foreign(module) and not _is_resized(timeline)

    def __init__(self, timeline: Timeline, parameter: str, clock: Clock, dtype: torch.dtype):
        super().__init__(timeline, parameter, clock, dtype)
        self.slot, self.number = f"{parameter}_function", next(_NUMBERS)

    def hang(self, module: nn.Module) -> Callable[[], object]:
        self.switch(module)
        return lambda: self._put(module, False)

    def switch(self, module: nn.Module) -> None:
        self._put(module, any(self.clock.now.has(each.when) for each in self.timeline))

    def __call__(self, weight: Tensor) -> Tensor:
        return applied(weight, self.steps(weight.device))

    def _put(self, module: nn.Module, on: bool) -> None:
        """Quantised layers compute another way while there are functions, so that what is off is not there at all."""
        others = [function for function in getattr(module, self.slot) if function is not self]
        ordered = sorted([*others, self] if on else others, key=lambda function: getattr(function, "number", 0))
        setattr(module, self.slot, ordered)


class Asked(Hooked):
    """`y = layer(x) + (W' - W) x` for linear layers of third parties, such as those for GGUF files, which are asked for
    their weight in every forward when the correction depends on it."""

    @staticmethod
    def suits(module: nn.Module, parameter: str, timeline: Timeline) -> bool:
        return parameter == "weight" and _is_linear(module) and is_foreign(module) and not _is_resized(timeline)

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if steps := self.steps(output.device):
            weight = self._weight(module, steps, output.device)
            change = (applied(weight, steps) - weight).to(output.dtype)
            output = output + functional.linear(_plain(args[0]).to(output.dtype), change)
        return output

    @staticmethod
    def _weight(module: nn.Module, steps: Sequence[Step], device: torch.device) -> Tensor:
        """In fp32; zeros where all that is added is fixed."""
        if all(isinstance(step.change, tuple) or not step.change.depends_on_weight for step in steps):
            return torch.zeros(weight_shape(module), device=device)
        return probed_weight(module, device)


WAYS = (Bypass, Corrected, Asked)


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _is_resized(timeline: Timeline) -> bool:
    return any(getattr(each.step.change, "new_shape", None) for each in timeline)


def _held(change: object) -> nn.ParameterList:
    tensors: list[Tensor] = []
    mapped(change, lambda tensor: tensors.append(tensor) or tensor)
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)


def _filled(step: Step, held: nn.ParameterList, device: torch.device) -> Step:
    supply = iter(held)
    return step._replace(change=mapped(step.change, lambda _: _moved(next(supply), device)))


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """The very tensor when ComfyUI has loaded it, as it has for nearly all calls."""
    same = tensor.dtype is other.dtype and tensor.device == other.device
    return tensor if same and torch.is_inference_mode_enabled() else _moved(tensor, other.device, other.dtype)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """There already, when ComfyUI has loaded it. Autograd takes no inference tensors."""
    found = tensor.to(device, dtype or tensor.dtype)
    return for_autograd(found) if found.is_inference() and not torch.is_inference_mode_enabled() else found


def _plain(x: Tensor) -> Tensor:
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


def _added(module: nn.Module, x: Tensor, output: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    if isinstance(module, _CONVOLVING):
        return output + _convolved(module, x, lora_A, lora_B)
    hidden, back = functional.linear(x, lora_A).flatten(0, -2), lora_B.t()
    if _is_ours_alone(module, output):
        output.view(-1, len(lora_B)).addmm_(hidden, back)
        return output
    return torch.addmm(output.reshape(-1, len(lora_B)), hidden, back).view(output.shape)


def _convolved(module: Any, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    convolve = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(module, kind))
    down = lora_A.view(len(lora_A), module.in_channels, *module.kernel_size)
    return convolve(module._conv_forward(x, down, None), lora_B.view(*lora_B.shape, *(1,) * len(module.kernel_size)))


def _is_ours_alone(module: nn.Module, output: Tensor) -> bool:
    """Whether a layer's output can be added to where it lies, which on a GPU saves a copy of it: fresh from a layer of
    ComfyUI's own, without autograd, and not seen by another's hook, which may have kept it or put it there."""
    return (
        output.is_inference()
        and torch.is_inference_mode_enabled()
        and output.is_contiguous()
        and "forward" not in module.__dict__
        and not is_foreign(module)
        and all(type(getattr(hook, "__self__", None)) is Bypass for hook in module._forward_hooks.values())
    )
