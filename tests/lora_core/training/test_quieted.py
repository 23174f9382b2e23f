"""Training in quiet directions: the optimiser has A~ and passes have A~ P, held to references in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness.quiet import quieting
from harness.toy import CONFIG, Run, config_of
from lora_loom.lora_core.adapter import TEXT_PREFIX
from lora_loom.lora_core.files.lineage import Parent
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.quiet.directions import Quieting
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training import snapshot
from lora_loom.lora_core.training.config import OPTIMIZERS
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.norms import correction_norms
from lora_loom.lora_core.training.start import Start
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


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
    actual, expected = actual.detach().double(), expected.detach().double()
    error, scale = float((actual - expected).norm()), float(expected.norm())
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
        close(factors.matrices[key].grad, leaf.grad, 4e-6)


def test_a_step_is_that_of_adamw_on_what_is_trained():
    """By hand, from the gradient that a loud run finds at the same A and B."""
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, max_grad_norm=0.0))
    run, loud, grads = Run(config, quiet=quiet()), Run(config), []
    factors, plain = run.state.factors, loud.state.factors
    with torch.no_grad():
        factors.flat.copy_(torch.randn(factors.flat.shape, generator=torch.Generator().manual_seed(4)))
        before = {key: matrix.detach().clone() for key, matrix in factors.matrices.items()}
        factors.refresh()
        plain.flat.copy_(factors.quieted.shown)
    loud.state.optimizer.step = lambda: grads.extend(plain.matrices[key].grad.clone() for key in before)
    loud.go(1), run.go(1)
    for (name, number), grad in zip(before, grads, strict=True):
        own = before[name, number].double()
        grad = (grad @ quiet()[name].dense() if number == 0 else grad).double()
        wanted = own - CONFIG.learning_rate / 3 * (grad / (grad.abs() + 1e-8) + 0.01 * own)
        close(factors.matrices[name, number].detach() - own, wanted - own, 2e-4)


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


def test_the_bound_is_on_what_is_trained_in_the_end():
    factors = made(Net(), options=LayersConfig(max_norm=0.3))
    before, norms = {name: low.delta_weight() for name, low in factors.low_ranks().items()}, correction_norms(factors)
    factors.cap_()
    assert min(norms.values()) > 0.3
    for name, norm in correction_norms(factors).items():
        assert norm == pytest.approx(0.3, rel=1e-5)
        close(factors.low_ranks()[name].delta_weight(), before[name] * 0.3 / norms[name], 1e-5)


def test_what_is_judged_is_the_product_of_the_average():
    run = Run(config_of("adamw", ema_decay=0.9), quiet=quiet())
    run.go(6)
    state, own = run.state, quiet()["enter"].dense()
    mean = state.ema[: 3 * 5].view(3, 5)
    assert torch.equal(state.factors.matrices["enter", 0], state.factors.flat[: 3 * 5].view(3, 5))
    trained = state.factors.adapter().layers["enter"].lora_A
    with state.judged():
        judged = state.factors.adapter().layers["enter"].lora_A
    close(judged, mean @ own, 1e-6)
    assert torch.equal(state.factors.adapter().layers["enter"].lora_A, trained) and not torch.equal(judged, trained)


OPTIONS = LayersConfig(lora_plus_ratio=4.0, rank_dropout=0.2, layer_dropout=0.1, max_norm=0.05)


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, dora=True)], ids=["chances", "dora"])
@pytest.mark.parametrize("last", ["leave", f"{TEXT_PREFIX}leave"])
def test_it_goes_with_what_else_there_is(options, last):
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, ema_decay=0.9))
    run, cut, loud = (Run(config, last=last, options=options, quiet=own) for own in (quiet(last), quiet(last), None))
    run.go(), loud.go(), cut.go(5)
    snapshot.put_back(cut.state, snapshot.take(cut.state))
    cut.go()
    assert cut.bytes() == run.bytes() != loud.bytes()
    if not options.dora:
        assert max(correction_norms(run.state.factors).values()) <= 0.05 * (1 + 1e-5)


def test_a_run_goes_back_to_what_it_had():
    run = Run(quiet=quiet())
    run.go(4)
    factors, good = run.state.factors, snapshot.take(run.state)
    before = factors.branches["enter"].lora_A.clone()
    run.go(3)
    assert not torch.equal(factors.branches["enter"].lora_A, before)
    snapshot.put_back(run.state, good)
    assert torch.equal(factors.branches["enter"].lora_A, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_passes_in_half_precision_have_the_same_product(dtype):
    net, x = Net(dtype), torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(5))
    wide = Net()
    wide.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    found = []
    for own, rows in ((net, x.to(dtype)), (wide, x)):
        factors = made(own)
        with attached(factors.branches):
            for _ in range(2):  # the factors move in between
                factors.forget_gradient()
                (own(rows).float().square().mean()).backward()
                factors.carry_back()
                with torch.no_grad():
                    factors.flat.sub_(factors.flat.grad, alpha=3e-4)
        found.append(factors.flat.grad.clone())
    close(found[0], found[1], 0.03)


def test_many_layers_take_few_operators():
    layers = {f"{at}.{name}": nn.Linear(24, 8) for at in range(20) for name in "qkv"}
    layers |= {f"{at}.out": nn.Linear(32, 8) for at in range(20)}
    inputs = [quieting(24, 4, seed=at) for at in range(20)]
    quiet = {f"{at}.{name}": inputs[at] for at in range(20) for name in "qkv"}
    quiet |= {f"{at}.out": quieting(32, seed=at) for at in range(20)}
    factors = Factors(layers, 3, 3.0, torch.Generator().manual_seed(0), quiet=quiet)
    counts = []
    for work in (factors.refresh, factors.refresh, factors.carry_back):
        with OperatorCounter() as counter:
            work()
        counts.append(counter.count)
    assert counts[0] <= 30 and counts[1] == 0 and counts[2] <= 30, "views aside"


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that a device would be given, views aside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
