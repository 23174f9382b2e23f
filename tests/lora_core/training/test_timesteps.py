"""The named laws against their closed forms, on seeded draws."""

from __future__ import annotations

import math

import pytest
import torch
from lora_loom.lora_core.training.objective_config import TIMESTEP_LAWS, ObjectiveConfig
from lora_loom.lora_core.training.timesteps import draw, resolution_shift
from torch import Tensor

COUNT = 200_000
LEVELS = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)


def sample(law: str, shift: float = 3.0, seed: int = 0, count: int = COUNT) -> Tensor:
    return draw(chosen(law, shift), count, torch.Generator().manual_seed(seed), 1024).double()


def chosen(law: str, shift: float = 3.0, **numbers: float) -> ObjectiveConfig:
    return ObjectiveConfig(timesteps=law, shift=shift, **numbers)


def share_below(values: Tensor, level: float) -> float:
    return float((values < level).double().mean())


def check_distribution(values: Tensor, cdf) -> None:
    """The largest gap to the closed form: Kolmogorov and Smirnov's bound at one in a million."""
    ordered = values.sort().values
    gap = (torch.arange(1, len(ordered) + 1) / len(ordered) - cdf(ordered)).abs().max()
    assert float(gap) < 2.7 / math.sqrt(len(ordered))


def test_uniform():
    values = sample("uniform")
    check_distribution(values, lambda u: u)
    assert float(values.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(values.var()) == pytest.approx(1 / 12, rel=0.01)


def test_logit_normal():
    values = sample("logit_normal")
    check_distribution(values, lambda u: torch.special.ndtr(torch.log(u / (1 - u))))
    logits = torch.log(values / (1 - values))
    assert float(logits.mean()) == pytest.approx(0, abs=0.01) and float(logits.std()) == pytest.approx(1, abs=0.01)
    expected = torch.special.ndtri(LEVELS).sigmoid()
    torch.testing.assert_close(values.quantile(LEVELS), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 8.0])
def test_shifted(shift):
    values = sample("shifted", shift)
    check_distribution(values, lambda t: t / (shift - (shift - 1) * t))  # the inverse of s u / (1 + (s - 1) u)
    expected = shift * LEVELS / (1 + (shift - 1) * LEVELS)
    torch.testing.assert_close(values.quantile(LEVELS), expected, rtol=0, atol=0.01)
    mean = 0.5 if shift == 1 else shift * (shift - 1 - math.log(shift)) / (shift - 1) ** 2
    assert float(values.mean()) == pytest.approx(mean, abs=0.003)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.16])
def test_shifted_logit_normal(shift):
    """Trainers shift the sigmoid of a normal by a factor: the normal's mean is the factor's logarithm."""
    values = sample("shifted_logit_normal", shift)
    check_distribution(values, lambda t: torch.special.ndtr(torch.log(t / (1 - t)) - math.log(shift)))
    u = sample("logit_normal")
    torch.testing.assert_close(values, shift * u / (1 + (shift - 1) * u), rtol=0, atol=1e-6)


def sample_of(count: int = 20_000, tokens: float = 0.0, **choices) -> Tensor:
    return draw(ObjectiveConfig(**choices), count, torch.Generator().manual_seed(0), tokens).double()


@pytest.mark.parametrize(("mean", "std"), [(-1.0, 0.5), (0.7, 1.6)])
def test_a_logit_normal_of_any_mean_and_width(mean, std):
    values = sample_of(timesteps="logit_normal", logit_mean=mean, logit_std=std)
    check_distribution(values, lambda u: torch.special.ndtr((torch.log(u / (1 - u)) - mean) / std))


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (1024, 0.63), (4096, 1.15)])
def test_resolution_shifted_is_the_logit_normal_at_flux_1s_mean(tokens, mu):
    """FLUX.1's own sampling: mu runs from 0.5 at 256 tokens to 1.15 at 4096, and exp(mu) is the shift."""
    values = sample_of(timesteps="resolution_shifted", tokens=tokens)
    check_distribution(values, lambda t: torch.special.ndtr(torch.log(t / (1 - t)) - mu))
    assert resolution_shift(tokens) == pytest.approx(math.exp(mu))


@pytest.mark.parametrize(
    ("side", "shift", "right"), [(512, 3.16, 1.88), (768, 3.16, 2.33), (1024, 3.16, 3.16), (1024, 2.0, 2.0)]
)
def test_shifted_by_size_is_the_logit_normal_at_the_shift_of_that_size(side, shift, right):
    tokens = (side / 16) ** 2
    assert resolution_shift(tokens, shift) == pytest.approx(right, abs=0.005)
    values = sample_of(timesteps="shifted_by_size", shift=shift, tokens=tokens)
    check_distribution(values, lambda t: torch.special.ndtr(torch.log(t / (1 - t)) - math.log(right)))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.29, 1.75])
def test_mode_is_that_of_the_sd3_paper(scale):
    """f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u) falls from 1 to 0; its inverse, by bisection, gives the CDF."""

    def cdf(t: Tensor) -> Tensor:
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            u = (low + high) / 2
            above = 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u) > t
            low, high = torch.where(above, u, low), torch.where(above, high, u)
        return 1 - (low + high) / 2

    check_distribution(sample_of(timesteps="mode", mode_scale=scale), cdf)


def test_the_mode_law_of_scale_0_is_uniform():
    torch.testing.assert_close(sample_of(timesteps="mode", mode_scale=0.0), 1 - sample_of(timesteps="uniform"))


def test_a_shift_of_one_is_uniform_and_larger_ones_draw_more_noise():
    assert torch.equal(sample("shifted", 1.0), sample("uniform"))
    assert [share_below(sample("shifted", s), 0.5) for s in (0.5, 3.0)] == pytest.approx([2 / 3, 1 / 4], abs=0.005)


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
def test_the_shift_belongs_to_the_shifted_law_alone(law):
    assert torch.equal(sample(law, 1.0), sample(law, 9.0))


@pytest.mark.parametrize("law", TIMESTEP_LAWS)
def test_seeded_values_in_range(law):
    values = draw(chosen(law), 7, torch.Generator().manual_seed(5), 1024)
    assert values.dtype == torch.float32 and values.shape == (7,) and values.device.type == "cpu"
    assert torch.equal(values.double(), sample(law, seed=5, count=7))
    assert not torch.equal(values.double(), sample(law, seed=6, count=7))
    many = sample(law, 20.0)
    assert float(many.min()) >= 0 and float(many.max()) <= 1 and len(many.unique()) > COUNT / 2


@pytest.mark.parametrize("law", TIMESTEP_LAWS)
def test_a_generator_is_consumed_as_it_goes(law):
    generator = torch.Generator().manual_seed(0)
    first, second = draw(chosen(law), 4, generator), draw(chosen(law), 4, generator)
    assert not torch.equal(first, second)
