"""Low-rank branches beside layers: `y = layer(x) + B (A x)`, for weights that cannot take a correction without losing
it to rounding, and for LoRAs that are on for a part of sampling only.

Each stack hangs forward hooks of its own on the layers, which add up, and add to what ComfyUI's bypass loader does
inside the layer; that one replaces `forward`, and only the last of several works.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional

from ...lora_core.low_rank import LowRank
from ...lora_core.weight_sum import joined

Span = tuple[float, float]  # start and end, as shares of the model's noise schedule, 0 the noisiest
ALWAYS: Span = (0.0, 1.0)
Parts = Mapping[Span, Sequence[LowRank]]

_CONVOLUTIONS = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}


def can_hang(module: nn.Module) -> bool:
    """Whether a branch can run beside the layer."""
    if isinstance(module, tuple(_CONVOLUTIONS)):
        return module.groups == 1
    return hasattr(module, "in_features") and hasattr(module, "out_features")


class Clock(threading.local):
    """Knows which spans of sampling are off in the forward that runs; threads may run copies of a model at once."""

    def __init__(self, spans: Sequence[Span]):
        self.spans = [span for span in spans if span != ALWAYS]
        self.off: frozenset[Span] = frozenset()

    def __call__(self, executor, x: Tensor, t: Tensor, *args, **kwargs):
        """A wrapper of `BaseModel.apply_model`, whose `t` is sigma."""
        sigma, sampling = float(t.max()), executor.class_obj.model_sampling
        self.off = frozenset(span for span in self.spans if not is_on(span, sigma, sampling.percent_to_sigma))
        try:
            return executor(x, t, *args, **kwargs)
        finally:
            self.off = frozenset()


def is_on(span: Span, sigma: float, percent_to_sigma) -> bool:
    """From `start` on, up to but not with `end`, so that of two rows that meet one is on at any time."""
    start, end = span
    return (start <= 0 or sigma <= percent_to_sigma(start)) and (end >= 1 or sigma > percent_to_sigma(end))


class Branch:
    """The forward hook of one layer."""

    def __init__(self, parts: Parts, clock: Clock):
        self.parts, self.clock = parts, clock
        self._cast: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = args[0].dequantize() if isinstance(args[0], QuantizedTensor) else args[0]
        for span, terms in self.parts.items():
            if span not in self.clock.off:
                output = _added(module, x.to(output.dtype), output, *self._factors(span, terms, output))
        return output

    def _factors(self, span: Span, terms: Sequence[LowRank], output: Tensor) -> tuple[Tensor, Tensor]:
        """Of the type and on the device of `output`, kept while the branch hangs."""
        key = (span, output.dtype, output.device, torch.is_inference_mode_enabled())
        if key not in self._cast:
            self._cast[key] = joined(terms, output.dtype, output.device)
        return self._cast[key]

    def drop(self) -> None:
        self._cast.clear()


def _added(module: nn.Module, x: Tensor, output: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    for kind, convolve in _CONVOLUTIONS.items():
        if isinstance(module, kind):
            down = lora_A.view(len(lora_A), module.in_channels, *module.kernel_size)
            ones = (1,) * len(module.kernel_size)
            return output + convolve(module._conv_forward(x, down, None), lora_B.view(*lora_B.shape, *ones))
    hidden = functional.linear(x, lora_A).flatten(0, -2)
    return torch.addmm(output.reshape(-1, len(lora_B)), hidden, lora_B.t()).view(output.shape)


def hung(patcher) -> tuple[list[Mapping[str, Parts]], list[str]]:
    """What each of our stacks hangs beside the layers of a MODEL, and the keys of other packs' injections."""
    ours, foreign = _owners(patcher)
    return [{name: branch.parts for name, branch in each.branches.items()} for each in ours], foreign


def content(patcher) -> list[str]:
    """Texts that tell apart what hangs beside the layers of a MODEL; of other packs' injections their keys."""
    ours, foreign = _owners(patcher)
    return [*(each.content() for each in ours), *foreign]


def _owners(patcher) -> tuple[list[Beside], list[str]]:
    owners = [(key, getattr(each.inject, "__self__", None)) for key, own in patcher.injections.items() for each in own]
    return [owner for _, owner in owners if isinstance(owner, Beside)], [
        key for key, owner in owners if not isinstance(owner, Beside)
    ]


class Beside:
    """The branches of one stack on a MODEL, hung whenever ComfyUI injects the patcher and taken off when it ejects it.

    A clone made while its parent is injected believes that it is too, and ejects when it is collected; only the patcher
    that hung the branches takes them off.
    """

    def __init__(self, layers: Mapping[str, Parts]):
        self.clock = Clock(list(dict.fromkeys(span for parts in layers.values() for span in parts)))
        self.branches = {name: Branch(parts, self.clock) for name, parts in layers.items()}
        self._hung: WeakKeyDictionary[nn.Module, tuple[int, list]] = WeakKeyDictionary()

    def attach(self, patcher, key: str) -> None:
        patcher.set_injections(key, [PatcherInjection(inject=self._hang, eject=self._take_off)])
        if self.clock.spans:
            patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, self.clock)

    def content(self) -> str:
        """Changes with the factors, their layers and spans."""
        digest = hashlib.sha256()
        for name, branch in self.branches.items():
            for span, terms in branch.parts.items():
                digest.update(f"{name} {span}".encode())
                for factor in joined(terms, torch.float32, torch.device("cpu")):
                    digest.update(factor.contiguous().numpy())
        return digest.hexdigest()

    def _hang(self, patcher) -> None:
        self._remove(patcher.model)
        hooks = [
            patcher.model.get_submodule(name).register_forward_hook(branch) for name, branch in self.branches.items()
        ]
        self._hung[patcher.model] = id(patcher), hooks

    def _take_off(self, patcher) -> None:
        if self._hung.get(patcher.model, (None,))[0] == id(patcher):
            self._remove(patcher.model)

    def _remove(self, model: nn.Module) -> None:
        for hook in self._hung.pop(model, (None, []))[1]:
            hook.remove()
        for branch in self.branches.values():
            branch.drop()
