"""Training examples as the loop takes them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .objective_config import ObjectiveConfig


@dataclass(frozen=True)
class Sample:
    """A training example as the denoiser wants it: a latent (channels, ...) and encoded conditions.

    `unconditional` is that of the empty caption, `preserved` are those of its caption with the concept replaced,
    `neutral` are those of captions that have nothing to do with it, for its latent.
    `mask` is the weight of each place of the latent in 0..1, of its shape but for one channel; None: 1 everywhere.
    `prior` tells that it shows the class, not the concept.
    `variants` show the same with other pixels or words and a latent of the same shape: each time one is drawn.
    `beside` are the shapes of what its condition holds of reference pictures.
    """

    latent: Tensor
    condition: Any
    unconditional: Any
    preserved: tuple[Any, ...] = ()
    neutral: tuple[Any, ...] = field(default=(), kw_only=True)
    mask: Tensor | None = None
    prior: bool = False
    variants: tuple[Sample, ...] = ()
    beside: tuple[tuple[int, ...], ...] = field(default=(), kw_only=True)

    @property
    def kind(self) -> Hashable:
        """Equal for samples that can share a batch."""
        shape = tuple(self.latent.shape)
        return (shape, self.beside) if self.beside else shape

    def drawn(self, generator: torch.Generator) -> Sample:
        """Itself or one of its variants, each as likely."""
        if not self.variants:
            return self
        return (self, *self.variants)[int(torch.randint(1 + len(self.variants), (), generator=generator))]


def place_weights(choices: ObjectiveConfig, batch: Sequence[Sample]) -> Tensor | None:
    """Return the loss weight of each place of the latents, (batch, 1, ...); None when it is 1 everywhere.

    Nothing is divided by a mask's size: a place that counts, counts alike in every picture.
    """
    if all(sample.mask is None and not sample.prior for sample in batch):
        return None
    masks = [torch.ones_like(sample.latent[:1]) if sample.mask is None else sample.mask for sample in batch]
    shares = [choices.prior_weight if sample.prior else 1.0 for sample in batch]
    weights = [share * (choices.unmasked + (1 - choices.unmasked) * m) for m, share in zip(masks, shares, strict=True)]
    return torch.stack(weights)
