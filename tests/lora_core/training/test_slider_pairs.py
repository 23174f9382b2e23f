"""Checks a slider of pictures against equation 9 of its paper in fp64, and that what its pairs differ in is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from einops import rearrange
from harness.toy import CHANNELS, CONFIG, Run, Toy, make_pairs
from lora_loom.lora_core.data.task import LearnSliderPairs
from lora_loom.lora_core.training import validation
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.slider_pairs import PairSlider
from lora_loom.lora_core.training.slider_response import Response, measured
from lora_loom.lora_core.training.tasks import task_of
from lora_loom.lora_core.training.validation import Draw
from torch import Tensor

TASK = PairSlider(LearnSliderPairs(1.0))
PLAIN = replace(CONFIG, objective=ObjectiveConfig(), caption_dropout=0.0, accumulation=1)
TOLD = [1.0, -2.0]


class Double:
    """A toy in fp64 whose factors are not at their beginning, and two pairs."""

    def __init__(self):
        self.toy, draw = Toy().double(), torch.Generator().manual_seed(1)
        self.factors = Factors({"enter": self.toy.enter, "leave": self.toy.leave}, 3, 3.0, draw)
        self.factors.flat.add_(0.1)
        self.x0 = torch.randn(2, 2, CHANNELS, 4, 4, dtype=torch.float64, generator=draw)
        self.noise = torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64, generator=draw)
        self.sigma = torch.tensor([0.2, 0.7], dtype=torch.float64)

    @property
    def given(self) -> tuple:
        return PLAIN, self.factors, self.toy, self.x0, self.noise, self.sigma, TOLD

    def apart(self, strength: float, which: int) -> Tensor:
        """|| v(x_t) - (noise - x0) ||^2 of one side, of a network to whose weights delta_W itself is added."""
        toy = Toy().double()
        for name, own in self.factors.low_ranks().items():
            delta = own.lora_B.double() @ own.lora_A.double()
            getattr(toy, name).weight.data += strength * own.alpha / own.rank * delta
        level, x0 = self.sigma.view(-1, 1, 1, 1), self.x0[:, which]
        x_t = (1 - level) * x0 + level * self.noise
        velocity = (x_t - toy.denoised(x_t, self.sigma, TOLD)) / level
        return (velocity - (self.noise - x0)).square().flatten(1).mean(1)


def test_the_loss_is_the_papers_at_the_strength_of_the_guidance():
    double = Double()
    with attached(double.factors.branches):
        found, change = TASK.add_gradient(*double.given, [])
        torch.testing.assert_close(TASK.losses(*double.given), found)
    wanted = (double.apart(0.5, 0) + double.apart(-0.5, 1)) / 2
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert change is None and float((wanted - (double.apart(-0.5, 0) + double.apart(0.5, 1)) / 2).abs().min()) > 1e-3
    assert task_of(LearnSliderPairs(1.0)) == TASK


def test_its_gradient_is_that_of_its_loss():
    """By finite differences along directions, a share of the pictures counting as that share."""
    double = Double()
    flat = double.factors.flat
    with attached(double.factors.branches):
        TASK.add_gradient(*double.given, [], None, None, 0.5)
        grad, before = 2 * flat.grad.double(), flat.clone()
        for seed in range(4):
            way, ends = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed)), []
            for sign in (1, -1):
                with torch.no_grad():
                    flat.copy_(before + sign * 1e-3 * way)
                    ends.append(float(TASK.losses(*double.given).mean()))
            with torch.no_grad():
                flat.copy_(before)
            assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(grad @ way.double()), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"preservation": 1.0, "preserve_every": 2, "caption_dropout": 0.3}])
def test_a_run_resumes_exactly(changes: dict):
    config = replace(PLAIN, **changes)
    pairs = [replace(each, neutral=(7.0,)) for each in make_pairs()] if changes else make_pairs()
    whole, part = (Run(config, pairs, task=TASK) for _ in range(2))
    results = whole.go()
    assert part.go(5) + part.go() == results and part.bytes() == whole.bytes()


def response(run: Run) -> Response:
    """Of pairs that are not learned from."""
    draws = [Draw(i, 0.8, i) for i in range(4)]

    def measure(losses: Callable[..., Tensor]) -> list[float]:
        look = partial(validation.looked, losses, run.task.shown, run.state.factors)
        return validation.measure(draws, run.config, run.state, run.toy, run.samples, look=look)

    with attached(run.state.factors.branches):
        return measured(measure, run.task.views)


def knows(run: Run) -> Run:
    """With the base trained on both pictures of all pairs, as a base has seen its pictures."""
    toy, draw = run.toy, torch.Generator().manual_seed(2)
    parameters = [each.requires_grad_() for each in toy.parameters()]
    optimizer = torch.optim.Adam(parameters, 2e-2)
    x0 = torch.cat([rearrange(each.latent, "two c h w -> (two h w) c 1 1") for each in run.samples])
    for _ in range(300):
        noise, sigma = torch.randn(x0.shape, generator=draw), torch.rand(len(x0), generator=draw).clamp(0.01, 0.99)
        found = toy.denoised(toy.noised(x0, noise, sigma), sigma, [0.0] * len(x0))
        optimizer.zero_grad()
        ((found - x0) / sigma.view(-1, 1, 1, 1)).square().mean().backward()
        optimizer.step()
    toy.requires_grad_(False)
    return run


def test_what_pairs_differ_in_moves_both_ways_and_by_swapped_pairs_the_other_way():
    config, found = replace(PLAIN, steps=150, learning_rate=1e-2, batch_size=4), []
    pairs = [replace(each, condition=0.0, unconditional=0.0) for each in make_pairs()]
    for samples in (pairs, [replace(each, latent=each.latent.flip(0)) for each in pairs]):
        run = knows(Run(config, samples, task=PairSlider(LearnSliderPairs())))
        run.state.batches.times = [0] * 4 + [1] * 4
        before = response(run)
        run.go()
        run.samples = pairs
        found.append(response(run))
        assert max(abs(move.along) for move in before.moves.values()) < 1e-6 and "does not move" in before.sentence()
    own, swapped = found
    assert own.moves[1.0].along > 0.5 and own.moves[-1.0].along < -0.5
    assert own.symmetric > 0.7 and own.even > 0.5
    assert swapped.moves[1.0].along < -0.5 and swapped.moves[-1.0].along > 0.5
