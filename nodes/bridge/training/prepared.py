"""Holds what a run is made of when it begins: what was encoded, and the model with what is changed on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ....lora_core.adapter import Adapter
from ....lora_core.files import metadata
from ....lora_core.training.plan import Measures
from ....lora_core.training.reality import Expected
from ....lora_core.training.state import TrainState
from ....lora_core.training.strengths import StrengthCurve
from ....lora_core.training.trainer import Sample
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..model.references import Beside
from ..quiet.directions import Found
from .previews import PreparedPreviews


@dataclass(frozen=True)
class Material:
    """All that is encoded before the model is loaded, and what a LoRA to go on from has for text encoders."""

    encoded: dict[str, list]
    neutral: dict[str, list]
    latents: list[torch.Tensor]
    priors: list[dict]
    references: list[Beside]
    shown: PreparedPreviews | None
    carried: Adapter
    facts: metadata.Facts


@dataclass(frozen=True)
class Prepared:
    """A run that can begin: the loaded model, the measures with which it is, and what is changed."""

    patcher: Model
    denoiser: ComfyDenoiser
    samples: list[Sample]
    state: TrainState
    material: Material
    quiet: Found | None  # the directions that it is kept out of
    measures: Measures = Measures()
    expected: Expected | None = None  # of a step
    usage: dict[str, Any] = field(default_factory=dict)  # facts of how to use it, known at the end

    def adapter(self) -> Adapter:
        """Return the LoRA as it is now."""
        with self.state.judged():
            own = self.state.factors.adapter()
        carried = self.material.carried
        adapter = Adapter({**own.layers, **carried.layers}, others={**own.others, **carried.others})
        return labelled(replace(self.material.facts, **self.usage), adapter, self.state.step)

    def suggests(self, curve: StrengthCurve) -> None:
        """Tell in the header from now on at what strength to use the LoRA."""
        if found := curve.suggested():
            self.usage.update(usage_hint=curve.sentence(), strength=found.strength)


def labelled(facts: metadata.Facts, adapter: Adapter, step: int) -> Adapter:
    """With the header of what had come out at that step."""
    return replace(adapter, metadata=metadata.build(replace(facts, steps=step), adapter))
