"""Checks the loss of preference against the paper's formula written out, and that runs of pairs learn what is liked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.toy import CHANNELS, CONFIG, Run, Toy, make_pairs
from lora_loom.lora_core.data.task import LearnPreference
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training import validation
from lora_loom.lora_core.training.config import TrainConfig, Validation
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.preference import Preference, liked_gain, likely, margins, win_rate
from lora_loom.lora_core.training.ruin import ProbeBatch, rise
from lora_loom.lora_core.training.tasks import task_of
from torch import Tensor

BETA = 30.0
TASK = Preference(LearnPreference(BETA))
PLAIN = TrainConfig(steps=12, learning_rate=3e-3, batch_size=2, seed=11)


class ToyOfNoise(Toy):
    """The same network, whose output is the noise, as the paper has it."""

    def noised(self, x0, noise, sigma):
        return x0 + sigma.view(-1, 1, 1, 1) * noise

    def snr(self, sigma):
        return sigma**-2


class Case:
    """Two pairs in fp64, on a network with factors that are nowhere zero."""

    def __init__(self, kind: type[Toy]):
        self.toy, draw = kind().double(), torch.Generator().manual_seed(1)
        self.factors = Factors({"enter": self.toy.enter, "leave": self.toy.leave}, 3, 3.0, draw)
        self.factors.flat.add_(0.1)
        self.x0 = torch.randn(2, 2, CHANNELS, 4, 4, dtype=torch.float64, generator=draw)
        self.noise = torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64, generator=draw)
        self.sigma, self.conditions = torch.tensor([0.3, 0.8], dtype=torch.float64), [1.0, -2.0]

    @property
    def given(self) -> tuple:
        return PLAIN, self.factors, self.toy, self.x0, self.noise, self.sigma, self.conditions

    def output(self, row: int, which: int) -> tuple[Tensor, Tensor]:
        """What the network says of a picture, and what it should."""
        x0, noise, level = self.x0[row, which], self.noise[row], self.sigma[row : row + 1]
        x_t = self.toy.noised(x0[None], noise[None], level)
        flow = type(self.toy) is Toy
        told = (x_t - self.toy.denoised(x_t, level, [self.conditions[row]]))[0] / level
        return told, noise - x0 if flow else noise

    def wanted(self) -> Tensor:
        """Equation 14 of the paper, with the mean in the place of the sum and T in beta, pair by pair."""
        found = []
        for row in range(2):
            signed = 0.0
            for which, sign in ((0, 1), (1, -1)):
                told, true = self.output(row, which)
                with torch.no_grad(), self.factors.silence():
                    base, _ = self.output(row, which)
                signed = signed + sign * ((true - told).square().mean() - (true - base).square().mean())
            found.append(-torch.log(torch.sigmoid(-BETA / 2 * signed)))
        return torch.stack(found)


@pytest.mark.parametrize("kind", [Toy, ToyOfNoise])
def test_loss_and_gradient_are_those_of_the_paper(kind: type[Toy]) -> None:
    case = Case(kind)
    with attached(case.factors.branches):
        losses, change = TASK.add_gradient(*case.given, [])
        found = case.factors.flat.grad.clone()
        case.factors.forget_gradient()
        wanted = case.wanted()
        wanted.mean().backward()
        torch.testing.assert_close(TASK.losses(*case.given).detach(), wanted.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(losses, wanted.detach(), rtol=1e-9, atol=0)
    assert change is None and (wanted - math.log(2)).abs().min() > 0.01
    torch.testing.assert_close(found, case.factors.flat.grad, rtol=1e-4, atol=1e-6 * float(found.abs().max()))


def test_finite_differences() -> None:
    case = Case(Toy)
    flat, step = case.factors.flat, 1e-3
    with attached(case.factors.branches):
        TASK.add_gradient(*case.given, [])
        gradient = flat.grad.clone()
        for at in gradient.abs().topk(4).indices.tolist():
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    flat[at] += sign * step
                    values.append(float(TASK.losses(*case.given).mean()))
                    flat[at] -= sign * step
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient[at]), rel=1e-3)


def test_parts_of_a_batch_and_the_base_that_is_preserved_add_up() -> None:
    case, config = Case(Toy), replace(PLAIN, preservation=0.7)
    _, factors, toy, x0, noise, sigma, conditions = case.given
    with attached(factors.branches):
        _, change = TASK.add_gradient(config, *case.given[1:], [5.0, 6.0])
        whole = factors.flat.grad.clone()
        factors.forget_gradient()
        for row in (slice(0, 1), slice(1, 2)):
            own = x0[row], noise[row], sigma[row], conditions[row], [[5.0], [6.0]][row.start]
            TASK.add_gradient(config, factors, toy, *own, share=0.5)
    assert change is not None and change > 0
    torch.testing.assert_close(whole, factors.flat.grad, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def test_an_untouched_lora_prefers_nothing_and_swapped_pairs_are_the_opposite() -> None:
    case = Case(Toy)
    with attached(case.factors.branches), torch.no_grad():
        losses = TASK.losses(*case.given)
        with case.factors.silence():
            assert TASK.losses(*case.given).tolist() == [pytest.approx(math.log(2))] * 2
        case.x0 = case.x0.flip(1)
        swapped = TASK.losses(*case.given)
    assert margins(losses.tolist()) == pytest.approx(-margins(swapped.tolist()), rel=1e-9)


def pairs_run() -> Run:
    config = replace(CONFIG, steps=40, accumulation=1, learning_rate=1e-2)
    return Run(config, make_pairs(), task=TASK)


def test_held_out_pairs_are_won() -> None:
    run = pairs_run()
    held = run.samples[:2]
    draws = validation.plan([0, 1], ["a", "b"], run.config, Validation(draws=4))
    pictures = [draw.picture for draw in draws]
    of = draws, run.config, run.state, run.toy, held
    with attached(run.state.factors.branches):
        before = validation.measure(*of, task=TASK)
    run.state.batches.times = [0, 0, *[1] * 6]
    run.go()
    with attached(run.state.factors.branches):
        after = validation.measure(*of, task=TASK)
        swapped = [replace(each, latent=each.latent.flip(0)) for each in held]
        lost = validation.measure(*of[:-1], swapped, task=TASK)
        moved = validation.measure(
            *of, look=lambda *given: validation.looked(liked_gain, TASK.shown, run.state.factors, *given)
        )
    assert before == [pytest.approx(math.log(2))] * len(draws)
    assert win_rate(pictures, after) == (2, 2) and win_rate(pictures, lost) == (0, 2)
    assert sum(after) < 0.9 * sum(before)
    assert TASK.says(run.state.factors, pictures, after, lambda _: moved).startswith(
        "Win rate: the LoRA prefers the liked picture of 2 of 2 pairs, 100 % (95 % confidence: 34 to 100 %; chance: "
        "50 %), which chance alone can give. The loss of liked pictures alone is "
    )


def test_a_run_of_pairs_resumes_in_the_same_bytes(tmp_path: Path) -> None:
    whole, run = pairs_run(), pairs_run()
    results = whole.go(12)
    first = run.go(5)
    checkpoint.save(tmp_path / "run.safetensors", run.state, "print")
    fresh = run.again()
    checkpoint.load(tmp_path / "run.safetensors", fresh.state, "print")
    assert first + fresh.go(7) == results and fresh.bytes() == whole.bytes()


def test_win_rates() -> None:
    losses = [float(torch.nn.functional.softplus(torch.tensor(-m, dtype=torch.float64))) for m in (3, -1, -2, 1, 40, 0)]
    assert margins(losses) == pytest.approx([3, -1, -2, 1, 40, 0], abs=1e-6)
    assert win_rate([7, 7, 2, 2, 5, 5], losses) == (2, 3), "by the mean over a pair's draws: 1, -0.5 and 20"
    assert margins([0.0, 800.0]) == pytest.approx([92.1, -800], rel=1e-3)
    low, high = likely(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))  # as R's binom.wilson
    assert likely(0, 5)[0] == pytest.approx(0, abs=1e-12) and likely(5, 5)[1] == pytest.approx(1)


def test_verdicts_on_a_win_rate() -> None:
    losses = [0.1] * 9 + [2.0]
    said = TASK.says(None, list(range(10)), losses, lambda _: [-0.05])  # type: ignore[arg-type]
    assert "9 of 10 pairs, 90 % (95 % confidence: 60 to 98 %; chance: 50 %). The loss of liked pictures alone" in said
    assert said.endswith("is 5 % above the base model's: if pictures get worse, raise beta or train fewer steps.")
    worse = TASK.says(None, list(range(10)), [2.0] * 10, lambda _: [0.0])  # type: ignore[arg-type]
    assert ", which is worse than chance. The loss of liked pictures alone is 0 % below" in worse
    assert task_of(LearnPreference(5.0)) == Preference(LearnPreference(5.0))
    with pytest.raises(ValueError, match="beta is 0; it must be between 1 and 1e"):
        LearnPreference(0)


def test_a_pair_that_is_lost_is_no_ruin_and_pictures_that_get_worse_are() -> None:
    run = pairs_run()
    factors, before = run.state.factors, run.state.factors.flat.clone()
    x0 = torch.stack([sample.latent for sample in run.samples[:2]])
    shown = [ProbeBatch(x0.flip(1), [0.0, 1.0], None, 0, 2)]
    run.go()
    with attached(factors.branches), torch.no_grad():
        noise, sigma = torch.randn(2, CHANNELS, 6, 6), torch.tensor([0.7, 0.9])
        strong = Preference(LearnPreference(1e4))
        given = run.config, factors, run.toy, x0.flip(1), noise, sigma, [0.0, 1.0]
        assert strong.losses(*given).mean() > 3 * math.log(2), "the other way round, far from the base's"
        assert rise(run.config, factors, before, run.toy, shown, task=strong) < 2
        factors.flat.mul_(30)
        assert rise(run.config, factors, before, run.toy, shown, task=strong) > 3
