"""Checks what a slider minimises against equation 8 written out in fp64, both ways, and that runs of it are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from harness.toy import CHANNELS, CONFIG, SHAPES, Run, Toy
from lora_loom.lora_core.data.slider import LearnSlider
from lora_loom.lora_core.training import validation
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.sample import Sample
from lora_loom.lora_core.training.slider import Slider
from lora_loom.lora_core.training.slider_response import STRENGTHS, Move, Response, measured
from lora_loom.lora_core.training.validation import Draw
from torch import Tensor

GUIDANCE = 2.5
TASK = Slider(LearnSlider((("", "old", "young"),), GUIDANCE))
PLAIN = replace(CONFIG, objective=ObjectiveConfig(), caption_dropout=0.0, accumulation=1)
TOLD = [(1.0, 2.0, -1.0), (0.5, 1.5, 0.0)]


def samples() -> list[Sample]:
    draw = torch.Generator().manual_seed(5)
    return [
        Sample(torch.randn(CHANNELS, *shape, generator=draw), (i / 4, i / 4 + 1, i / 4 - 1), (0.0, 0.0, 0.0))
        for i, shape in enumerate(SHAPES)
    ]


class Double:
    """A toy in fp64 whose factors are not at their beginning, and one batch."""

    def __init__(self):
        self.toy, draw = Toy().double(), torch.Generator().manual_seed(1)
        self.factors = Factors({"enter": self.toy.enter, "leave": self.toy.leave}, 3, 3.0, draw)
        self.factors.flat.add_(0.1)
        self.x0, self.noise = (torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64, generator=draw) for _ in range(2))
        self.sigma = torch.tensor([0.2, 0.7], dtype=torch.float64)

    def output(self, strength: float, conditions: list[float]) -> Tensor:
        """The velocity at that strength of the LoRA, whose delta_W is added to the weights themselves."""
        toy = Toy().double()
        for name, own in self.factors.low_ranks().items():
            delta = own.lora_B.double() @ own.lora_A.double()
            getattr(toy, name).weight.data += strength * own.alpha / own.rank * delta
        level, x_t = self.sigma.view(-1, 1, 1, 1), self.toy.noised(self.x0, self.noise, self.sigma)
        return (x_t - toy.denoised(x_t, self.sigma, conditions)) / level

    def textbook(self) -> Tensor:
        """|| v(x, n, +-2) - (v(x, n) +- 2 eta (v(x, more) - v(x, less))) ||^2, the mean of both ends, by sample."""
        neutral, more, less = (self.output(0, list(each)) for each in zip(*TOLD, strict=True))
        wanted = [neutral + end * GUIDANCE * (more - less) for end in (2, -2)]
        found = [self.output(end, [own[0] for own in TOLD]) for end in (2, -2)]
        return torch.stack([(a - b).square().flatten(1).mean(1) for a, b in zip(found, wanted, strict=True)]).mean(0)


def test_the_loss_is_the_papers_both_ways():
    double = Double()
    given = PLAIN, double.factors, double.toy, double.x0, double.noise, double.sigma, TOLD
    with attached(double.factors.branches):
        found, change = TASK.add_gradient(*given, [])
        torch.testing.assert_close(TASK.losses(*given), found)
    torch.testing.assert_close(found, double.textbook(), rtol=1e-6, atol=0)
    assert change is None and float(found.min()) > 1e-3


def test_its_gradient_is_that_of_its_loss():
    """By finite differences along directions, a share of the pictures counting as that share."""
    double = Double()
    given = PLAIN, double.factors, double.toy, double.x0, double.noise, double.sigma, TOLD
    flat = double.factors.flat
    with attached(double.factors.branches):
        TASK.add_gradient(*given, [], None, None, 0.5)
        grad = 2 * flat.grad.double()
        for seed in range(4):
            way = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))
            ends, before = [], flat.clone()
            for sign in (1, -1):
                with torch.no_grad():
                    flat.copy_(before + sign * 1e-3 * way)
                    ends.append(float(TASK.losses(*given).mean()))
            with torch.no_grad():
                flat.copy_(before)
            assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(grad @ way.double()), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"preservation": 1.0, "preserve_every": 2, "caption_dropout": 0.3}])
def test_a_run_resumes_exactly(changes: dict):
    config = replace(PLAIN, **changes)
    kept = [replace(each, neutral=(7.0,)) for each in samples()] if changes else samples()
    whole, part = (Run(config, kept, task=TASK) for _ in range(2))
    results = whole.go()
    assert part.go(5) + part.go() == results and part.bytes() == whole.bytes()


def test_what_is_learned_moves_both_ways():
    run = Run(replace(PLAIN, steps=150, learning_rate=1e-2, batch_size=4), samples(), task=TASK)
    draws = [Draw(i, 0.5, i) for i in range(4)]

    def measure(losses: Callable[..., Tensor]) -> list[float]:
        look = partial(validation.looked, losses, TASK.shown, run.state.factors)
        return validation.measure(draws, run.config, run.state, run.toy, run.samples, look=look)

    def response() -> Response:
        with attached(run.state.factors.branches):
            return measured(measure, TASK.views)

    before = response()
    run.go()
    after = response()
    assert max(abs(move.along) for move in before.moves.values()) < 1e-6 and "does not move" in before.sentence()
    assert after.moves[1.0].along > 0.7 and after.moves[-1.0].along < -0.7
    assert after.symmetric > 0.7 and after.even > 0.5
    assert sorted(after.moves, key=lambda s: after.moves[s].along) == list(STRENGTHS)
    assert f"{100 * after.symmetric:.0f} % symmetric" in after.sentence()


def test_even_and_symmetric():
    straight = Response({s: Move(s * 0.9, 0.1) for s in STRENGTHS})
    assert straight.even == pytest.approx(1) and straight.symmetric == pytest.approx(1)
    bent = Response({**straight.moves, -1.5: Move(-0.45, 0.1), -2.0: Move(-0.45, 0.1)})
    assert bent.even == 0 and bent.symmetric == pytest.approx(0.25)
