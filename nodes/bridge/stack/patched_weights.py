"""Reads what patches, and our LoRAs beside the layers, make of a MODEL's or CLIP's weights; nothing is applied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import comfy.lora
import torch
from torch import Tensor

from ....lora_core.low_rank import LowRank
from ....lora_core.stack.chain import Step, applied
from ..host.device import has_fp64
from ..host.wires import Model
from ..model.spans import ALWAYS
from ..model.weights import base_weight, stored
from .bypass_injection import hung
from .bypasses import Bypass, Way
from .quick_patchers import FusedLoRA


@dataclass(frozen=True)
class Patched:
    """Layers as sampling would see them. Nothing is kept, and nothing of the model is changed. `prefix` is what our
    names have before its own."""

    patcher: Model
    name: str
    prefix: str = ""

    def check(self) -> None:
        """Raises ValueError when the model has changes that no LoRA can have."""
        ways, foreign = hung(self.patcher)
        if foreign := [*foreign, *self.patcher.weight_wrapper_patches]:
            raise ValueError(
                f"{self.name} has changes outside its weights ({', '.join(foreign)}), which only the node that made "
                "them can read; remove that node, or load its LoRA with Load LoRA Stack"
            )
        timed = [timed for each in ways for way in each.values() for timed in way.timeline]
        if any(each.region for each in timed):
            raise ValueError(
                f"{self.name} has LoRAs that are on in only part of the picture, which a LoRA file cannot contain; "
                "remove mask from their rows"
            )
        if any(each.span != ALWAYS for each in timed):
            raise ValueError(
                f"{self.name} has LoRAs that are on for only part of sampling, which a LoRA file cannot contain; "
                "remove start and end from their rows"
            )

    def branches(self, key: str) -> list[LowRank]:
        """Return the corrections that run beside a weight, which stays as it is."""
        branches = (way for way in self._beside.get(key, ()) if isinstance(way, Bypass))
        changes = (timed.step.change for way in branches for timed in way.timeline)
        return [term for change in changes if isinstance(change, tuple) for term in change]

    def corrections(self, key: str) -> list[Step]:
        """Return the steps that a parameter goes through, after its patches, whenever the model computes with it."""
        others = (way for way in self._beside.get(key, ()) if not isinstance(way, Bypass))
        return [timed.step for way in others for timed in way.timeline]

    @cached_property
    def _beside(self) -> dict[str, list[Way]]:
        found: dict[str, list[Way]] = {}
        for ways in hung(self.patcher)[0]:
            for key, way in ways.items():
                found.setdefault(key, []).append(way)
        return found

    def parameters(self) -> list[str]:
        names = [name for name, value in self.patcher.model.named_parameters() if value.is_floating_point()]
        return [name for name in names if self.prefix or name.startswith("diffusion_model.")]

    def same(self, other: Patched, key: str) -> bool:
        """Return whether both have the very same tensor before any patch."""
        return stored(self.patcher, key) is stored(other.patcher, key)

    def is_changed(self, key: str) -> bool:
        return bool(self._patches(key) or self.corrections(key))

    def sums(self, key: str) -> list[LowRank] | None:
        """The changes of a weight as low-rank corrections, those beside it included; None where one is something
        else."""
        if self.corrections(key):
            return None
        terms = self.branches(key)
        for strength, value, strength_model, offset, function in self._patches(key):
            if type(value) is not FusedLoRA or (strength_model, offset, function) != (1.0, None, None):
                return None
            terms += value.terms(strength)
        return terms

    def read(self, key: str, device: torch.device, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a copy with its patches and corrections, without branches. In fp32; in fp64 where there are any, which
        are small beside the weight, and the device has it. Raises ValueError when it is not of that shape."""
        weight, patches = base_weight(self.patcher, key, device), self._patches(key)
        if shape is not None and weight.shape != shape:
            raise ValueError(f"{self.name} stores {key} as {tuple(weight.shape)}, which only its own loader can read; "
                             "load the model with a loader of ComfyUI")  # fmt: skip
        weight = weight.to(torch.float64 if self.is_changed(key) and has_fp64(device) else torch.float32, copy=True)
        weight = comfy.lora.calculate_weight(patches, weight, key) if patches else weight
        return applied(weight, self.corrections(key))

    def _patches(self, key: str) -> list[tuple]:
        return self.patcher.patches.get(key, [])


def less(terms: Iterable[LowRank], others: Iterable[LowRank]) -> list[LowRank]:
    """Return what a sum of corrections has over another. Factors that both have are there once, or not at all."""
    scales: defaultdict[tuple[int, int], float] = defaultdict(int)
    pairs: dict[tuple[int, int], LowRank] = {}
    for sign, each in ((1, terms), (-1, others)):
        for term in each:
            key = id(term.lora_A), id(term.lora_B)
            pairs[key], scales[key] = term, scales[key] + sign * term.scaling
    return [replace(pairs[key], alpha=scale * pairs[key].rank) for key, scale in scales.items() if scale]
