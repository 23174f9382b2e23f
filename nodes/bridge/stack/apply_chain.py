"""Put a stack on a MODEL and CLIP: into the weights where that is exact, beside the layers where rounding would lose
it.

Either way it is inside ComfyUI's own life cycle of patches and injections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, TypeVar, cast, get_args
from uuid import uuid4

import comfy.model_management
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.kinds import Correction
from ....lora_core.stack.chain import Step
from ..host.wires import Clip, Model
from ..model.spans import Timed
from .bypass_injection import Beside, way_of
from .bypasses import Asked, Bypass, Timeline
from .quick_patchers import FusedLoRA, quicken

Apply = Literal["auto", "weights", "beside"]
APPLY = get_args(Apply)
Text = TypeVar("Text", bound=Clip | None)


class KindPatch(WeightAdapterBase):
    """Any other correction as a patch. `weights` is (correction, strength, tensors): core moves what it finds there."""

    name = "lora_loom"
    weights: tuple[Correction, float, Sequence[Tensor]]

    def __init__(self, loaded_keys: set[str], weights: tuple[Correction, float, Sequence[Tensor]]):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        return self.weights[0].new_shape

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any, function: Any,
        intermediate_dtype: torch.dtype = torch.float32, original_weight: Any = None,
    ) -> Tensor:  # fmt: skip
        correction, own_strength, tensors = self.weights
        moved = (comfy.model_management.cast_to_device(tensor, weight.device, torch.float32) for tensor in tensors)
        return correction.with_tensors(moved).apply_to(weight, strength * own_strength)


@dataclass
class How:
    """Says where layers were changed, for the report."""

    weights: int = 0
    beside: Counter[str] = field(default_factory=Counter)
    anew: int = 0
    slow: str = ""

    def __str__(self) -> str:
        lines = [f"{self.weights} weights changed"] if self.weights else []
        lines += [f"{count} layers applied beside the weight ({why})" for why, count in self.beside.items()]
        if self.anew:
            lines.append(f"{self.anew} of these are computed again in every step, which takes time")
        if self.slow:
            lines.append(
                f"the loader of this model patches weights itself ({self.slow}), so a changed strength reloads the "
                "whole model"
            )
        return "; ".join(lines)


def apply_chain(
    model: Model, clip: Text, steps: Mapping[str, Sequence[Step]], apply: Apply = "auto",
    spans: Mapping[str, Timeline] | None = None,
) -> tuple[Model, Text, How]:  # fmt: skip
    """Clones of MODEL and CLIP with several steps in order on each weight, and where they went.

    `auto` writes weights of fp32, bf16 and fp16, and runs beside those of fewer bits. What `spans` holds is on for a
    part of sampling or of the picture; it runs beside its layer in any case, and comes after all that is always on.
    """
    model, clip, how = model.clone(), cast(Text, clip.clone() if clip is not None else None), How()
    _put(model, {n: chain for n, chain in steps.items() if not n.startswith(TEXT_PREFIX)}, spans or {}, apply, how)
    if clip is not None:
        text = {name: chain for name, chain in steps.items() if name.startswith(TEXT_PREFIX)}
        _put(clip.patcher, {n.removeprefix(TEXT_PREFIX): chain for n, chain in text.items()}, {}, apply, how)
    return model, clip, how


def _put(
    patcher: Model, steps: Mapping[str, Sequence[Step]], spans: Mapping[str, Timeline], apply: Apply, how: How
) -> None:  # fmt: skip
    keys = _keys(patcher, (*steps, *spans))
    always = {keys[name]: chain for name, chain in steps.items()}
    reasons = {key: _reason(patcher, key, chain, apply) for key, chain in always.items()}
    written = {key: chain for key, chain in always.items() if not reasons[key]}
    timelines = {key: [Timed(step) for step in always[key]] for key, reason in reasons.items() if reason}
    for name, timeline in spans.items():
        timelines.setdefault(keys[name], []).extend(timeline)
    how.weights += len(written)
    how.beside.update(reasons.get(key) or _part(timeline) for key, timeline in timelines.items())
    if timelines:
        beside = Beside(patcher, timelines)
        how.anew += sum(not isinstance(way, Bypass) for way in beside.ways.values())
        beside.attach(patcher, f"lora_loom_{uuid4().hex}")
    _add(patcher, written)
    if not quicken(patcher) and written:
        how.slow = type(patcher).__name__


def _part(timeline: Timeline) -> str:
    return "on for part of the picture" if any(each.region for each in timeline) else "on for part of sampling"


def _reason(patcher: Model, key: str, chain: Sequence[Step], apply: Apply) -> str:
    """Return why a parameter's correction runs beside it; empty when it is written into it. Layers of third parties
    apply kinds other than plain LoRA to the weight that they have dequantised, where nothing is lost."""
    if apply == "weights":
        return ""
    path, _, parameter = key.rpartition(".")
    module = patcher.model.get_submodule(path)
    if way_of(module, parameter, [Timed(step) for step in chain]) in (None, Asked):
        return ""
    return _kind_of_few_bits(module, parameter) or ("as chosen" if apply == "beside" else "")


def _kind_of_few_bits(module: nn.Module, parameter: str) -> str:
    """Name what a parameter is stored as, where that cannot hold what a LoRA changes; empty where it can."""
    stored = getattr(module, parameter)
    if isinstance(stored, QuantizedTensor):
        return f"{module.quant_format} weights"
    kind = getattr(module, f"{parameter}_comfy_model_dtype", None) or stored.dtype
    if kind.is_floating_point and kind.itemsize > 1:
        return ""
    packed = getattr(getattr(stored, "tensor_type", None), "name", "")  # as tensors of GGUF files call what they hold
    return f"GGUF ({packed})" if packed else f"{str(kind).removeprefix('torch.')} weights"


def _add(patcher: Model, steps: Mapping[str, Sequence[Step]]) -> None:
    """One `add_patches` call for the first steps of all weights, one for the second, and so on."""
    for turn in zip_longest(*([(key, step) for step in chain] for key, chain in steps.items())):
        patches = {key: _patch(step) for key, step in filter(None, turn)}
        taken = patcher.add_patches(patches, 1.0)
        if len(taken) != len(patches):
            missing = sorted(set(patches) - set(taken))[:3]
            raise ValueError(f"ComfyUI took {len(taken)} of {len(patches)} patches; missing {missing}")


def _keys(patcher: Model, names: Iterable[str]) -> dict[str, str]:
    """A layer's name means its weight; anything else is a parameter's own name."""
    held = patcher.model.state_dict()
    return {name: f"{name}.weight" if f"{name}.weight" in held else name for name in names}


def _patch(step: Step) -> WeightAdapterBase:
    if isinstance(step.change, tuple):
        return FusedLoRA.of(step.change)
    return KindPatch(set(), (step.change, step.strength, tuple(step.change.tensors())))
