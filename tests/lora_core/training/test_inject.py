"""Trainable low-rank paths beside frozen layers: against peft, against the dense weight, and leaving no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.files.lineage import Parent
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.training.branch import Branch
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.norms import correction_norms
from lora_loom.lora_core.training.start import Start
from lora_loom.lora_core.training.trainer import make_optimizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

CONVS = [
    (nn.Conv1d, dict(kernel_size=3, stride=2, padding=1), (9,)),
    (nn.Conv2d, dict(kernel_size=1), (5, 6)),
    (nn.Conv2d, dict(kernel_size=3, padding=1), (5, 6)),
    (nn.Conv2d, dict(kernel_size=(3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)), (7, 8)),
    (nn.Conv2d, dict(kernel_size=3, padding="same", dilation=2), (7, 6)),
    (nn.Conv2d, dict(kernel_size=3, padding="valid", bias=False), (7, 6)),
    (nn.Conv2d, dict(kernel_size=3, padding=1, padding_mode="circular"), (7, 6)),
    (nn.Conv2d, dict(kernel_size=3, padding=(2, 1), padding_mode="reflect", stride=2), (7, 6)),
    (nn.Conv3d, dict(kernel_size=(1, 2, 2), stride=(1, 2, 2)), (3, 4, 4)),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


class Net(nn.Module):
    """A linear layer with bias, one without, and a convolution, frozen."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.q, self.mix, self.conv = nn.Linear(6, 10), nn.Linear(10, 8, bias=False), nn.Conv2d(8, 5, 3, padding=1)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = random(seed, *parameter.shape) * 0.4
        self.to(dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mix(torch.tanh(self.q(x)))  # (batch, height, width, 8)
        return self.conv(torch.tanh(hidden).permute(0, 3, 1, 2))

    def layers(self) -> dict[str, nn.Module]:
        return {"q": self.q, "mix": self.mix, "conv": self.conv}


def branch(module: nn.Module, rank: int, alpha: float, seed: int = 5, dtype: torch.dtype = torch.float64) -> Branch:
    out, columns = module.weight.shape[0], prod(module.weight.shape[1:])
    a, b = random(seed, rank, columns, dtype=dtype), random(seed + 1, out, rank, dtype=dtype)
    return Branch(a.requires_grad_(), b.requires_grad_(), alpha, module)


def dense(item: Branch, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    a, b = item.lora_A if a is None else a, item.lora_B if b is None else b
    return (item.alpha / a.shape[0] * b @ a).view(item.module.weight.shape)


def fill(factors: Factors, seed: int = 3) -> None:
    """B starts at zero, which hides half of every gradient."""
    for index, item in enumerate(factors.branches.values()):
        item.lora_B.data.copy_(random(seed + index, *item.lora_B.shape) * 0.5)


def make_factors(net: Net, rank: int = 4, alpha: float = 6.0) -> Factors:
    factors = Factors(net.layers(), rank, alpha, seeded(1))
    fill(factors)
    return factors


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    error, scale = float((actual - expected).norm()), float(expected.norm())
    assert scale > 0 and error <= tolerance * scale, f"off by {error:g} of {scale:g}"


# --- against peft ---


def peft_model(net: Net, factors: Factors, rank: int, alpha: float) -> nn.Module:
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(net.layers()), lora_dropout=0.0)
    model = peft.inject_adapter_in_model(config, copy.deepcopy(net)).double()
    for name, item in factors.branches.items():
        layer = getattr(model, name)
        layer.lora_A["default"].weight.data = item.lora_A.detach().double().view(layer.lora_A["default"].weight.shape)
        layer.lora_B["default"].weight.data = item.lora_B.detach().double().view(layer.lora_B["default"].weight.shape)
    return model


def held_to_peft(net, factors, theirs, x, target, output, gradient):
    """Outputs, and gradients of the input, are peft's within these errors; all gradients are left behind."""
    ours_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    with attached(factors.branches):
        out = net(ours_x)
        (out - target).square().sum().backward()
    expected = theirs(their_x)
    (expected - target).square().sum().backward()
    close(out, expected, output)
    close(ours_x.grad, their_x.grad, gradient)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 6.0), (1, 1.0), (5, 0.7)])
def test_forward_and_gradients_are_those_of_peft(rank, alpha):
    net, x = Net(), random(9, 2, 4, 3, 6)
    factors = make_factors(net, rank, alpha)
    theirs, target = peft_model(net, factors, rank, alpha), random(10, 2, 5, 4, 3)
    held_to_peft(net, factors, theirs, x, target, output=1e-13, gradient=1e-12)
    for name, item in factors.branches.items():
        layer = getattr(theirs, name)
        close(item.lora_A.grad, layer.lora_A["default"].weight.grad.flatten(1), 2e-7)  # ours are stored in fp32
        close(item.lora_B.grad, layer.lora_B["default"].weight.grad.flatten(1), 2e-7)


# --- against autograd through the dense weight ---


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31), columns=st.integers(1, 7), out=st.integers(1, 7), rank=st.integers(1, 8),
    alpha=st.floats(0.05, 30), lead=st.lists(st.integers(1, 4), max_size=3), bias=st.booleans(),
)  # fmt: skip
def test_a_linear_layer_equals_the_dense_sum(seed, columns, out, rank, alpha, lead, bias):
    module = nn.Linear(columns, out, bias=bias, dtype=torch.float64).requires_grad_(False)
    module.weight.copy_(random(seed + 9, out, columns))
    item, x = branch(module, rank, alpha, seed), random(seed + 3, *lead, columns).requires_grad_()
    with attached({"layer": item}):
        result = module(x)
    expected = F.linear(x, module.weight + dense(item), module.bias)
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)
    grad, leaves = random(seed + 4, *result.shape), (x, item.lora_A, item.lora_B)
    ours, reference = torch.autograd.grad(result, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    for one, two in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "options", "size"), CONVS)
def test_a_convolution_equals_the_dense_sum(kind, options, size):
    module = kind(4, 6, **options, dtype=torch.float64).requires_grad_(False)
    item, x = branch(module, 3, 2.0), random(3, 2, 4, *size).requires_grad_()
    merged = copy.deepcopy(module)
    del merged.weight
    merged.weight = module.weight + dense(item)  # a plain tensor: differentiable
    with attached({"layer": item}):
        result = module(x)
    expected = merged(x)
    close(result, expected, 1e-13)
    grad, leaves = random(4, *result.shape), (x, item.lora_A, item.lora_B)
    reference = torch.autograd.grad(expected, leaves, grad)
    for one, two in zip(torch.autograd.grad(result, leaves, grad), reference, strict=True):
        close(one, two, 1e-12)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 1, 2, 6)])
def test_gradcheck_of_the_linear_path(shape):
    module = nn.Linear(6, 5, dtype=torch.float64)
    item = branch(module, 2, 3.0)

    def run(x: Tensor, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        return Branch(a, b, 3.0, module).add_to(F.linear(x, weight, module.bias), x)

    inputs = (random(1, *shape), item.lora_A, item.lora_B, random(2, 5, 6))
    assert torch.autograd.gradcheck(run, tuple(t.detach().requires_grad_() for t in inputs), eps=1e-6, atol=1e-8)


def test_gradcheck_of_the_convolution_path():
    module = nn.Conv2d(2, 3, 3, padding=1, stride=2, dtype=torch.float64).requires_grad_(False)
    item = branch(module, 2, 3.0)

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return Branch(a, b, 3.0, module).add_to(module(x), x)

    inputs = (random(1, 1, 2, 4, 4).requires_grad_(), item.lora_A, item.lora_B)
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "arrange",
    [lambda x: x.transpose(0, 1), lambda x: x[:1].expand(4, -1, -1), lambda x: x[:, ::2], lambda x: x[..., 0, :]],
    ids=["transposed", "expanded", "strided", "one row of each"],
)
def test_inputs_that_are_not_contiguous(arrange: Callable[[Tensor], Tensor]):
    module = nn.Linear(6, 5, dtype=torch.float64).requires_grad_(False)
    item, x = branch(module, 3, 2.0), random(3, 4, 5, 6).requires_grad_()
    with attached({"layer": item}):
        result = module(arrange(x))
    expected = F.linear(arrange(x), module.weight + dense(item), module.bias)
    leaves, grad = (x, item.lora_A, item.lora_B), random(4, *expected.shape)
    close(result, expected, 1e-13)
    reference = torch.autograd.grad(expected, leaves, grad)
    for one, two in zip(torch.autograd.grad(result, leaves, grad), reference, strict=True):
        close(one, two, 1e-12)


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y.mT.contiguous().mT, lambda y: y.reshape(-1, 5).view(y.shape), lambda y: y[:]],
    ids=["not contiguous", "a view of a view", "a slice"],
)
def test_outputs_that_are_views(wrap):
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return wrap(super().forward(x))

    module = Odd(6, 5, dtype=torch.float64).requires_grad_(False)
    item, x = branch(module, 3, 2.0), random(3, 4, 7, 6).requires_grad_()
    with attached({"layer": item}):
        result = module(x)
    expected = F.linear(x, module.weight + dense(item), module.bias)
    leaves = (x, item.lora_A, item.lora_B)
    close(result, expected, 1e-13)
    reference = torch.autograd.grad(expected.sum(), leaves)
    for one, two in zip(torch.autograd.grad(result.sum(), leaves), reference, strict=True):
        close(one, two, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_with_a_bias_pays_nothing_for_its_view(dtype):
    """Its output is a view of a product. Gradients are, to the bit, those of a sum in place on a copy."""
    module = nn.Linear(6, 50, dtype=dtype).requires_grad_(False)
    found = {}
    for name, own in {"as it is": lambda out: out, "a copy": lambda out: out.clone()}.items():
        item, x = branch(module, 2, 2.0, dtype=torch.float32), random(3, 4, 7, 6, dtype=dtype).requires_grad_()
        out = item.add_to(own(module(x)), x)
        assert not out._is_view() and out.grad_fn.name() == "AddLowRankBackward"
        out.add_(1.0)  # which blocks of FLUX's kind do
        with Sized(out.numel()) as seen:
            out.square().sum().backward()
        found[name] = [out.detach(), x.grad, item.lora_A.grad, item.lora_B.grad], seen.count
    (plain, count), (copied, more) = found.values()
    assert all(torch.equal(one, other) for one, other in zip(plain, copied, strict=True))
    assert count <= more, "nothing more of the output's size"


class Sized(TorchDispatchMode):
    """Counts results of one size."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        made = [] if operator.is_view else [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        self.count += sum(each.numel() == self.size for each in made)
        return out


def test_an_input_without_gradient_still_trains_the_factors():
    module = nn.Linear(6, 5, dtype=torch.float64).requires_grad_(False)
    item, x = branch(module, 3, 2.0), random(3, 7, 6)
    with attached({"layer": item}):
        module(x).square().sum().backward()
    leaves = (item.lora_A, item.lora_B)
    expected = torch.autograd.grad(F.linear(x, module.weight + dense(item), module.bias).square().sum(), leaves)
    for leaf, reference in zip(leaves, expected, strict=True):
        close(leaf.grad, reference, 1e-12)


def test_a_layer_that_runs_twice_collects_both_gradients():
    module = nn.Linear(6, 6, dtype=torch.float64).requires_grad_(False)
    item, x = branch(module, 3, 2.0), random(3, 7, 6)
    with attached({"layer": item}):
        torch.tanh(module(torch.tanh(module(x)))).sum().backward()
    weight = module.weight + dense(item)
    expected = torch.tanh(F.linear(torch.tanh(F.linear(x, weight, module.bias)), weight, module.bias)).sum()
    leaves = (item.lora_A, item.lora_B)
    for leaf, reference in zip(leaves, torch.autograd.grad(expected, leaves), strict=True):
        close(leaf.grad, reference, 1e-12)


def test_gradient_checkpointing_changes_nothing():
    net, x = Net(), random(9, 2, 4, 3, 6)
    factors = make_factors(net)
    with attached(factors.branches):
        net(x).square().sum().backward()
        plain = factors.flat.grad.clone()
        factors.flat.grad.zero_()
        checkpoint(net, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(factors.flat.grad, plain) and bool(plain.any())


def test_without_gradient_the_output_is_the_same():
    net, x = Net(), random(9, 2, 4, 3, 6)
    with attached(make_factors(net).branches):
        trained = net(x)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(net(x), trained)


# --- no trace ---


def portrait(module: nn.Module) -> dict[str, object]:
    """Every attribute of every submodule by identity, dictionaries by their entries' identities."""
    attributes = ((path, key, value) for path, part in module.named_modules() for key, value in vars(part).items())
    return {
        f"{path}:{key}": {k: id(v) for k, v in value.items()} if isinstance(value, dict) else id(value)
        for path, key, value in attributes
    }


@pytest.mark.parametrize("fails", [False, True])
def test_detaching_leaves_the_modules_as_they_were(fails):
    net, x = Net(), random(9, 2, 4, 3, 6)
    factors = make_factors(net)
    before, bits, plain = portrait(net), {k: v.clone() for k, v in net.state_dict().items()}, net(x)

    def use() -> None:
        with attached(factors.branches):
            assert portrait(net) != before
            loss = (net(x) - plain).square().sum()
            assert float(loss.detach()) > 0
            loss.backward()
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            use()
    else:
        use()
    assert portrait(net) == before
    assert torch.equal(net(x), plain)
    assert all(torch.equal(bits[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())


def test_hooks_of_others_stay():
    net, calls = Net(), []
    handle = net.q.register_forward_hook(lambda *_: calls.append(1))
    with attached(make_factors(net).branches):
        net(random(9, 1, 2, 2, 6))
    net(random(9, 1, 2, 2, 6))
    assert calls == [1, 1]
    handle.remove()


def test_a_failure_inside_a_layer_detaches_too():
    net = Net()
    before = portrait(net)
    with pytest.raises(RuntimeError), attached(make_factors(net).branches):
        net(torch.zeros(1, 2, 2, 7, dtype=torch.float64))
    assert portrait(net) == before


def test_new_factors_change_no_bit_of_the_output():
    net, x = Net(torch.float32), random(9, 2, 4, 3, 6, dtype=torch.float32)
    with attached(Factors(net.layers(), 4, 4.0, seeded(0)).branches):
        trained = net(x)
    assert torch.equal(trained, net(x))


@pytest.mark.parametrize("fails", [False, True])
def test_silenced_factors_let_the_base_answer_and_speak_again_afterwards(fails):
    net, x = Net(), random(9, 2, 4, 3, 6)
    factors, plain = make_factors(net), net(x)
    with attached(factors.branches):
        trained = net(x)
        try:
            with factors.silence():
                assert torch.equal(net(x), plain) and not net(x).requires_grad
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert torch.equal(net(x), trained) and not torch.equal(trained, plain)


# --- memory ---


class Shapes(TorchDispatchMode):
    """Shapes of what operations return, but for views of the given tensors."""

    def __init__(self, *known: Tensor):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.seen: dict[str, set[tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.known:
                self.seen.setdefault(str(func), set()).add(tuple(leaf.shape))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_dense_correction_is_never_built(kind, dtype):
    module = (nn.Linear(24, 40) if kind == "linear" else nn.Conv2d(24, 40, 3)).to(dtype).requires_grad_(False)
    x = random(3, *((7, 24) if kind == "linear" else (1, 24, 6, 5)), dtype=dtype).requires_grad_()
    item = branch(module, 3, 2.0, dtype=torch.float32)
    with attached({"layer": item}), Shapes(module.weight) as shapes:
        module(x).float().square().sum().backward()
    ops = " ".join(shapes.seen)
    assert ("addmm_" in ops or kind == "conv") and item.lora_A.grad is not None  # the backward was watched, too
    columns = prod(module.weight.shape[1:])
    everything = set().union(*shapes.seen.values())
    assert (3, columns) in everything or (3, 24, 3, 3) in everything
    flat = {(shape[0], prod(shape[1:])) for shape in everything if shape}
    assert not flat & {(40, columns), (columns, 40)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_only_the_input_and_a_x_are_kept_for_backward(kind, dtype):
    module = (nn.Linear(24, 40) if kind == "linear" else nn.Conv2d(24, 40, 3)).to(dtype).requires_grad_(False)
    shape, rows = ((7, 5, 24), (7 * 5, 3)) if kind == "linear" else ((1, 24, 6, 5), (1, 3, 4, 3))
    x, item = random(3, *shape, dtype=dtype).requires_grad_(), branch(module, 3, 2.0, dtype=torch.float32)

    def saved_by(run: Callable[[], Tensor]) -> list[Tensor]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            run()
        return kept

    frozen = {(t.data_ptr(), tuple(t.shape)) for t in saved_by(lambda: module(x))}
    with attached({"layer": item}):
        kept = saved_by(lambda: module(x))
    extra = [t for t in kept if (t.data_ptr(), tuple(t.shape)) not in frozen]
    factors = {item.lora_A.data_ptr(), item.lora_B.data_ptr()}
    sizes = {item.lora_A.numel(), item.lora_B.numel()}  # a convolution casts its factors, which is no activation
    new = [t for t in extra if t.data_ptr() not in factors | {x.data_ptr()} and t.numel() not in sizes]
    assert any(t.data_ptr() == x.data_ptr() for t in kept)  # by reference
    assert {tuple(t.shape) for t in new} == {rows} and len({t.data_ptr() for t in new}) == 1
    assert all(t.dtype == dtype for t in new)
    if kind == "linear":
        assert sorted(t.data_ptr() for t in extra if t.data_ptr() in factors) == sorted(factors)  # no cast copies


# --- mixed precision ---


def test_bf16_activations_train_fp32_factors():
    net, x = Net(torch.bfloat16), random(9, 2, 4, 3, 6, dtype=torch.bfloat16)
    factors = make_factors(net)
    with attached(factors.branches):
        out = net(x)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    exact = Net()
    exact.load_state_dict(net.state_dict())
    reference = Factors(exact.layers(), 4, 6.0, seeded(1))
    reference.flat.copy_(factors.flat)
    with attached(reference.branches):
        exact(x.double()).square().sum().backward()
    for name, item in factors.branches.items():
        assert {leaf.dtype for f in (item.lora_A, item.lora_B) for leaf in (f, f.grad)} == {torch.float32}
        close(item.lora_A.grad, reference.branches[name].lora_A.grad, 0.05)
        close(item.lora_B.grad, reference.branches[name].lora_B.grad, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_add_up_in_fp32(dtype):
    """In bf16 the sum of equal terms stops growing after 256 of them."""
    net, x = Net(dtype), random(9, 1, 2, 2, 6, dtype=dtype)
    factors, sums = make_factors(net), []
    with attached(factors.branches):
        for _ in range(600):
            net(x).float().square().sum().backward()
            sums.append(float(factors.flat.grad.double().norm()))
    assert factors.flat.grad.dtype == torch.float32
    assert sums[-1] == pytest.approx(600 * sums[0], rel=1e-5)


def test_gradients_of_a_half_layer_are_whole():
    """An fp32 output of an fp16 input, as quantised layers give: neither direction may lose the other's type."""

    class Widening(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.float(), self.weight, self.bias)

    module = Widening(6, 5).requires_grad_(False)
    item = branch(module, 2, 2.0, dtype=torch.float32)
    x = random(3, 7, 6, dtype=torch.float16).requires_grad_()
    with attached({"layer": item}):
        out = module(x)
        out.square().sum().backward()
    assert (out.dtype, x.grad.dtype, item.lora_A.grad.dtype) == (torch.float32, torch.float16, torch.float32)
    wide = x.detach().double().requires_grad_()
    a, b = (leaf.detach().double().requires_grad_() for leaf in (item.lora_A, item.lora_B))
    F.linear(wide, module.weight.double() + dense(item, a, b), module.bias.double()).square().sum().backward()
    for one, two in ((x.grad, wide.grad), (item.lora_A.grad, a.grad), (item.lora_B.grad, b.grad)):
        close(one, two, 5e-3)


# --- the flat buffer ---


def test_gradients_land_in_the_flat_buffer():
    net, x = Net(), random(9, 2, 4, 3, 6)
    factors = make_factors(net)
    grad, at = factors.flat.grad, 0
    with attached(factors.branches):
        net(x).square().sum().backward()
    assert factors.flat.grad is grad and grad.dtype == torch.float32 and not factors.flat.requires_grad
    for item in factors.branches.values():
        for leaf in (item.lora_A, item.lora_B):
            part = slice(at, at + leaf.numel())
            assert leaf.data_ptr() == factors.flat[part].data_ptr() and leaf.grad.data_ptr() == grad[part].data_ptr()
            assert torch.equal(grad[part], leaf.grad.flatten()) and bool(leaf.grad.any())
            at += leaf.numel()
    assert at == factors.flat.numel()
    factors.flat.grad.zero_()
    factors.flat.mul_(2)
    assert not any(item.lora_A.grad.any() or item.lora_B.grad.any() for item in factors.branches.values())
    first = next(iter(factors.branches.values()))
    assert torch.equal(first.lora_A.detach().flatten(), factors.flat[: first.lora_A.numel()])


def test_factors_start_as_peft_and_kohya_start_and_from_the_seed_alone():
    layers = {"wide": nn.Linear(900, 50), "conv": nn.Conv2d(16, 40, 3)}
    factors, again, other = (Factors(layers, 16, 8.0, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(factors.flat, again.flat) and not torch.equal(factors.flat, other.flat)
    for name, columns in (("wide", 900), ("conv", 144)):
        item, bound = factors.branches[name], columns**-0.5
        assert item.lora_A.shape == (16, columns) and not item.lora_B.any() and item.alpha == 8.0
        assert 0.98 * bound < float(item.lora_A.detach().abs().max()) <= bound
        assert float(item.lora_A.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_a_small_layer_gets_the_rank_it_can_have_at_the_same_scaling():
    layers = {"small": nn.Linear(3, 20), "thin": nn.Linear(20, 2), "conv": nn.Conv2d(1, 20, 2)}
    layers["full"] = nn.Linear(20, 20)
    factors = Factors(layers, 16, 8.0, seeded(0))
    ranks = {name: item.rank for name, item in factors.low_ranks().items()}
    assert ranks == {"small": 3, "thin": 2, "conv": 4, "full": 16}
    assert all(item.scaling == pytest.approx(0.5) for item in factors.low_ranks().values())
    fill(factors)
    for name, module in layers.items():
        item, x = factors.branches[name], random(2, 5, *((1, 4, 4) if name == "conv" else (module.weight.shape[1],)))
        module.double().requires_grad_(False)
        plain = module(x)
        with attached({name: item}):
            added = module(x) - plain
        weight = 0.5 * (item.lora_B.double() @ item.lora_A.double()).view(module.weight.shape)
        close(added, F.conv2d(x, weight) if name == "conv" else F.linear(x, weight), 1e-12)


def test_text_encoders_have_their_own_rank_at_the_same_scaling_and_change_no_other_layer():
    layers = {"a": nn.Linear(12, 10), "text_encoders.l": nn.Linear(12, 10), "text_encoders.g": nn.Linear(3, 10)}
    chosen = ({"a": layers["a"]}, layers)
    alone, both = (Factors(some, 4, 2.0, torch.Generator().manual_seed(1), text_rank=5) for some in chosen)
    assert [branch.low_rank().rank for branch in both.branches.values()] == [4, 5, 3]
    assert [branch.low_rank().scaling for branch in both.branches.values()] == [0.5] * 3
    assert [len(part.flat) for part in both.parts] == [4 * 22, 5 * 22 + 3 * 13] and alone.parts[0].flat is alone.flat
    assert torch.equal(both.parts[0].flat, alone.flat) and all(part.flat.grad is not None for part in both.parts)
    both.flat.grad.fill_(1.0)
    assert all(part.flat.grad.eq(1).all() for part in both.parts), "the parts' gradients are the flat one"


def test_low_ranks_are_detached_copies_of_what_the_layers_add():
    net = Net()
    factors = make_factors(net)
    taken = factors.low_ranks()
    for name, item in taken.items():
        source = factors.branches[name]
        assert item.shape == tuple(net.layers()[name].weight.shape) and not item.lora_A.requires_grad
        assert item.lora_A.dtype == item.lora_B.dtype == torch.float32
        close(item.delta_weight(), dense(source).detach(), 1e-6)
    kept = {name: item.lora_A.clone() for name, item in taken.items()}
    factors.flat.zero_()
    assert all(torch.equal(item.lora_A, kept[name]) for name, item in taken.items())


# --- from a LoRA ---


def start(**layers: tuple[int, float]) -> Start:
    """Random corrections of the layers of `Net`, of these ranks and alphas."""
    net, found = Net(), {}
    for seed, (name, (rank, alpha)) in enumerate(layers.items()):
        out, columns = getattr(net, name).weight.flatten(1).shape
        pair = (random(seed, rank, columns, dtype=torch.float32), random(seed + 9, out, rank, dtype=torch.float32))
        found[name] = LowRank(*pair, alpha)
    return Start(Parent("first", "ab", 1.0), "cd", found, rank=6)


def test_factors_go_on_from_a_lora():
    net, given = Net(), start(q=(2, 3.0), mix=(9, -4.0))
    factors = Factors(net.layers(), 6, 6.0, seeded(1), start=given)
    found = factors.low_ranks()
    assert {name: layer.rank for name, layer in found.items()} == {"q": 6, "mix": 9, "conv": 5}
    for name, layer in given.layers.items():
        assert found[name].scaling == layer.scaling
        assert torch.equal(found[name].lora_A[: layer.rank], layer.lora_A)
        assert torch.equal(found[name].lora_B[:, : layer.rank], layer.lora_B)
        close(found[name].delta_weight(), layer.delta_weight(), 1e-6)
    assert not found["q"].lora_B[:, 2:].any() and found["q"].lora_A[2:].any() and not found["conv"].lora_B.any()


def test_layers_that_are_kept_act_and_are_silenced_but_not_trained():
    net, given, x = Net(torch.float32), start(q=(2, 3.0), mix=(9, -4.0)), random(9, 2, 4, 3, 6, dtype=torch.float32)
    plain = net(x)
    factors = Factors(
        {"conv": net.conv}, 3, 3.0, seeded(1), start=given, kept={"q": net.q, "mix": net.mix},
        options=LayersConfig(rank_dropout=0.5, max_norm=1e-3),
    )  # fmt: skip
    merged = copy.deepcopy(net)
    for name, layer in given.layers.items():
        layer.add_to_(getattr(merged, name).weight.data)
    with attached(factors.branches):
        with factors.dropped(seeded(0)):
            out = net(x)
        close(out, merged(x), 1e-6)
        assert torch.equal(out.detach(), net(x).detach())
        with factors.silence():
            assert torch.equal(net(x), plain)
        net(x).square().sum().backward()
    assert factors.flat.numel() == 3 * (8 * 9 + 5) and factors.flat.grad.any()
    factors.cap_()
    for name, layer in given.layers.items():
        assert (
            torch.equal(factors.low_ranks()[name].lora_B, layer.lora_B) and factors.branches[name].lora_B.grad is None
        )


# --- DoRA ---


def dora_factors(net: Net, **options) -> Factors:
    """With magnitudes that differ from the norms, and B that is not zero."""
    factors = Factors(net.layers(), 3, 4.5, seeded(1), options=LayersConfig(dora=True, **options))
    fill(factors)
    for index, item in enumerate(factors.branches.values()):
        value = item.magnitude.value.data
        value.mul_(1 + 0.3 * random(index + 50, *value.shape).to(value))
    return factors


def test_dora_has_peft_s_forward_and_gradients():
    net, x, target = Net(), random(9, 2, 4, 3, 6), random(10, 2, 5, 4, 3)
    factors = dora_factors(net)
    config = peft.LoraConfig(r=3, lora_alpha=4.5, target_modules=list(net.layers()), lora_dropout=0.0, use_dora=True)
    theirs = peft.inject_adapter_in_model(config, copy.deepcopy(net)).double()
    for name, item in factors.branches.items():
        layer = getattr(theirs, name)
        layer.lora_A["default"].weight.data = item.lora_A.detach().double().view(layer.lora_A["default"].weight.shape)
        layer.lora_B["default"].weight.data = item.lora_B.detach().double().view(layer.lora_B["default"].weight.shape)
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.data = item.magnitude.value.detach().double().view(magnitude.shape)
    held_to_peft(net, factors, theirs, x, target, output=1e-6, gradient=1e-6)  # norms and magnitudes are fp32
    for name, item in factors.branches.items():
        layer = getattr(theirs, name)
        close(item.lora_A.grad, layer.lora_A["default"].weight.grad.flatten(1), 2e-6)
        close(item.lora_B.grad, layer.lora_B["default"].weight.grad.flatten(1), 2e-6)
        close(item.magnitude.value.grad.flatten(), layer.lora_magnitude_vector["default"].weight.grad.flatten(), 2e-6)


def test_what_dora_saves_is_what_it_did():
    """Also at another strength, silenced, and in the norm of the whole correction."""
    net, x = Net(torch.float32), random(9, 2, 4, 3, 6, dtype=torch.float32)
    factors, plain = dora_factors(net), net(x)
    doras = factors.adapter().others
    assert doras.keys() == net.layers().keys() and not factors.adapter().layers
    for strength in (1.0, 0.4):
        merged = copy.deepcopy(net)
        for name, (dora,) in doras.items():
            weight = getattr(merged, name).weight
            weight.data = dora.apply_to(weight.data, strength)
        with attached(factors.branches), factors.at(strength):
            close(net(x), merged(x), 2e-6)
    with attached(factors.branches), factors.silence():
        assert torch.equal(net(x), plain)
    for name, norm in correction_norms(factors).items():
        weight = getattr(net, name).weight.double()
        assert norm == pytest.approx(float(doras[name][0].difference(weight).norm()), rel=1e-4)


def test_new_dora_changes_nothing_and_goes_on_from_lora_and_from_dora():
    net, x, given = Net(torch.float32), random(9, 2, 4, 3, 6, dtype=torch.float32), start(q=(2, 3.0), mix=(9, -4.0))
    options = LayersConfig(dora=True)
    with attached(Factors(net.layers(), 3, 3.0, seeded(1), options=options).branches):
        trained = net(x)
    close(trained, net(x), 1e-6)
    from_lora = Factors(net.layers(), 3, 3.0, seeded(1), start=given, options=options)
    with attached(Factors(net.layers(), 3, 3.0, seeded(1), start=given).branches):
        wanted = net(x)
    with attached(from_lora.branches):
        close(net(x), wanted, 1e-6)
    factors = dora_factors(net)
    with attached(factors.branches):
        wanted = net(x)
    doras = {name: items[0] for name, items in factors.adapter().others.items()}
    layers = {name: dora.update for name, dora in doras.items()}
    for magnitudes in (doras, {n: d.relative_to("sum", getattr(net, n).weight) for n, d in doras.items()}):
        first = Start(Parent("first", "ab", 1.0), "cd", layers, doras=magnitudes)
        again = Factors({"mix": net.mix}, 3, 3.0, seeded(2), start=first, kept={"q": net.q, "conv": net.conv})
        with attached(again.branches):
            close(net(x), wanted, 1e-6)
            with pytest.raises(AssertionError):
                close(net(x), net.forward(x) * 1.001, 1e-6)
        assert again.flat.numel() == 3 * (10 + 8) + 8


def test_magnitudes_have_a_part_of_their_own_that_does_not_decay():
    factors = dora_factors(Net(torch.float32), lora_plus_ratio=4.0)
    assert [(part.rate, part.magnitudes) for part in factors.parts] == [(1.0, False), (1.0, True), (4.0, False)]
    for name in OPTIMIZERS:
        rate = 1.0 if OPTIMIZERS[name].rate is None else 1e-3
        config = TrainConfig(learning_rate=rate, optimizer=OptimizerConfig(name, "constant", weight_decay=0.1))
        optimizer = make_optimizer(factors, config)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]
        factors.flat.grad.normal_(generator=seeded(3))
        before = factors.flat.clone()
        optimizer.step()
        assert torch.isfinite(factors.flat).all() and not torch.equal(factors.flat, before)
        with torch.no_grad():
            factors.flat.copy_(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_narrow_weight_is_read_as_it_is(dtype):
    """In bf16 a gain of 1.03 would be 1.03125; what it is off 1 by is rounded alone."""
    module = nn.Linear(64, 32).requires_grad_(False)
    module.weight.data = (random(1, 32, 64) * 0.1).to(dtype)
    wide = module.weight.float()
    branch = Factors({"a": module}, 4, 4.0, seeded(1), options=LayersConfig(dora=True)).branches["a"]
    close(branch.magnitude.base, wide.norm(dim=1), 1e-6)
    branch.magnitude.value.data.mul_(1.03)
    x = random(2, 512, 64).to(torch.bfloat16)
    out = F.linear(x, wide.bfloat16())
    moved = branch.add_to(out.clone(), x).detach().float() - out.float()
    gain = float((moved * out.float()).sum() / out.float().square().sum())
    assert gain == pytest.approx(0.03, abs=2e-4)
