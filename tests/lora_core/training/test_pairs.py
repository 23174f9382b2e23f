"""Factors in the type of a pass: as new as the masters, and gradients that are as exact as cast by cast."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from lora_loom.lora_core.training.branch import Branch
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.pairs import product
from lora_loom.lora_core.training.trainer import make_optimizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTHS = (24, 40, 24, 16)


class Net(nn.Module):
    """Linear layers with and without bias, and a convolution between them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.lines = nn.ModuleList(nn.Linear(*sides, bias=sides[0] < sides[1]) for sides in pairwise(WIDTHS))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        draw = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * parameter.shape[-1] ** -0.5
        self.to(dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.lines
        x = self.conv(torch.tanh(first(x)))
        for line in rest:
            x = line(torch.tanh(x))
        return x

    def layers(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.named_modules() if hasattr(module, "weight")}


def factors_of(net: Net, alpha: float = 3.0, **options: float) -> Factors:
    factors = Factors(net.layers(), 4, alpha, torch.Generator().manual_seed(1), options=LayersConfig(**options))
    with torch.no_grad():
        factors.flat.copy_(torch.randn(len(factors.flat), generator=torch.Generator().manual_seed(2)) * 0.2)
    return factors


def one_by_one(factors: Factors) -> Factors:
    """The same, but cast for every use, with gradients that autograd adds up."""
    for branch in factors.branches.values():
        branch.twins = None
    return factors


def picture(dtype: torch.dtype, seed: int = 3) -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradient(net: Net, factors: Factors, run: Callable[[Net, Tensor], Tensor] | None = None) -> Tensor:
    """Return the gradient of a fixed loss, added to what is there already."""
    x = picture(net.conv.weight.dtype)
    with attached(factors.branches):
        (run or Net.forward)(net, x).float().square().sum().backward()
    return factors.flat.grad.clone()


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("alpha", "most"), [(4.0, 1.0), (3.0, 1.0), (40.0, 1.02)])
def test_narrow_gradients_are_no_worse_than_cast_by_cast(alpha: float, most: float) -> None:
    exact, narrow = Net(torch.float64), Net(torch.bfloat16)
    exact.load_state_dict(narrow.state_dict())
    wanted = gradient(exact, factors_of(exact, alpha))
    found = off(gradient(narrow, factors_of(narrow, alpha)), wanted)
    before = off(gradient(narrow, one_by_one(factors_of(narrow, alpha))), wanted)
    assert 1e-4 < found <= before * most < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_those_of_cast_by_cast(dtype: torch.dtype) -> None:
    """At a scaling of 1 to the bit, but for the order of sums."""
    net = Net(dtype)
    found, wanted = gradient(net, factors_of(net, 4.0)), gradient(net, one_by_one(factors_of(net, 4.0)))
    assert off(found, wanted) <= (1e-9 if dtype == torch.bfloat16 else 1e-6) and found.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_dropout_and_strength_reach_factors_and_gradients(dtype: torch.dtype) -> None:
    def grown(factors: Factors) -> Tensor:
        for branch in factors.branches.values():
            branch.keep = torch.tensor([2.0, 0.0, 2.0, 2.0][: len(branch.lora_A)])
        with factors.at(0.5):
            return gradient(net, factors)

    net = Net(dtype)
    factors = factors_of(net)
    found, wanted = grown(factors), grown(one_by_one(factors_of(net)))
    assert off(found, wanted) <= (5e-3 if dtype == torch.bfloat16 else 1e-6)
    assert not factors.branches["lines.0"].lora_A.grad[1].any(), "a rank that is left out learns nothing"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_are_as_new_as_what_an_optimiser_leaves(name: str) -> None:
    net = Net(torch.bfloat16)
    factors = factors_of(net)
    config = TrainConfig(learning_rate=1e-2, optimizer=OptimizerConfig(name, "constant"))
    optimizer, branch = make_optimizer(factors, config), factors.branches["lines.0"]
    for _ in range(3):
        gradient(net, factors)
        before = factors.flat.clone()
        optimizer.step()
        assert not torch.equal(before, factors.flat)
        assert_new(branch)


def test_copies_are_as_new_as_any_change() -> None:
    net = Net(torch.bfloat16)
    factors = factors_of(net, max_norm=1e-3)
    branch = factors.branches["lines.0"]
    with torch.no_grad():
        for change in (
            lambda: factors.flat.mul_(2),
            lambda: branch.lora_A.add_(1),
            lambda: torch._foreach_mul_([branch.lora_A, branch.lora_B], 0.5),
            lambda: factors.parts[0].flat.neg_(),
            factors.cap_,
        ):
            assert_new(branch)
            change()
            assert_new(branch)
        with torch.inference_mode():
            factors.flat.mul_(2)
            assert_new(branch)


def assert_new(branch: Branch) -> None:
    for copy, master in zip(branch._pair(torch.bfloat16).factors(), (branch.lora_A, branch.lora_B), strict=True):
        assert torch.equal(copy, master.detach().bfloat16())


def twice(net: Net, x: Tensor) -> Tensor:
    return net(x) + net(x.roll(1, 0) * 0.5)


def recomputed(net: Net, x: Tensor, reentrant: bool = False) -> Tensor:
    return checkpoint(twice, net, x.requires_grad_(), use_reentrant=reentrant) + net(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("run", [twice, recomputed, lambda net, x: recomputed(net, x, True)],
                         ids=["twice", "recomputed", "in a pass within the pass"])  # fmt: skip
def test_a_layer_that_runs_more_than_once_in_a_pass(dtype: torch.dtype, run: Callable[[Net, Tensor], Tensor]) -> None:
    """Sums are of fp32, whichever pass finishes first."""
    net = Net(dtype)
    found, wanted = gradient(net, factors_of(net, 4.0), run), gradient(net, one_by_one(factors_of(net, 4.0)), run)
    assert off(found, wanted) <= 1e-6


class CutError(Exception):
    pass


def cut_off(net: Net, factors: Factors) -> None:
    def fail(grad: Tensor) -> None:
        raise CutError

    def run(net: Net, x: Tensor) -> Tensor:
        first, *rest = net.lines
        hidden = torch.tanh(first(x))
        hidden.register_hook(fail)
        x = net.conv(hidden)
        for line in rest:
            x = line(torch.tanh(x))
        return x

    with pytest.raises(CutError):
        gradient(net, factors, run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_stays_of_a_pass_that_was_cut_off(dtype: torch.dtype) -> None:
    net = Net(dtype)
    factors, wanted = factors_of(net), gradient(net, factors_of(net))
    for _ in range(2):
        cut_off(net, factors)
        factors.forget_gradient()
        assert not factors.flat.grad.any() and torch.equal(gradient(net, factors), wanted)
        factors.forget_gradient()
    cut_off(net, factors)
    factors.flat.grad.zero_()  # and nobody says so: the longer way, to the same
    assert off(gradient(net, factors), wanted) <= (5e-3 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_of_something_else_is_no_gradient_of_factors(dtype: torch.dtype) -> None:
    net, x = Net(dtype), picture(dtype).requires_grad_()
    factors = factors_of(net)
    with attached(factors.branches):
        (found,) = torch.autograd.grad(net(x).float().square().sum(), x)
    assert found.any() and not factors.flat.grad.any()
    assert torch.equal(gradient(net, factors), gradient(net, factors_of(net)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_product_takes_no_notice_of_what_it_is_written_over(dtype: torch.dtype) -> None:
    left, right = (torch.randn(5, 7).to(dtype) for _ in range(2))
    into = torch.full((49,), torch.nan, dtype=dtype).view(7, 7)
    wanted = 0.5 * left.double().T @ right.double()
    assert off(product(into, left.T, right, 0.5), wanted) < 5e-3 and into.isfinite().all()
