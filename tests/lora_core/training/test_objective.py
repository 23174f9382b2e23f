"""The residual and its weights against the textbook of each parameterisation, with a linear network in fp64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.objective_config import HUBER_SCHEDULES, LOSSES, WEIGHTINGS, ObjectiveConfig
from torch import Tensor

SHAPE = (3, 2, 4, 5)
SIGMA_DATA = 0.5


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chosen(weighting: str = "none", gamma: float = 5.0) -> ObjectiveConfig:
    return ObjectiveConfig(weighting=weighting, snr_gamma=gamma)


def column(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


class Linear:
    """A network that is a fixed matrix on the flattened sample, plus its condition."""

    def __init__(self, seed: int = 0):
        size = SHAPE[1] * SHAPE[2] * SHAPE[3]
        self.matrix = random(seed, size, size) / size**0.5

    def network(self, x: Tensor, conditions: list[Any]) -> Tensor:
        shift = torch.tensor(conditions, dtype=torch.float64)
        return (x.flatten(1) @ self.matrix).view(x.shape) + column(shift)


class Eps(Linear):
    """k-diffusion's variance-exploding form: `x_t = x0 + sigma n`, target n."""

    def noised(self, x0, noise, sigma):
        return x0 + column(sigma) * noise

    def denoised(self, x_t, sigma, conditions):
        return x_t - column(sigma) * self.output(x_t, sigma, conditions)

    def output(self, x_t, sigma, conditions):
        return self.network(x_t / (1 + column(sigma) ** 2).sqrt(), conditions)

    def output_scale(self, sigma):
        return -sigma

    def snr(self, sigma):
        return sigma**-2

    def target(self, x0, noise, sigma):
        return noise


class V(Eps):
    """Salimans and Ho 2022: with the variance-preserving alpha and s, target `alpha n - s x0`."""

    def denoised(self, x_t, sigma, conditions):
        s2 = column(sigma) ** 2 + 1
        return x_t / s2 - self.output(x_t, sigma, conditions) * column(sigma) / s2.sqrt()

    def output_scale(self, sigma):
        return -sigma / (sigma**2 + 1).sqrt()

    def target(self, x0, noise, sigma):
        alpha, s = 1 / (1 + column(sigma) ** 2).sqrt(), column(sigma) / (1 + column(sigma) ** 2).sqrt()
        return alpha * noise - s * x0


class Flow(Linear):
    """Rectified flow: `x_t = (1 - sigma) x0 + sigma n`, target the velocity n - x0."""

    def noised(self, x0, noise, sigma):
        return (1 - column(sigma)) * x0 + column(sigma) * noise

    def denoised(self, x_t, sigma, conditions):
        return x_t - column(sigma) * self.output(x_t, sigma, conditions)

    def output(self, x_t, sigma, conditions):
        return self.network(x_t, conditions)

    def output_scale(self, sigma):
        return -sigma

    def snr(self, sigma):
        return ((1 - sigma) / sigma) ** 2

    def target(self, x0, noise, sigma):
        return noise - x0


class Edm(Eps):
    """Karras et al. 2022, table 1: `D = c_skip x + c_out F`, target `(x0 - c_skip x) / c_out`."""

    def skip_out(self, sigma):
        total = column(sigma) ** 2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, column(sigma) * SIGMA_DATA / total.sqrt()

    def denoised(self, x_t, sigma, conditions):
        c_skip, c_out = self.skip_out(sigma)
        return c_skip * x_t + c_out * self.output(x_t, sigma, conditions)

    def output_scale(self, sigma):
        return sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()

    def target(self, x0, noise, sigma):
        c_skip, c_out = self.skip_out(sigma)
        return (x0 - c_skip * self.noised(x0, noise, sigma)) / c_out


KINDS = [Eps, V, Flow, Edm]
sigmas = st.lists(st.floats(0.02, 0.98), min_size=3, max_size=3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), levels=sigmas, conditions=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_the_residual_is_the_output_minus_the_textbook_target(kind, seed, levels, conditions):
    denoiser, x0, noise = kind(seed), random(seed + 1, *SHAPE), random(seed + 2, *SHAPE)
    sigma = torch.tensor(levels, dtype=torch.float64) * (1 if kind is Flow else 14)
    output = denoiser.output(denoiser.noised(x0, noise, sigma), sigma, conditions)
    expected = output - denoiser.target(x0, noise, sigma)
    residual = objective.residual(denoiser, x0, noise, sigma, conditions)
    assert residual.shape == x0.shape
    torch.testing.assert_close(residual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_has_no_residual(kind):
    class Perfect(kind):
        def output(self, x_t, sigma, conditions):
            return self.target(*conditions, sigma)

    x0, noise = random(1, *SHAPE), random(2, *SHAPE)
    sigma = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    for weighting in ("none", "min_snr", "debiased"):
        assert float(objective.loss(Perfect(), x0, noise, sigma, [x0, noise], chosen(weighting))) < 1e-20


@pytest.mark.parametrize("ndim", [2, 3, 5])
def test_the_scale_is_per_sample_for_any_number_of_dimensions(ndim):
    class Zero(Flow):
        def denoised(self, x_t, sigma, conditions):
            return torch.zeros_like(x_t)

        def noised(self, x0, noise, sigma):
            return x0

    x0 = torch.ones(2, *[3] * (ndim - 1), dtype=torch.float64)
    residual = objective.residual(Zero(), x0, x0, torch.tensor([0.5, 0.25], dtype=torch.float64), [0, 0])
    assert torch.equal(residual[0], 2 * x0[0]) and torch.equal(residual[1], 4 * x0[1])


# --- weights ---

LEVELS = torch.tensor([0.05, 0.3, 0.447, 0.5, 0.95, 3.0, 14.0], dtype=torch.float64)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize(
    ("kind", "textbook"),
    [
        (Eps, lambda snr, gamma: snr.clamp(max=gamma) / snr),
        (V, lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1)),
        (Flow, lambda snr, gamma: snr.clamp(max=gamma) / (snr.sqrt() + 1) ** 2),  # sigma = 1 / (1 + sqrt(SNR))
        (Edm, lambda snr, gamma: snr.clamp(max=gamma) * SIGMA_DATA**2 / (1 + SIGMA_DATA**2 * snr)),
    ],
)
def test_min_snr_is_the_textbook_weight(kind, textbook, gamma):
    sigma = LEVELS[LEVELS < 1] if kind is Flow else LEVELS
    snr = kind().snr(sigma)
    assert bool((snr < gamma).any()) and bool((snr > gamma).any())
    weight = objective.weight("min_snr", snr, kind().output_scale(sigma), gamma)
    torch.testing.assert_close(weight, textbook(snr, gamma), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "textbook"),
    [
        (Eps, lambda snr: 1 / snr.sqrt()),
        (V, lambda snr: snr.sqrt() / (snr + 1)),
        (Flow, lambda snr: snr.sqrt() / (snr.sqrt() + 1) ** 2),
    ],
)
def test_debiased_is_the_textbook_weight(kind, textbook):
    sigma = LEVELS[LEVELS < 1] if kind is Flow else LEVELS
    snr = kind().snr(sigma)
    weight = objective.weight("debiased", snr, kind().output_scale(sigma))
    torch.testing.assert_close(weight, textbook(snr), rtol=1e-12, atol=0)


def test_none_weighs_everything_alike():
    assert torch.equal(objective.weight("none", LEVELS, -LEVELS), torch.ones_like(LEVELS))


def test_the_weights_of_eps_and_v_are_one_law_on_the_x0_error():
    """The same estimate of x0 must cost the same, whichever output produced it."""
    x0, noise, estimate = (random(seed, *SHAPE) for seed in (1, 2, 3))
    sigma = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    losses = {}
    for kind in (Eps, V, Edm):
        denoiser = type("Fixed", (kind,), {"denoised": lambda *_: estimate})()
        losses[kind] = [
            float(objective.loss(denoiser, x0, noise, sigma, [0] * 3, chosen(law))) for law in ("min_snr", "debiased")
        ]
    assert losses[Eps] == pytest.approx(losses[V], rel=1e-12) and losses[Eps] == pytest.approx(losses[Edm], rel=1e-12)
    assert losses[Eps][0] != pytest.approx(losses[Eps][1])


# --- the loss ---


@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_of_each_samples_weighted_mean_square(kind, weighting):
    denoiser, x0, noise = kind(), random(1, *SHAPE), random(2, *SHAPE)
    sigma, conditions = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64), [0.3, -1.0, 2.0]
    total = 0.0
    for i in range(3):
        one = sigma[i : i + 1]
        error = objective.residual(denoiser, x0[i : i + 1], noise[i : i + 1], one, conditions[i : i + 1])
        weight = objective.weight(weighting, denoiser.snr(one), denoiser.output_scale(one), 2.0)
        total += float(weight) * float(error.square().sum()) / error.numel() / 3
    loss = objective.loss(denoiser, x0, noise, sigma, conditions, chosen(weighting, 2.0))
    assert loss.shape == () and float(loss) == pytest.approx(total, rel=1e-12)


def test_a_bf16_estimate_gives_an_fp32_loss():
    class Half(Flow):
        def denoised(self, x_t, sigma, conditions):
            return (x_t * 0.9).bfloat16()

    x0, noise = random(1, *SHAPE).float(), random(2, *SHAPE).float()
    assert objective.loss(Half(), x0, noise, torch.full((3,), 0.5), [0] * 3, chosen()).dtype == torch.float32


def choices_of(loss: str, weighting: str = "none", **more: Any) -> ObjectiveConfig:
    return ObjectiveConfig(loss, weighting=weighting, **more)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("schedule", HUBER_SCHEDULES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_every_loss(kind, loss, schedule, weighting):
    """By finite differences in fp64, through the network's weights and with a weight for each place."""
    denoiser, x0, noise = kind(), random(1, *SHAPE), random(2, *SHAPE)
    sigma = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    places = random(4, 3, 1, 4, 5).abs()
    choices = choices_of(loss, weighting, huber_c=0.3, huber_schedule=schedule)

    def of(column_of_matrix: Tensor) -> Tensor:
        denoiser.matrix = torch.cat([column_of_matrix, rest], 1)
        return objective.losses(denoiser, x0, noise, sigma, [0.3, -1.0, 2.0], choices, places)

    first, rest = denoiser.matrix[:, :1].clone().requires_grad_(), denoiser.matrix[:, 1:]
    assert torch.autograd.gradcheck(of, (first,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["huber", "smooth_l1"])
def test_pseudo_huber_is_its_formula(kind, loss):
    """sd-scripts: 2 c (sqrt(r^2 + c^2) - c), and that over c; c of the snr schedule is (1 - c) / (1 + sigma)^2 + c."""
    denoiser, x0, noise = kind(), random(1, *SHAPE), random(2, *SHAPE)
    sigma, conditions = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64), [0.3, -1.0, 2.0]
    r = objective.residual(denoiser, x0, noise, sigma, conditions)
    over_signal = sigma / (1 - sigma) if kind is Flow else sigma
    for schedule, c in (("constant", torch.full_like(sigma, 0.2)), ("snr", 0.8 / (1 + over_signal) ** 2 + 0.2)):
        c = column(c)
        expected = 2 * ((r**2 + c**2).sqrt() - c) * (c if loss == "huber" else 1)
        found = objective.losses(
            denoiser, x0, noise, sigma, conditions, choices_of(loss, huber_c=0.2, huber_schedule=schedule)
        )
        torch.testing.assert_close(found, expected.flatten(1).mean(1), rtol=1e-12, atol=0)


def test_limits_of_huber_and_smooth_l1():
    r = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(objective.penalty("huber", r, torch.tensor(1e6).double()), r**2, rtol=1e-9, atol=0)
    torch.testing.assert_close(objective.penalty("smooth_l1", r, torch.tensor(1e-9).double()), 2 * r.abs())
    small = torch.tensor([1e-5])  # fp32 would lose it in sqrt(r^2 + c^2) - c
    assert float(objective.penalty("huber", small, torch.tensor([1.0]))) == pytest.approx(1e-10, rel=1e-5)


def test_cosmap_is_the_papers_and_flat_over_its_own_density():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    weights = objective.weight("cosmap", Flow().snr(t), -t)
    torch.testing.assert_close(weights, 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2))
    assert float(weights.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_mask_leaves_out_has_no_gradient_at_all(loss):
    """The network's output is its own parameter; every value of it is a place."""
    out = random(3, *SHAPE).requires_grad_()
    denoiser = type("Free", (Flow,), {"output": lambda *_: out})()
    places = torch.zeros(3, 1, 4, 5, dtype=torch.float64)
    places[..., :2], places[1] = 1.0, 0.25
    sigma = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    objective.loss(denoiser, random(1, *SHAPE), random(2, *SHAPE), sigma, [0] * 3, choices_of(loss), places).backward()
    learned = places.expand(SHAPE) > 0
    assert not out.grad[~learned].any() and out.grad[learned].all()


def test_noise_offset_is_a_constant_per_sample_and_channel():
    shape = torch.Size((400, 4, 16, 16))
    plain, offset = (objective.draw_noise(shape, o, torch.Generator().manual_seed(0)) for o in (0.0, 0.3))
    assert torch.equal(plain, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    added = (offset - plain).flatten(2)
    assert float(added.std(2).max()) < 1e-6
    assert float(added.mean(2).std()) == pytest.approx(0.3, rel=0.05)
    assert float(offset.mean((2, 3)).var()) == pytest.approx(0.3**2 + 1 / 256, rel=0.1)
    assert objective.draw_noise(torch.Size((2, 4, 1, 8, 8)), 0.3, torch.Generator()).shape == (2, 4, 1, 8, 8)


# --- preservation ---


class Switched:
    """Factors in name only: inside `silence` the network is the base."""

    def __init__(self):
        self.silent = False

    @contextmanager
    def silence(self) -> Iterator[None]:
        self.silent = True
        yield
        self.silent = False


@pytest.mark.parametrize("kind", KINDS)
def test_preservation_is_the_mean_squared_change_of_the_output(kind):
    factors = Switched()

    class Trained(kind):
        def network(self, x, conditions):
            assert torch.is_grad_enabled() is not factors.silent
            return super().network(x, conditions) + (0 if factors.silent else 0.25 * x**2)

    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_t = random(3, *SHAPE)
    loss = objective.preservation(Trained(), factors, x_t, sigma, [0.0, 1.0, 2.0])
    entering = x_t if kind is Flow else x_t / (1 + column(sigma) ** 2).sqrt()
    assert loss.shape == () and float(loss) == pytest.approx(float((0.25 * entering**2).square().mean()), rel=1e-9)
