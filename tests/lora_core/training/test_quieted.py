"""Training in quiet directions: the optimiser has A~ and passes have A~ P, held to references in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness.toy import CONFIG, Run, config_of
from lora_loom.lora_core.files.lineage import Parent
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.quiet.directions import Directions, Quieting
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training.config import OPTIMIZERS
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.start import Start
from torch import Tensor, nn

MU = 0.003


def quieting(width: int, pairs: int | None = None, seed: int = 0) -> Quieting:
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))[0]
    values = torch.arange(1, width + 1, dtype=torch.float64) ** -1.5
    pairs = pairs or width
    return Directions.of(basis.T[:pairs], values[:pairs], float(values.sum())).quieting(MU)


def quiet(last: str = "leave") -> dict[str, Quieting]:
    return {"enter": quieting(5), last: quieting(16, 6, seed=1)}


class Net(nn.Module):
    """Two layers that share an input, one after them and a convolution, frozen."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.q, self.k = nn.Linear(8, 6), nn.Linear(8, 6, bias=False)
        self.out, self.conv = nn.Linear(6, 4), nn.Conv2d(4, 3, 3, padding=1)
        draw = torch.Generator().manual_seed(2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.4
        self.to(dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, height, width, 8)
        hidden = self.out(torch.tanh(self.q(x)) * self.k(x))
        return self.conv(torch.tanh(hidden).movedim(-1, 1))

    def layers(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in ("q", "k", "out", "conv")}

    @staticmethod
    def quiet() -> dict[str, Quieting]:
        both = quieting(8)
        return {"q": both, "k": both, "conv": quieting(36, 10, seed=3)}  # `out` is loud


def made(net: Net, **choices) -> Factors:
    factors = Factors(net.layers(), 3, 2.0, torch.Generator().manual_seed(0), quiet=net.quiet(), **choices)
    with torch.no_grad():
        factors.flat.copy_(torch.randn(factors.flat.shape, generator=torch.Generator().manual_seed(4)))
    return factors


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error, scale = (
        float((actual.detach().double() - expected.detach().double()).norm()),
        float(expected.detach().double().norm()),
    )
    assert scale > 0 and error <= tolerance * scale, f"off by {error:g} of {scale:g}"


def test_passes_have_the_product_and_the_gradient_is_that_of_what_is_trained():
    net, x = Net(), torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(5))
    factors = made(net)
    with attached(factors.branches):
        net(x).square().sum().backward()
    factors.carry_back()
    exact = Net(torch.float64)
    exact.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    leaves = {key: matrix.detach().double().requires_grad_() for key, matrix in factors.matrices.items()}
    weights = {}
    for name, layer in exact.layers().items():
        P = net.quiet()[name].dense().double() if name in net.quiet() else torch.eye(leaves[name, 0].shape[1]).double()
        change = leaves[name, 1] @ leaves[name, 0] @ P * 2 / 3
        weights[f"{name}.weight"] = layer.weight + change.view_as(layer.weight)
        close(factors.branches[name].lora_A, leaves[name, 0] @ P, 1e-6)
        assert torch.equal(factors.low_ranks()[name].lora_A, factors.branches[name].lora_A.detach())
    torch.func.functional_call(exact, weights, (x.double(),)).square().sum().backward()
    for key, leaf in leaves.items():
        close(factors.matrices[key].grad, leaf.grad, 2e-6)


def test_a_step_moves_what_is_trained():
    run = Run(replace(CONFIG, accumulation=1), quiet=quiet())
    factors = run.state.factors
    before = {key: matrix.detach().clone() for key, matrix in factors.matrices.items()}
    seen, step = [], run.state.optimizer.step
    run.state.optimizer.step = lambda: seen.append(factors.flat.grad.clone()) or step()
    run.go(1)
    rate, moved = CONFIG.learning_rate / 3, torch.cat([(factors.matrices[k] - before[k]).flatten() for k in before])
    grad, flat = seen[0].double(), torch.cat([value.flatten() for value in before.values()]).double()
    wanted = -rate * (grad / (grad.abs() + 1e-8) + 0.01 * flat)
    close(moved, wanted, 1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_is_cut_off_ends_in_the_same_bytes(name, tmp_path):
    config = config_of(name)
    whole = Run(config, quiet=quiet())
    whole.go()
    first, second = Run(config, quiet=quiet()), Run(config, quiet=quiet())
    first.go(7)
    checkpoint.save(tmp_path / "state.safetensors", first.state, "key")
    checkpoint.load(tmp_path / "state.safetensors", second.state, "key")
    second.go()
    assert second.bytes() == whole.bytes() and second.bytes() != Run(config, quiet=quiet()).bytes()
    with whole.state.judged(), second.state.judged():
        ours, theirs = whole.state.factors.adapter(), second.state.factors.adapter()
    assert all(torch.equal(ours.layers[name].lora_A, theirs.layers[name].lora_A) for name in ours.layers)


def test_what_a_run_goes_on_from_is_what_it_begins_with():
    net, draw = Net(), torch.Generator().manual_seed(6)
    given = {"q": LowRank(torch.randn(2, 8, generator=draw), torch.randn(6, 2, generator=draw), 1.0)}
    given["conv"] = LowRank(torch.randn(2, 36, generator=draw), torch.randn(3, 2, generator=draw), 1.0, (3, 3))
    start = Start(Parent("x", "ab" * 32, 1.0), "ab", given, rank=3)
    for dora in (False, True):
        factors = Factors(
            net.layers(), 3, 3.0, torch.Generator().manual_seed(0), start=start, quiet=net.quiet(),
            options=LayersConfig(dora=dora),
        )  # fmt: skip
        for name, own in given.items():
            close(factors.branches[name].lora_A[:2], own.lora_A, 2e-6)
            assert not torch.equal(factors.matrices[name, 0][:2], own.lora_A)


def test_directions_of_another_width_are_refused():
    with pytest.raises(ValueError, match="the quiet directions of q are for 5 inputs, and it has 8"):
        Factors({"q": Net().q}, 3, 3.0, torch.Generator(), quiet={"q": quieting(5)})
