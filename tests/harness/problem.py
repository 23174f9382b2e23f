"""A training step to differentiate: the loss of random, nowhere-zero factors on one batch of two."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.start import PREFIX
from torch import Tensor


class Problem:
    """Loss and flat gradient, in a session that is open."""

    def __init__(self, patcher: Any, conditioning: list[list], preset: str = "attention+mlp") -> None:
        draw = torch.Generator().manual_seed(3)
        network = patcher.model.diffusion_model
        layers = select(network, LoraConfig(4, 4.0, preset, exclude=("final_layer*", "head*")), PREFIX)
        self.factors = Factors(layers, 4, 4.0, draw)
        with torch.no_grad():
            self.factors.flat.copy_(torch.randn(self.factors.flat.shape, generator=draw) * 0.05)
        self.denoiser = ComfyDenoiser(patcher)
        shape = tiny.latent_shape(patcher, 2, tall=2)
        self.x0, self.noise = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
        self.sigma = self.denoiser.sigma(torch.tensor([0.4, 0.7]))
        self.conditions = [self.denoiser.condition(c, x) for c, x in zip(conditioning, self.x0, strict=True)]

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
        return self.factors.flat.grad.clone()
