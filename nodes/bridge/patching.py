"""Put a stack of adapters on a MODEL and CLIP: one fused patch per weight, inside ComfyUI's own patch life cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.weight_adapter.lora import LoRAAdapter

from ...lora_core.adapter import Adapter
from ...lora_core.low_rank import LowRank
from .keys import TEXT, NameTable, Resolved


class FusedLoRA(LoRAAdapter):
    """ComfyUI's plain LoRA patch, applied as one in-place `addmm_`. State lives in `weights` alone, as core requires.

    `weights` is (up, down, None, None, None, None) with all strengths and alphas folded into `up`.
    """

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32, original_weight=None
    ):
        up, down = (comfy.model_management.cast_to_device(f, weight.device, intermediate_dtype) for f in self.weights[:2])
        return LowRank(down, up, float(down.shape[0])).add_to_(weight, strength)


@dataclass(frozen=True)
class StackEntry:
    """One adapter of a stack: where it came from, its layers in the model's names, and its two strengths."""

    source: str
    resolved: Resolved
    strength_model: float
    strength_text: float


def apply_stack(model, clip, entries: Sequence[StackEntry]):
    """Clones of MODEL and CLIP with the exact sum of all entries on them, each in one `add_patches` call."""
    layers = fused_layers(entries)
    model, clip = model.clone(), clip.clone() if clip is not None else None
    _add(model, {name: layer for name, layer in layers.items() if not name.startswith(TEXT)}, "")
    if clip is not None:
        _add(clip, {name: layer for name, layer in layers.items() if name.startswith(TEXT)}, TEXT)
    return model, clip


def fused_layers(entries: Sequence[StackEntry]) -> dict[str, LowRank]:
    """The sum of the entries at their strengths, layer by layer; layers at strength 0 are absent."""
    parts: dict[str, list[LowRank]] = {}
    for entry in entries:
        for name, layer in entry.resolved.adapter.layers.items():
            strength = entry.strength_text if name.startswith(TEXT) else entry.strength_model
            if strength:
                parts.setdefault(name, []).append(layer.scaled(strength))
    return {name: LowRank.concat(layers) for name, layers in parts.items()}


def _add(patcher, layers: dict[str, LowRank], prefix: str) -> None:
    patches = {
        f"{name.removeprefix(prefix)}.weight": FusedLoRA(set(), (layer.lora_B, layer.lora_A, None, None, None, None))
        for name, layer in layers.items()
    }
    taken = patcher.add_patches(patches, 1.0) if patches else []
    if len(taken) != len(patches):
        raise ValueError(f"ComfyUI took {len(taken)} of {len(patches)} patches; missing {sorted(set(patches) - set(taken))[:3]}")


def report(entries: Sequence[StackEntry], table: NameTable) -> str:
    """One line per entry: matched and unmatched keys, and what follows from them."""
    lines = []
    for entry in entries:
        matched, unmatched = len(entry.resolved.adapter.layers), entry.resolved.unmatched
        line = f"{entry.source}: {matched} layers at {entry.strength_model:g} / {entry.strength_text:g}"
        if unmatched:
            text_only = not table.has_text and all(name.startswith(("lora_te", "text_encoder")) for name in unmatched)
            reason = "text layers, connect CLIP to use them" if text_only else f"not in this model, for example {unmatched[0]}"
            line += f"; {len(unmatched)} keys not applied ({reason})"
        lines.append(line)
    return "\n".join(lines) or "no LoRA is switched on"
