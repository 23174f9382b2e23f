"""What all training steps share: examples, the loss of a few of them, and our session around a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import _comfy
import torch
from _measure import Step, Variant
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.inject import Branch, attached
from lora_loom.lora_core.training.trainer import Sample
from lora_loom.nodes.bridge.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.session import training_session
from torch import Tensor

IMAGES, SHAPE = 4, (4, 16, 16)
_NONE: Mapping[str, Branch] = MappingProxyType({})


@dataclass
class Case:
    """Examples, and what a step is given of them."""

    batch: int
    dtype: torch.dtype
    latents: Tensor = field(default_factory=lambda: torch.randn(IMAGES, *SHAPE))
    texts: Tensor = field(default_factory=lambda: torch.randn(IMAGES, 1, 77, 768))

    def model(self):
        """A MODEL of its own, as loader nodes leave it."""
        with torch.inference_mode():
            return _comfy.build(_comfy.SD_TWO_LEVELS, self.dtype)

    def samples(self, denoiser: ComfyDenoiser) -> list[Sample]:
        pairs = zip(self.latents, self.texts, strict=True)
        return [Sample(latent, denoiser.condition([[text, {}]], latent), None) for latent, text in pairs]

    def loss(self, denoiser: ComfyDenoiser, samples: list[Sample]) -> Tensor:
        """Of the first examples; the gradient reaches their latents."""
        x0 = torch.stack([sample.latent for sample in samples[: self.batch]]).to(denoiser.device).requires_grad_()
        sigma = denoiser.sigma(torch.rand(self.batch)).to(x0)
        conditions = [sample.condition for sample in samples[: self.batch]]
        return objective.loss(denoiser, x0, torch.randn_like(x0), sigma, conditions, "none")


def in_session(model, step: Step, checkpointing: bool = False, branches: Mapping[str, Branch] = _NONE) -> Variant:
    @contextmanager
    def session() -> Iterator[Step]:
        with training_session(model, checkpointing), attached(branches):
            yield step

    return session
