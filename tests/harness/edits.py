"""Edits to learn on a small FLUX.1 without a single picture: latents of one colour each, which the reference alone
tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from torch import Tensor

from harness.calls import encode

LEARNED, HELD = range(32), range(32, 40)
OTHERS = (*HELD[1:], HELD[0])
_WORDS = 8  # of the 256 tokens of a caption that says nothing


class Edits:
    """A problem inside an open training session, whose `factors` are to be attached. Without `references`, conditions
    have none."""

    def __init__(self, patcher: Any, clip: Any, seed: int = 0, references: bool = True):
        self.denoiser, self.draw = ComfyDenoiser(patcher), torch.Generator().manual_seed(seed)
        shape = tiny.latent_shape(patcher)
        self.latents = 2 * torch.randn(40, shape[1], 1, 1, generator=self.draw).expand(40, *shape[1:])
        ((text, values),) = encode(clip, "x", guidance=1.0)
        shown = [patcher.model.process_latent_out(latent[None]) for latent in self.latents]
        self.conditions = [
            self.denoiser.condition(
                [[text[:, :_WORDS].clone(), {**values, **({"reference_latents": [each]} if references else {})}]],
                latent,
            )
            for each, latent in zip(shown, self.latents, strict=True)
        ]
        layers = select(patcher.model.diffusion_model, LoraConfig(16, 16.0, "attention+mlp"), PREFIX)
        self.factors = Factors(layers, 16, 16.0, torch.Generator().manual_seed(seed + 1), device=self.denoiser.device)
        self.optimizer = torch.optim.AdamW([self.factors.flat], lr=1e-2, weight_decay=0)

    def step(self) -> None:
        rows = torch.randperm(len(LEARNED), generator=self.draw)[:8].tolist()
        self.factors.flat.grad.zero_()
        self._loss(rows, rows, torch.rand(8, generator=self.draw), self.draw).backward()
        self.factors.carry_back()
        self.optimizer.step()

    @torch.no_grad()
    def looked(self, shown: Sequence[int] = HELD, u: float = 0.9) -> float:
        """Return the loss of held-out pictures with the references of those that are `shown`, at one noise."""
        return float(self._loss(HELD, shown, torch.full((len(HELD),), u), torch.Generator().manual_seed(5)))

    def _loss(self, rows: Sequence[int], shown: Sequence[int], u: Tensor, draw: torch.Generator) -> Tensor:
        x0, conditions = self.latents[list(rows)], [self.conditions[row] for row in shown]
        noise, sigma = torch.randn(x0.shape, generator=draw), self.denoiser.sigma(u)
        device = self.denoiser.device
        x0, noise, sigma = (each.to(device) for each in (x0, noise, sigma))
        return objective.loss(self.denoiser, x0, noise, sigma, conditions, ObjectiveConfig())
