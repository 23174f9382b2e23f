"""Training without ComfyUI: a network of two layers, and runs of it as short as they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from lora_loom.lora_core.quiet.directions import Quieting
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.config import OptimizerConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.optimizers import OPTIMIZERS
from lora_loom.lora_core.training.state import TrainState
from lora_loom.lora_core.training.tasks import PICTURES, Task
from lora_loom.lora_core.training.trainer import Sample, StepResult, make_optimizer, train
from torch import Tensor, nn

CHANNELS = 4
SHAPES = [(6, 6)] * 5 + [(4, 8)] * 3
CONFIG = TrainConfig(
    steps=12, learning_rate=3e-3, batch_size=2, accumulation=2, seed=11, optimizer=OptimizerConfig(warmup=3),
    caption_dropout=0.3, objective=ObjectiveConfig(timesteps="logit_normal", weighting="min_snr"),
)  # fmt: skip


class Toy(nn.Module):
    """A frozen flow network on channels, whose only way to learn is its low-rank paths."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(CHANNELS + 1, 16), nn.Linear(16, CHANNELS)
        generator = torch.Generator().manual_seed(7)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.requires_grad_(False)
        self.calls = 0
        self.on_call: Callable[[int], None] = lambda _: None
        self.seen: list[list[Any]] = []

    def sigma(self, u: Tensor) -> Tensor:
        return u.clamp(0.01, 0.99)

    def noised(self, x0, noise, sigma):
        level = sigma.view(-1, 1, 1, 1)
        return (1 - level) * x0 + level * noise

    def denoised(self, x_t, sigma, conditions):
        self.calls += 1
        self.seen.append(list(conditions))
        self.on_call(self.calls)
        level = sigma.view(-1, 1, 1, 1)
        told = torch.tensor(conditions).view(-1, 1, 1, 1).expand(-1, *x_t.shape[2:], 1)
        hidden = torch.tanh(self.enter(torch.cat([x_t.movedim(1, -1), told], -1)))
        return x_t - level * self.leave(hidden).movedim(-1, 1)

    def tokens(self, shape):
        return float(shape[-1] * shape[-2])

    def output_scale(self, sigma):
        return -sigma

    def snr(self, sigma):
        return ((1 - sigma) / sigma) ** 2


class Run:
    """One fresh run from its configuration, with its network attached while it steps."""

    def __init__(
        self, config: TrainConfig = CONFIG, samples: list[Sample] | None = None, last: str = "leave",
        text: tuple[float, int] = (0.02, 2), options: LayersConfig | None = None,
        quiet: Mapping[str, Quieting] | None = None, task: Task = PICTURES,
    ):  # fmt: skip
        self.config, self.toy, self.samples = config, Toy(), samples or make_samples()
        self.relief: Callable[[RuntimeError], Callable[[], object] | None] = lambda _: None
        self.again = lambda: Run(config, self.samples, last, text, options, quiet, task)
        self.task = task
        generator, (text_rate, text_rank) = torch.Generator().manual_seed(config.seed), text
        layers = {"enter": self.toy.enter, last: self.toy.leave}
        factors = Factors(layers, 3, 3.0, generator, text_rank, options=options, quiet=quiet)
        batches = Batches([tuple(s.latent.shape) for s in self.samples], config.batch_size, 1, generator)
        self.state = TrainState(factors, batches, generator, make_optimizer(factors, config, text_rate))

    def steps(self) -> Iterator[StepResult]:
        with attached(self.state.factors.branches):
            relief = lambda error: self.relief(error)  # noqa: E731
            yield from train(self.config, self.state, self.toy, self.samples, relief=relief, task=self.task)

    def go(self, count: int | None = None) -> list[StepResult]:
        running, results = self.steps(), []
        while count is None or len(results) < count:
            result = next(running, None)
            if result is None:
                break
            results.append(result)
        running.close()
        return results

    def bytes(self) -> bytes:
        return self.state.factors.flat.numpy().tobytes()


def make_samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    return [
        Sample(torch.randn(CHANNELS, *shape, generator=generator), float(i), -float(i) - 1)
        for i, shape in enumerate(SHAPES)
    ]


def config_of(name: str, **choices: Any) -> TrainConfig:
    """CONFIG with another optimiser, at a rate that suits it."""
    schedule = "constant" if OPTIMIZERS[name].averages else "cosine"
    rate = 1.0 if OPTIMIZERS[name].rate is None else CONFIG.learning_rate
    return replace(CONFIG, learning_rate=rate, optimizer=OptimizerConfig(name, schedule, warmup=3, **choices))


def make_pairs() -> list[Sample]:
    """Each liked picture is brighter than its disliked one by the same in all channels."""
    return [replace(each, latent=torch.stack([each.latent + 0.5, each.latent - 0.5])) for each in make_samples()]
