"""Holds what all training steps share: examples, the loss of a few of them, and our session around a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import torch
from _measure import Step, Variant
from harness.session import training_session
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.branch import Branch
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.state import TrainState
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.trainer import Sample, make_optimizer, train
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from torch import Tensor

RANK = 16
_NONE: Mapping[str, Branch] = MappingProxyType({})


@dataclass(frozen=True)
class Case:
    """Examples, each with its CONDITIONING, and how many of them a step is given; `load` makes a MODEL."""

    load: Callable[[], Any]
    latents: Tensor
    conditioning: list[list]
    batch: int

    def model(self) -> Any:
        """A MODEL of its own, as loader nodes leave it."""
        with torch.inference_mode():
            return self.load()

    def samples(self, denoiser: ComfyDenoiser) -> list[Sample]:
        pairs = zip(self.latents, self.conditioning, strict=True)
        return [Sample(latent, denoiser.condition(text, latent), None) for latent, text in pairs]

    def loss(self, denoiser: ComfyDenoiser, samples: list[Sample]) -> Tensor:
        """Return the loss of the first examples; the gradient reaches their latents."""
        x0 = torch.stack([sample.latent for sample in samples[: self.batch]]).to(denoiser.device).requires_grad_()
        sigma = denoiser.sigma(torch.rand(self.batch)).to(x0)
        conditions = [sample.condition for sample in samples[: self.batch]]
        return objective.loss(denoiser, x0, torch.randn_like(x0), sigma, conditions, ObjectiveConfig())


def in_session(model, step: Step, checkpointing: bool = False, branches: Mapping[str, Branch] = _NONE) -> Variant:
    @contextmanager
    def session() -> Iterator[Step]:
        with training_session(model, checkpointing), attached(branches):
            yield step

    return session


def frozen(case: Case, model, checkpointing: bool = False) -> Variant:
    """A forward and a backward to the input, without a LoRA or an optimiser."""
    denoiser = ComfyDenoiser(model)
    samples = case.samples(denoiser)
    return in_session(model, lambda: case.loss(denoiser, samples).backward(), checkpointing)


def ours(case: Case, model, preset: str, checkpointing: bool = False) -> Variant:
    """A step of Train LoRA."""
    config = TrainConfig(steps=1_000_000, batch_size=case.batch, caption_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    layers = select(model.model.diffusion_model, LoraConfig(RANK, RANK, preset))
    factors = Factors(layers, RANK, RANK, generator, device=model.load_device)
    batches = Batches([tuple(latent.shape) for latent in case.latents], case.batch, 1, generator)
    state = TrainState(factors, batches, generator, make_optimizer(factors, config))
    denoiser = ComfyDenoiser(model)
    samples = case.samples(denoiser)
    steps = train(config, state, denoiser, samples)
    return in_session(model, lambda: next(steps), checkpointing, factors.branches)
