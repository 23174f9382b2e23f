"""Finds what other nodes have put on a MODEL to act in sampling: served in training as samplers serve it, and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, ValuesView
from functools import cached_property
from types import CodeType, TracebackType
from typing import Any
from uuid import uuid4

import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP, merge_nested_dicts
from torch import Tensor

from ..host.wires import Model
from .attention import OVERRIDE

_SCHEDULE = 20  # steps of the sampling that a forward is told to be part of
_INSIDE = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)  # what one forward is wrapped in
_AROUND = (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH)
_OURS = __name__.rpartition(".model.")[0] + "."  # the bridge
_COMPILED = "torch.compile"  # the key under which ComfyUI runs a compiled copy of the layers, without hooks


class Guests:
    """Patches, wrappers and options of one MODEL.

    Left out are replaced attention kernels, which have no backward; the compiled model; and wrappers of a key that also
    wraps sampling as a whole, such as EasyCache, which spare forwards and say nothing of a single one.
    """

    def __init__(self, patcher: Model):
        options = patcher.model_options.get("transformer_options", {})
        self._options = {name: value for name, value in options.items() if name not in (OVERRIDE, "wrappers")}
        self._function: Any = patcher.model_options.get("model_function_wrapper")
        self._wrappers = _of_a_forward(merge_nested_dicts(options.get("wrappers", {}), patcher.wrappers))
        self._sampling = patcher.get_model_object("model_sampling")
        network = patcher.model.diffusion_model
        self.look_at_sigma = bool(self.calls()) or getattr(network, "time_r_in", None) is not None

    def arguments(
        self, sigma: Tensor, conds: Mapping[str, Any], level: float | None, rehearsed: bool = False
    ) -> dict[str, Any]:
        """Return the arguments of `call`, with the options that a sampler gives. `level` is the sigma of all samples;
        None where nothing looks at it. `rehearsed`: the model's own schedule has no values."""
        schedule = [level, 0.0] if rehearsed else self._schedule if level is not None else []
        given = {"cond_or_uncond": [0], "uuids": [uuid4()], "sigmas": sigma}
        if level is not None:
            around = [*(s for s in schedule if s > level), level, *(s for s in schedule if s < level)]
            given["sample_sigmas"] = torch.tensor(around, device=sigma.device)
        own = conds.get("transformer_options", {})
        return {**conds, "transformer_options": {**self._options, "wrappers": self._wrappers, **given, **own}}

    def call(self, base_model: BaseModel, x_t: Tensor, sigma: Tensor, conds: dict[str, Any]) -> Tensor:
        """`apply_model` as a sampler calls it with one prompt, its arguments those that were made by `arguments`."""
        if self._function is None:
            return base_model.apply_model(x_t, sigma, **conds)
        args = {"input": x_t, "timestep": sigma, "c": conds, "cond_or_uncond": [0]}
        return self._function(base_model.apply_model, args)

    def calls(self) -> list[Callable]:
        """Return all that may act in a forward."""
        found = [] if self._function is None else [self._function]
        patches, replaced = self._options.get("patches", {}), self._options.get("patches_replace", {})
        nests = [*patches.values(), *(each.values() for each in replaced.values())]
        nests += [each for of_kind in self._wrappers.values() for each in of_kind.values()]
        return found + [call for each in nests for call in _flat(each)]

    def names(self) -> list[str]:
        """Return the names of those that other nodes have put there."""
        others = [call for call in self.calls() if not (getattr(call, "__module__", "") or "").startswith(_OURS)]
        return list(dict.fromkeys(map(name_of, others)))

    def blamed(self, error: BaseException) -> str:
        """Return the name of the one in which an error was raised; empty when it was in none."""
        codes = {code: name_of(call) for call in self.calls() for code in _codes(call)}
        return next((codes[code] for code in _raised_in(error.__traceback__) if code in codes), "")

    @cached_property
    def _schedule(self) -> list[float]:
        """Return the sigmas of an ordinary sampler, falling to 0."""
        return comfy.samplers.calculate_sigmas(self._sampling, "simple", _SCHEDULE).tolist()


def name_of(call: Callable) -> str:
    """`Node (module)`: whose function it is, as far as Python tells."""
    named = call if hasattr(call, "__qualname__") else type(call)
    function = getattr(call, "__func__", named)
    owner = function.__qualname__.split(".<locals>")[0].removesuffix(".execute")
    return f"{owner} ({function.__module__})"


def _of_a_forward(wrappers: Mapping[str, Mapping]) -> dict[str, dict]:
    around = {key for kind in _AROUND for key in wrappers.get(kind, {})} - {None}
    left_out = {_COMPILED, *around}
    return {
        kind: {key: calls for key, calls in wrappers.get(kind, {}).items() if key not in left_out} for kind in _INSIDE
    }


def _flat(value: Any) -> Iterator[Callable]:
    """Patches come alone, in lists, and in pairs with the class that they are for."""
    if isinstance(value, (list, tuple, ValuesView)):
        for item in value:
            yield from _flat(item)
    elif callable(value) and not isinstance(value, type):
        yield value


def _codes(call: Callable) -> list[CodeType]:
    """Return the code of a function, of a method, or of the methods of an object that is called."""
    function = getattr(call, "__func__", call)
    if code := getattr(function, "__code__", None):
        return [code]
    methods = (getattr(type(call), name, None) for name in dir(type(call)))
    return [own for method in methods if (own := getattr(method, "__code__", None))]


def _raised_in(trace: TracebackType | None) -> Iterator[CodeType]:
    while trace is not None:
        yield trace.tb_frame.f_code
        trace = trace.tb_next
