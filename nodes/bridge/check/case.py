"""One network of a check in training: factors that change something, fixed pictures and captions."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....lora_core.nested_hash import bytes_of
from ....lora_core.training.batches import Batches
from ....lora_core.training.config import LoraConfig, OptimizerConfig, TrainConfig
from ....lora_core.training.inject import Factors, attached
from ....lora_core.training.layers import LayersConfig
from ....lora_core.training.pairs import grad_of
from ....lora_core.training.plan import Measures
from ....lora_core.training.replayed import Replayed
from ....lora_core.training.state import TrainState
from ....lora_core.training.tasks import add_gradient
from ....lora_core.training.trainer import Sample, make_optimizer, train
from ..host.device import counter
from ..model.denoiser import ComfyDenoiser
from ..model.trained_layers import chosen_layers
from ..model.weights import ComfyWeightReader
from ..session.session import loaded, trainable
from .networks import Network

PLAIN = Measures(checkpointing=False)
RANK, LENGTHS = 4, (3, 5)  # tokens of the two captions
_LEVELS = (0.4, 0.7)


@dataclass(frozen=True)
class Case:
    """A network on one device in one type."""

    network: Network
    patcher: Any

    @classmethod
    def of(cls, network: Network, home: torch.device, dtype: torch.dtype = torch.float32) -> Case:
        with torch.inference_mode():
            return cls(network, network.build(home, dtype))

    @contextmanager
    def training(
        self, measures: Measures = PLAIN, config: TrainConfig | None = None, dora: bool = False,
        lora: LoraConfig | None = None, needed: float = 0.0, lengths: tuple[int, ...] = LENGTHS,
    ) -> Iterator[Training]:  # fmt: skip
        """A session of Train LoRA on it, at its first step."""
        config = config or TrainConfig(batch_size=len(lengths))
        lora = lora or LoraConfig(RANK, RANK, "all-linear", options=LayersConfig(dora=dora))
        with trainable(self.patcher) as patcher, loaded(patcher, measures, needed):
            denoiser, generator = ComfyDenoiser(patcher), torch.Generator().manual_seed(config.seed)
            layers, _ = chosen_layers(patcher.model.diffusion_model, None, lora, None)
            factors = Factors(
                layers, lora.rank, lora.alpha, generator, device=patcher.load_device, options=lora.options,
                frozen=ComfyWeightReader(),
            )  # fmt: skip
            _loosened(factors)
            samples = [_sample(denoiser, self.network, length, n) for n, length in enumerate(lengths)]
            batches = Batches([sample.latent.shape for sample in samples], config.batch_size, 1, generator)
            state = TrainState(factors, batches, generator, make_optimizer(factors, config))
            with attached(factors.branches):
                yield Training(config, state, denoiser, samples, patcher)

    def fingerprint(self) -> str:
        """Return a hash of every weight, to the bit; what a clone has changed is undone first."""
        comfy.model_management.free_memory(1e30, self.patcher.load_device)
        digest = hashlib.sha256()
        for name, value in self.patcher.model.state_dict().items():
            digest.update(name.encode() + bytes_of(value))
        return digest.hexdigest()


@dataclass(frozen=True)
class Training:
    """Holds the parts of a session while a check looks at them."""

    config: TrainConfig
    state: TrainState
    denoiser: ComfyDenoiser
    samples: list[Sample]
    patcher: Any

    def gradient(self, *chosen: int) -> tuple[Tensor, Tensor]:
        """Losses and the flat gradient of a batch of these samples, all of them unless given, at fixed noise: fp64 on
        the CPU."""
        picked = chosen or tuple(range(len(self.samples)))
        flat, device = self.state.factors.flat, self.denoiser.device
        grad_of(flat).zero_()
        x0 = torch.stack([self.samples[i].latent for i in picked])
        noise = torch.stack([_noise(x0.shape[1:], 50 + i) for i in picked])
        sigma = self.denoiser.sigma(torch.tensor([_LEVELS[i % 2] for i in picked])).to(device)
        conditions = [self.samples[i].condition for i in picked]
        losses, _ = add_gradient(
            self.config, self.state.factors, self.denoiser, x0.to(device), noise.to(device), sigma, conditions, []
        )
        return losses.detach().cpu().double(), grad_of(flat).cpu().double()

    def steps(self, count: int, gradient: Replayed | None = None) -> Tensor:
        """So many more steps of the training loop; the factors after them, a copy on the CPU."""
        steps = train(self.config, self.state, self.denoiser, self.samples, gradient=gradient)
        for _, _ in zip(range(count), steps, strict=False):
            pass
        return self.state.factors.flat.detach().cpu().clone()


def optimiser(name: str) -> TrainConfig:
    """Return the config of a short run with that optimiser."""
    constant = OptimizerConfig(name, schedule="constant")
    rate = constant.usual_rate(1e-3)
    return TrainConfig(steps=10, learning_rate=rate, batch_size=len(LENGTHS), optimizer=constant)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; infinite where something is not finite."""
    found, wanted = (each.detach().cpu().double() for each in (found, wanted))
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def held(device: torch.device) -> int | None:
    """Bytes of tensors on the device, once nothing is loaded there; None where torch does not count them."""
    count = counter(device, "memory_allocated")
    comfy.model_management.unload_all_models()
    gc.collect()
    return None if count is None else count(device)


@torch.no_grad()
def _loosened(factors: Factors) -> None:
    """B drawn too: as it begins, at zero, the gradient of A would be zero and every mistake of it unseen."""
    generator = torch.Generator().manual_seed(7)
    for branch in factors.trained.values():
        branch.lora_B.copy_(torch.randn(branch.lora_B.shape, generator=generator) * 0.05)


def _sample(denoiser: ComfyDenoiser, network: Network, length: int, seed: int) -> Sample:
    latent = _noise(network.latent, seed)
    caption, empty = (denoiser.condition(network.caption(count, seed), latent) for count in (length, 1))
    return Sample(latent, caption, empty)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
