"""Put a stack of adapters on a MODEL and CLIP: one fused patch per weight, inside ComfyUI's own patch life cycle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import comfy.model_management
import torch
from comfy.weight_adapter import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter

from ...lora_core.adapter import TEXT_PREFIX
from ...lora_core.low_rank import LowRank
from ...lora_core.merging.chain import Step


class FusedLoRA(LoRAAdapter):
    """ComfyUI's plain LoRA patch, applied as one in-place `addmm_`. State lives in `weights` alone, as core requires.

    `weights` is (up, down, None, None, None, None) with all strengths and alphas folded into `up`.
    """

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        up, down = (
            comfy.model_management.cast_to_device(f, weight.device, intermediate_dtype) for f in self.weights[:2]
        )
        return LowRank(down, up, float(down.shape[0])).add_to_(weight, strength)


class KindPatch(WeightAdapterBase):
    """Any other correction as a patch. `weights` is (correction, strength, tensors): core moves what it finds there."""

    name = "lora_loom"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        correction, own_strength, tensors = self.weights
        moved = (comfy.model_management.cast_to_device(tensor, weight.device, torch.float32) for tensor in tensors)
        return correction.with_tensors(moved).apply_to(weight, strength * own_strength)


def apply_layers(model, clip, layers: Mapping[str, LowRank]):
    """Clones of MODEL and CLIP (which may be None) with the corrections on them, each in one `add_patches` call."""
    return apply_chain(model, clip, {name: [Step(layer)] for name, layer in layers.items()})


def apply_chain(model, clip, steps: Mapping[str, Sequence[Step]]):
    """As `apply_layers`, with several steps in order on each weight."""
    model, clip = model.clone(), clip.clone() if clip is not None else None
    _add(model, {name: chain for name, chain in steps.items() if not name.startswith(TEXT_PREFIX)})
    if clip is not None:
        text = {name: chain for name, chain in steps.items() if name.startswith(TEXT_PREFIX)}
        _add(clip.patcher, {name.removeprefix(TEXT_PREFIX): chain for name, chain in text.items()})
    return model, clip


def _add(patcher, steps: Mapping[str, Sequence[Step]]) -> None:
    """One `add_patches` call for the first steps of all weights, one for the second, and so on."""
    keys = _keys(patcher, steps)
    for turn in zip_longest(*([(name, step) for step in chain] for name, chain in steps.items())):
        patches = {keys[name]: _patch(step) for name, step in filter(None, turn)}
        taken = patcher.add_patches(patches, 1.0)
        if len(taken) != len(patches):
            missing = sorted(set(patches) - set(taken))[:3]
            raise ValueError(f"ComfyUI took {len(taken)} of {len(patches)} patches; missing {missing}")


def _keys(patcher, names: Iterable[str]) -> dict[str, str]:
    """A layer's name means its weight; anything else is a parameter's own name."""
    held = patcher.model.state_dict()
    return {name: f"{name}.weight" if f"{name}.weight" in held else name for name in names}


def _patch(step: Step) -> WeightAdapterBase:
    if isinstance(step.change, LowRank):
        return FusedLoRA(set(), (step.change.lora_B, step.change.lora_A, None, None, None, None))
    return KindPatch(set(), (step.change, step.strength, tuple(step.change.tensors())))
