"""A linear layer and the branch beside it computed as one, where nothing else has a say in what the layer gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops
import pytest
import torch
from harness.operators import cost
from harness.session import training_session
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.recast import cast_as_in_sampling, recast_in_backward
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from torch import Tensor, nn

JOINED, BESIDE = "LinearWithLowRankBackward", "AddLowRankBackward"
MOST = 7  # operators of a layer's branch, forward and backward


class Net(nn.Module):
    """Two of ComfyUI's linear layers, of an input that has a gradient."""

    def __init__(self, dtype: torch.dtype, operations: Any = comfy.ops.disable_weight_init) -> None:
        super().__init__()
        self.up, self.down = operations.Linear(12, 20, dtype=dtype), operations.Linear(20, 12, bias=False, dtype=dtype)
        draw = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=draw) * 0.3).to(dtype)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def factors_of(net: Net, **options: Any) -> Factors:
    layers = {"up": net.up, "down": net.down}
    factors = Factors(layers, 4, 3.0, torch.Generator().manual_seed(1), options=LayersConfig(**options))
    with torch.no_grad():
        factors.flat.add_(torch.randn(len(factors.flat), generator=torch.Generator().manual_seed(2)) * 0.1)
    return factors


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()


def nodes_of(out: Tensor) -> list[str]:
    """Names of all autograd nodes behind a tensor."""
    found, waiting = {}, [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = type(node).__name__
            waiting += [parent for parent, _ in node.next_functions]
    return list(found.values())


def passed(net: Net, factors: Factors, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], int]:
    """Output and gradients, and how many layers were computed in one with their branch; others were beside it."""
    x = rows(dtype)
    with attached(factors.branches):
        out = net(x)
        out.float().square().sum().backward()
    names = nodes_of(out)
    assert names.count(JOINED) + names.count(BESIDE) == 2
    return [out.detach(), x.grad, factors.flat.grad.clone()], names.count(JOINED)


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-6) -> None:
    for one, other in zip(found, wanted, strict=True):
        one, other = one.double(), other.double()
        assert float((one - other).norm()) <= tolerance * float(other.norm()) and one.any()


STORED = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("operations", [comfy.ops.disable_weight_init, comfy.ops.manual_cast])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stored", STORED)
def test_as_one_as_beside(stored: torch.dtype, keep: bool, operations: Any) -> None:
    """In fp32, with weights of any type; what is beside is held to peft and to the dense weight elsewhere."""
    net, wide = Net(torch.float32, operations), Net(torch.float32)
    for own, other in zip(net.parameters(), wide.parameters(), strict=True):
        own.data = own.data.to(stored)
        other.data = own.data.float()
    with recast_in_backward(net, torch.float32, keep):
        found, joined = passed(net, factors_of(net))
    wanted, beside = passed(wide, factors_of(wide))
    close(found, wanted)
    assert (joined, beside) == (2, 0)
    assert "forward" not in vars(net.up) | vars(net.down)


def test_rank_dropout_and_strength() -> None:
    def grown(net: Net) -> tuple[list[Tensor], int]:
        factors = factors_of(net, rank_dropout=0.5)
        with factors.dropped(torch.Generator().manual_seed(5)), factors.at(0.7):
            return passed(net, factors)

    net = Net(torch.float32)
    wanted, beside = grown(net)
    with recast_in_backward(net, torch.float32):
        found, joined = grown(net)
    close(found, wanted)
    assert (joined, beside) == (2, 0)


@contextmanager
def doubled(net: Net) -> Iterator[None]:
    """Another's hook, which acts on what was there before it came."""
    handle = net.up.register_forward_hook(lambda _, args, out: out * 2)
    yield
    handle.remove()


@contextmanager
def corrected(net: Net) -> Iterator[None]:
    net.up.weight_function = [lambda weight: weight * 2]
    yield
    net.up.weight_function = []


@contextmanager
def elsewhere(net: Net) -> Iterator[None]:
    """A weight of another type than it was when the session began."""
    plain, net.up.weight = net.up.weight, nn.Parameter(net.up.weight.double(), requires_grad=False)
    net.up.comfy_cast_weights = True
    yield
    net.up.weight = plain
    del net.up.comfy_cast_weights


@pytest.mark.parametrize("special", [doubled, corrected, elsewhere])
def test_special_layers_run_as_their_owner_runs_them(special: Callable[[Net], Any]) -> None:
    net = Net(torch.float32)
    with special(net):
        wanted, _ = passed(net, factors_of(net))
    with recast_in_backward(net, torch.float32), special(net):
        found, joined = passed(net, factors_of(net))
    close(found, wanted)
    assert joined == 1
    with recast_in_backward(net, torch.float32):
        assert passed(net, factors_of(net))[1] == 2


def test_dora_has_the_layers_output() -> None:
    net = Net(torch.float32)
    with recast_in_backward(net, torch.float32):
        assert passed(net, factors_of(net, dora=True))[1] == 0


def test_silence_sampling_and_errors_leave_no_trace() -> None:
    net, x = Net(torch.float32), rows()
    factors, plain = factors_of(net), net(rows())
    with recast_in_backward(net, torch.float32), attached(factors.branches), torch.no_grad():
        changed = net(x)
        with factors.silence():
            assert torch.equal(net(x), plain)
        with cast_as_in_sampling(net):
            close([net(x)], [changed])
        with pytest.raises(RuntimeError):
            net.up(x[..., :5])
        net.up.forward(x)  # which runs no hook, and so leaves nothing for the next one
        assert torch.equal(net(x), changed) and not torch.equal(changed, plain)
        with torch.inference_mode():
            assert torch.equal(net(x), changed)
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype == torch.bfloat16
    assert torch.equal(net(x), plain)


def operators(net: nn.Module, x: Tensor) -> int:
    return cost(lambda: net(x).float().square().sum().backward()).operators


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("session", [True, False])
def test_a_branch_takes_few_operators(dtype: torch.dtype, session: bool) -> None:
    """Beside what a pass takes once, for the cast and the gradient."""
    net = Net(dtype)
    factors = factors_of(net)
    with recast_in_backward(net if session else nn.Module(), dtype):
        frozen = operators(net, rows(dtype))
        with attached(factors.branches):
            operators(net, rows(dtype))
            each = (operators(net, rows(dtype)) - frozen - (3 if dtype == torch.bfloat16 else 0)) / 2
    assert each <= (6 if session else MOST), each


@pytest.mark.parametrize("family", ["sd15", "flux1", "qwen_image"])
def test_the_layers_of_a_session_are_computed_so(models: Any, family: str) -> None:
    with torch.inference_mode(), training_session(models(family).model, checkpointing=False) as patcher:
        network, seen = patcher.model.diffusion_model, []
        layers = select(network, LoraConfig(4, 4.0, "all-linear"), PREFIX)
        for module in layers.values():
            x = torch.randn(3, module.in_features)
            with attached(Factors({"a": module}, 2, 2.0, torch.Generator()).branches):
                seen.append(type(module(x).grad_fn).__name__)
    assert seen == [JOINED] * len(layers) and len(layers) >= 8
