"""Runs corrections beside the weights of a MODEL or CLIP: hung and taken off, timed, and planned for by ComfyUI."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ....lora_core import nested_hash
from ..host.wires import Clip, Model
from ..model.fused_layers import forget_graphs, heed_hooks
from ..model.spans import ALWAYS, Clock, Now, Timed, during, off_at
from .bypasses import WAYS, Hooked, Timeline, Way
from .regional import Regional
from .uncalled import Uncalled

_CONTENT = nested_hash.HashSpelling(lambda value: repr(getattr(value, "__qualname__", value)), record="{tag}")
_COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16)


def way_of(module: nn.Module, parameter: str, timeline: Timeline) -> type[Way] | None:
    """Return how a timeline can take effect on a parameter that stays as it is."""
    return next((way for way in WAYS if way.suits(module, parameter, timeline)), None)


def hung(patcher: Model) -> tuple[list[Mapping[str, Way]], list[str]]:
    """Return what each of our stacks hangs beside a MODEL's parameters, and the keys of other packs' injections."""
    ours, foreign = _owners(patcher)
    return [each.ways for each in ours], foreign


def content(patcher: Model) -> list[str]:
    """Texts that tell apart what hangs beside the layers of a MODEL; of other packs' injections their keys."""
    ours, foreign = _owners(patcher)
    return [*(each.content for each in ours), *foreign]


def contents(patcher: Model) -> list[str]:
    """Texts that tell apart what our stacks hang beside the layers of a MODEL or CLIP."""
    return [each.content for each in _owners(patcher)[0]]


def uncalled(model: Model, clip: Clip | None = None) -> list[Uncalled]:
    """Return, for each of our stacks on a MODEL and a CLIP, what is known of the layers that it hangs beside."""
    patchers = [model] if clip is None else [model, clip.patcher]
    return [each.uncalled for patcher in patchers for each in _owners(patcher)[0]]


def _owners(patcher: Model) -> tuple[list[Beside], list[str]]:
    owners = [(key, getattr(each.inject, "__self__", None)) for key, own in patcher.injections.items() for each in own]
    return [owner for _, owner in owners if isinstance(owner, Beside)], [
        key for key, owner in owners if not isinstance(owner, Beside)
    ]


class LoraFactors(nn.Module):
    """The tensors of a stack's branches, which are nobody's parameters but ComfyUI's to plan, move and free."""

    def __init__(self, held: Mapping[str, nn.ModuleList]):
        super().__init__()
        self.held = nn.ModuleList(held.values())


class Hung(NamedTuple):
    """Holds what hangs on one copy of the model; `owner` is the id of the patcher that hung it."""

    owner: int
    ways: list[tuple[Way, nn.Module]]
    take_off: list


class Beside:
    """The branches of one stack on a MODEL, hung whenever ComfyUI injects the patcher and taken off when it ejects it.

    A clone made while its parent is injected believes that it is too, and ejects when it is collected; only the patcher
    that hung the branches takes them off.

    Their tensors are a model of their own, which the MODEL's options name as nodes with model patches do: ComfyUI loads
    it with the MODEL, and counts it when it decides how much of which model has room. They are freed with the MODEL.
    """

    def __init__(self, patcher: Model, timelines: Mapping[str, Timeline]):
        """`timelines` by the parameters' names in the state dict. Raises ValueError where a parameter allows none."""
        self.clock, self.timelines = Clock(), dict(timelines)
        whens = {each.when for timeline in timelines.values() for each in timeline}
        self.spans, self.regional = {each.span for each in whens} - {ALWAYS}, Regional(whens)
        dtype = _compute_dtype(patcher.model)
        self.ways = {key: _way(patcher.model, key, timeline, self.clock, dtype) for key, timeline in timelines.items()}
        factors = LoraFactors({key: way.held for key, way in self.ways.items()})
        self.factors = comfy.model_patcher.CoreModelPatcher(factors, patcher.load_device, patcher.offload_device)
        self.uncalled = Uncalled({key: way for key, way in self.ways.items() if isinstance(way, Hooked)})
        self._hung: WeakKeyDictionary[nn.Module, Hung] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[nn.Module, Now] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict) -> Beside:
        """Itself: some nodes copy a MODEL's options deep, and with what hangs they would copy the model."""
        return self

    def attach(self, patcher: Model, key: str) -> None:
        patcher.set_injections(key, [PatcherInjection(inject=self._hang, eject=self._take_off)])
        patcher.set_model_patch(self, "lora_loom")
        patcher.add_callback_with_key(CallbacksMP.ON_DETACH, key, self._free)
        patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, key, self.uncalled.begin)
        self.regional.attach(patcher, key)
        if self.spans or self.regional.regions:
            patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, self._timed)

    def models(self) -> list:
        """Asked by ComfyUI: what is loaded along with the MODEL."""
        return [self.factors]

    @cached_property
    def content(self) -> str:
        """Changes with the corrections, their layers, spans and regions."""
        digest = hashlib.sha256(b"by sigma" if self.spans else b"")  # version 0.1.0 trained with all of them on
        for key, timeline in self.timelines.items():
            digest.update(key.encode())
            nested_hash.add(digest, [*map(_hashed, timeline)], _CONTENT)
        return digest.hexdigest()

    def _timed(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of `BaseModel.apply_model`, whose `t` is sigma. Where tensors have no values, everything is on."""
        base_model, now = executor.class_obj, Now()
        if not isinstance(t, FakeTensor):
            now = Now(off_at(self.spans, base_model, t), self.regional.named(*args, **kwargs))
            if now != self._last.get(base_model):
                self._last[base_model] = now
                forget_graphs(base_model)
        with during(lambda inside: self._set(base_model, now if inside else Now())):
            return executor(x, t, *args, **kwargs)

    def _set(self, base_model: nn.Module, now: Now) -> None:
        self.clock.now = now
        if hung := self._hung.get(base_model):
            for way, module in hung.ways:
                way.switch(module)

    def _hang(self, patcher: Model) -> None:
        heed_hooks()
        self._remove(patcher.model)
        ways = [(way, _module(patcher.model, key)[0]) for key, way in self.ways.items()]
        take_off = [*self.uncalled.watch(patcher.model), *(way.hang(module) for way, module in ways)]
        self._hung[patcher.model] = Hung(id(patcher), ways, take_off)

    def _take_off(self, patcher: Model) -> None:
        hung = self._hung.get(patcher.model)
        if hung and hung.owner == id(patcher):
            self._remove(patcher.model)

    def _remove(self, base_model: nn.Module) -> None:
        forget_graphs(base_model)
        hung = self._hung.pop(base_model, None)
        for take_off in hung.take_off if hung else ():
            take_off()

    def _free(self, patcher: Model, unloaded: bool) -> None:
        if unloaded:
            self.factors.detach()


def _way(base_model: nn.Module, key: str, timeline: Timeline, clock: Clock, dtype: torch.dtype) -> Way:
    module, parameter = _module(base_model, key)
    way = way_of(module, parameter, timeline)
    if way is None:
        raise ValueError(
            f"{key} is in a {type(module).__name__}, where {timeline[-1].step.kind} cannot be on for only part of "
            f"sampling{' or of the picture' if timeline[-1].region else ''}; set start to 0 and end to 1"
            f"{', and take the mask out of its row' if timeline[-1].region else ''}"
        )
    return way(timeline, parameter, clock, dtype)


def _hashed(timed: Timed) -> tuple:
    """The same as before there were regions for what is on in all of the picture."""
    return (*timed[:2], timed.region.digest) if timed.region else timed[:2]


def _module(base_model: nn.Module, key: str) -> tuple[nn.Module, str]:
    path, _, parameter = key.rpartition(".")
    return base_model.get_submodule(path), parameter


def _compute_dtype(base_model: Any) -> torch.dtype:
    """Return the dtype that most layers multiply in."""
    own = base_model.get_dtype() if hasattr(base_model, "get_dtype") else None
    dtype = getattr(base_model, "manual_cast_dtype", None) or own
    return dtype if dtype in _COMPUTED_IN else torch.float32
