"""Put a stack of adapters on a MODEL and CLIP: one fused patch per weight, inside ComfyUI's own patch life cycle."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_management
import torch
from comfy.weight_adapter.lora import LoRAAdapter

from ...lora_core.adapter import TEXT_PREFIX
from ...lora_core.low_rank import LowRank


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


def apply_layers(model, clip, layers: Mapping[str, LowRank]):
    """Clones of MODEL and CLIP (which may be None) with the corrections on them, each in one `add_patches` call."""
    model, clip = model.clone(), clip.clone() if clip is not None else None
    _add(model, {name: layer for name, layer in layers.items() if not name.startswith(TEXT_PREFIX)})
    if clip is not None:
        _add(
            clip,
            {name.removeprefix(TEXT_PREFIX): layer for name, layer in layers.items() if name.startswith(TEXT_PREFIX)},
        )
    return model, clip


def _add(patcher, layers: Mapping[str, LowRank]) -> None:
    patches = {
        f"{name}.weight": FusedLoRA(set(), (layer.lora_B, layer.lora_A, None, None, None, None))
        for name, layer in layers.items()
    }
    taken = patcher.add_patches(patches, 1.0) if patches else []
    if len(taken) != len(patches):
        raise ValueError(
            f"ComfyUI took {len(taken)} of {len(patches)} patches; missing {sorted(set(patches) - set(taken))[:3]}"
        )
