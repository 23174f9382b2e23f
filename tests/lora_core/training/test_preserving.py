"""Checks where a run keeps the base's answer and where it lets the answer to the empty caption move along."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness.toy import CHANNELS, CONFIG, Run, Toy, make_samples
from lora_loom.lora_core.training.dropout import CLEAR, dropped
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.preserving import OPEN, noisy_levels
from lora_loom.lora_core.training.sample import Sample
from lora_loom.lora_core.training.tasks import add_gradient

QUIETER = replace(CONFIG, preservation=1.0, preserve_every=4, caption_dropout=0.0, clear_dropout=0.5)


def test_captions_are_dropped_where_the_picture_can_be_seen():
    levels = torch.tensor([0.05, CLEAR - 0.01, CLEAR + 0.01, 0.99]).repeat(2000)
    snr = ((1 - levels) / levels) ** 2
    for usual, clear in ((0.0, 0.5), (0.2, 0.5), (0.6, 0.5), (0.3, 0.0)):
        config = replace(CONFIG, caption_dropout=usual, clear_dropout=clear)
        found = torch.tensor(dropped(config, snr, torch.Generator().manual_seed(0))).view(-1, 4).float().mean(0)
        wanted = torch.tensor([max(usual, clear)] * 2 + [usual] * 2)
        assert (found - wanted).abs().max() < 0.03
    draws = torch.rand(8000, generator=torch.Generator().manual_seed(0))
    before = dropped(replace(CONFIG, caption_dropout=0.3), snr, torch.Generator().manual_seed(0))
    assert before == (draws < 0.3).tolist(), "as it was drawn before there was another rate"


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
def test_the_base_is_preserved_in_noise(law: str):
    config, sigma = replace(QUIETER, objective=ObjectiveConfig(timesteps=law)), torch.tensor([0.1, 0.5])
    found = [noisy_levels(config, step, part, sigma, Toy(), 0.0) for step in (4, 8) for part in (0, 1)]
    assert all(float(levels.min()) >= OPEN and levels.shape == (2,) for levels in found)
    assert len({tuple(levels.tolist()) for levels in found}) == 4
    assert torch.equal(found[0], noisy_levels(config, 4, 0, sigma, Toy(), 0.0))
    assert noisy_levels(replace(config, clear_dropout=0.0), 4, 0, sigma, Toy(), 0.0) is None


def test_preserving_at_other_levels_is_the_change_there():
    """In fp64, against the network's two answers written out: weight 1 counts four times on every fourth step."""
    toy, draw = Toy().double(), torch.Generator().manual_seed(1)
    factors = Factors({"enter": toy.enter, "leave": toy.leave}, 3, 3.0, draw)
    factors.flat.add_(0.1)
    x0, noise = (torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    sigma, levels = torch.tensor([[0.2, 0.4], [0.85, 0.95]], dtype=torch.float64)
    given = QUIETER, factors, toy, x0, noise, sigma, [1.0, 2.0]
    with attached(factors.branches):
        add_gradient(*given, [])
        alone = factors.flat.grad.clone()
        factors.forget_gradient()
        _, change = add_gradient(*given, [5.0, 6.0], None, levels)
        both = factors.flat.grad.clone()
        factors.forget_gradient()
        x_t = toy.noised(x0, noise, levels)
        level = levels.view(-1, 1, 1, 1)
        with torch.no_grad(), factors.silence():
            base = (x_t - toy.denoised(x_t, levels, [5.0, 6.0])) / level
        wanted = ((x_t - toy.denoised(x_t, levels, [5.0, 6.0])) / level - base).square().mean()
        (4 / QUIETER.accumulation * wanted).backward()
    assert change.item() == pytest.approx(wanted.item(), rel=1e-6) and wanted.item() > 1e-4
    torch.testing.assert_close(both - alone, factors.flat.grad, rtol=1e-4, atol=1e-6)


def test_what_guidance_multiplies_is_less_where_the_picture_can_be_seen():
    """The distance of the answers to a caption and to none, which all that is learned adds to without dropout."""
    samples = [Sample(torch.full((CHANNELS, 6, 6), 1.5), 2.0, -2.0, neutral=(0.5, -0.5))] * 4
    apart = {}
    for clear in (0.0, 0.5):
        config = replace(QUIETER, steps=60, accumulation=1, learning_rate=1e-2, clear_dropout=clear)
        run = Run(config, samples)
        run.go()
        with torch.no_grad(), attached(run.state.factors.branches):
            x, sigma = torch.ones(2, CHANNELS, 6, 6), torch.tensor([0.4, 0.4])
            named, unnamed = (x - run.toy.denoised(x, sigma, [2.0, -2.0])) / 0.4
        apart[clear] = float((named - unnamed).norm())
    assert apart[0.5] < 0.8 * apart[0.0]


def test_a_run_that_drops_clear_captions_resumes_exactly():
    samples = [replace(sample, neutral=(70.0,)) for sample in make_samples()]
    whole, part = (Run(QUIETER, samples) for _ in range(2))
    results = whole.go()
    assert part.go(5) + part.go() == results and part.bytes() == whole.bytes()
    other = Run(replace(QUIETER, clear_dropout=0.0), samples)
    other.go()
    assert other.bytes() != whole.bytes()
