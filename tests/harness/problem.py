"""A training step to differentiate: the loss of random, nowhere-zero factors on one batch of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tiny
import torch
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.text_encoders import TextDenoiser, text_layers, tokenized
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from torch import Tensor, nn

from harness.quiet import quieting_of


class Problem:
    """Loss and flat gradient, in a session that is open; `conditioning` is that of two captions."""

    def __init__(
        self, denoiser: ComfyDenoiser, layers: Mapping[str, nn.Module], conditioning: list[list], quiet: bool = False
    ) -> None:
        draw = torch.Generator().manual_seed(3)
        own = quieting_of(layers) if quiet else None
        self.factors = Factors(layers, 4, 4.0, draw, text_rank=4, device=denoiser.device, quiet=own)
        with torch.no_grad():
            self.factors.flat.copy_(torch.randn(self.factors.flat.shape, generator=draw) * 0.05)
        self.denoiser = denoiser
        shape = tiny.latent_shape(denoiser, 2, tall=2)
        self.x0, self.noise = (torch.randn(shape, generator=draw).to(denoiser.device) for _ in range(2))
        self.sigma = denoiser.sigma(torch.tensor([0.4, 0.7])).to(denoiser.device)
        self.conditions = [denoiser.condition(c, x) for c, x in zip(conditioning, self.x0, strict=True)]

    @classmethod
    def of_model(
        cls, patcher: Any, conditioning: list[list], preset: str = "attention+mlp", quiet: bool = False
    ) -> Problem:
        choices = LoraConfig(4, 4.0, preset, exclude=("final_layer*", "head*"))
        layers = select(patcher.model.diffusion_model, choices, PREFIX)
        return cls(ComfyDenoiser(patcher), layers, conditioning, quiet)

    @classmethod
    def of_text(cls, patcher: Any, clip: Any, captions: list[str]) -> Problem:
        """Make a problem of the text encoders' factors alone."""
        tokens = tokenized(clip, captions)
        layers = text_layers(clip.patcher.model, LoraConfig(4, 4.0, "attention+mlp"))
        return cls(TextDenoiser(patcher, clip), layers, [tokens[caption] for caption in captions])

    def _loss(self) -> Tensor:
        residual = objective.residual(self.denoiser, self.x0, self.noise, self.sigma, self.conditions)
        return residual.double().square().mean()

    @torch.no_grad()
    def loss(self) -> float:
        with attached(self.factors.branches):
            return float(self._loss())

    def gradient(self) -> Tensor:
        self.factors.flat.grad.zero_()
        with attached(self.factors.branches):  # recomputed blocks need the low-rank paths in the backward pass, too
            self._loss().backward()
        self.factors.carry_back()
        return self.factors.flat.grad.to("cpu", copy=True)

    def directions(self, gradient: Tensor) -> list[Tensor]:
        """Return the strongest entries, and a random direction that weighs all of them."""
        strongest = gradient.abs().topk(3).indices.split(1)
        one_each = [torch.zeros_like(gradient).index_fill_(0, i, 1.0) for i in strongest]
        return [*one_each, torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)) + gradient.sign()]

    @torch.no_grad()
    def slope(self, direction: Tensor, about: float) -> float:
        """Central difference, with a step that moves the loss by a ten-thousandth: far above fp32's noise, far below
        its curvature."""
        step, direction = 1e-4 * self.loss() / abs(about), direction.to(self.factors.flat.device)
        values = []
        for sign in (1, -1):
            self.factors.flat.add_(direction, alpha=sign * step)
            values.append(self.loss())
            self.factors.flat.add_(direction, alpha=-sign * step)
        return (values[0] - values[1]) / (2 * step)
