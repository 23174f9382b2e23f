"""Rotary kernels with a backward: values and gradients are those of plain operators, and a kernel does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import comfy.ldm.flux.math
import comfy.quant_ops
import pytest
import torch
from comfy_kitchen.backends.eager import rope as eager
from comfy_kitchen.constraints import FunctionConstraints, ParamConstraint
from harness.calls import encode, relative_error
from harness.problem import Problem
from harness.session import training_session
from lora_loom.nodes.bridge.model import rope
from lora_loom.nodes.bridge.session import session
from torch import Tensor

NAMES = [
    "apply_rope1", "apply_rope", "apply_rope_split_half1", "apply_rope_split_half",
    "rms_rope1", "rms_rope", "rms_rope_split_half1", "rms_rope_split_half",
]  # fmt: skip
# Heads before or behind the tokens, one set of angles for all or one each, and more angles than tokens, of which the
# kernels for pairs of neighbours take the first.
SHAPES = {
    "flux": ((2, 3, 5, 8), (1, 1, 5, 4, 2, 2)),
    "lumina": ((2, 5, 3, 8), (2, 5, 1, 4, 2, 2)),
    "cut": ((1, 3, 5, 8), (1, 1, 7, 4, 2, 2)),
}

CASES = [(name, shapes) for name in NAMES for shapes in SHAPES if shapes != "cut" or "split_half" not in name]


def angles(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    angle = torch.randn(shape[:-2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
    return parts.view(shape).to(dtype)


def arguments(name: str, shapes: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """One tensor or two that want a gradient, and what follows them."""
    draw = torch.Generator().manual_seed(0)
    shape, of_angles = SHAPES[shapes]
    count = 1 if name.endswith("1") else 2
    tensors = [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for _ in range(count)]
    rest = [angles(of_angles, torch.float64 if dtype == torch.float64 else torch.float32)]
    if name.startswith("rms"):
        rest += [torch.rand(shape[-1], generator=draw).to(dtype) for _ in range(count)]
    return tensors, rest


def results(call: Callable, name: str, shapes: str, dtype: torch.dtype, **choices: Any) -> list[Tensor]:
    """Return what comes out, and the gradients of what went in."""
    tensors, rest = arguments(name, shapes, dtype)
    out = call(*tensors, *rest, **choices)
    out = [out] if torch.is_tensor(out) else list(out)
    draw = torch.Generator().manual_seed(2)
    weights = [torch.randn(each.shape, generator=draw).to(dtype) for each in out]
    return [*out, *torch.autograd.grad(out, tensors, weights)]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize(("name", "shapes"), CASES)
def test_values_and_gradients_are_those_of_plain_operators(name: str, shapes: str, dtype: torch.dtype, most) -> None:
    found = results(getattr(rope, name), name, shapes, dtype)
    wanted = results(getattr(eager, name), name, shapes, dtype)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.dtype == plain.dtype and relative_error(ours, plain) < most
    assert all(torch.equal(ours, plain) for ours, plain in zip(found, wanted[: len(wanted) // 2], strict=False))


def test_a_part_of_each_head_is_turned() -> None:
    def parts(call: Callable) -> list[Tensor]:
        return results(lambda q, k, freqs, *scales: call(q, k, freqs[..., :2, :, :], *scales, rot_dim=4),
                       "rms_rope_split_half", "flux", torch.float64)  # fmt: skip

    found, wanted = parts(rope.rms_rope_split_half), parts(eager.rms_rope_split_half)
    assert all(relative_error(ours, plain) < 1e-14 for ours, plain in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_in_place_the_gradient_is_the_same(name: str) -> None:
    """Copies are changed in place, and the gradient is that of plain operators; the kernels that change them refuse a
    gradient."""
    with rope.differentiable_rope():
        changing = getattr(comfy.quant_ops.ck, name + "_")

    def on_copies(*args: Any) -> Any:
        count = 1 if name.endswith("1") else 2
        copies = [each.clone() for each in args[:count]]
        told = changing(*copies, *args[count:])
        assert told is copies[0] if count == 1 else all(a is b for a, b in zip(told, copies, strict=True))
        return told

    found, wanted = (results(call, name, "flux", torch.float64) for call in (on_copies, getattr(eager, name)))
    assert all(relative_error(ours, plain) < 1e-14 for ours, plain in zip(found, wanted, strict=True))


@pytest.fixture
def kernel() -> Iterator[list[tuple[Tensor, ...]]]:
    """A kernel of its own for CPU tensors, as ComfyUI has them for CUDA; what it was called with."""
    registry, called = comfy.quant_ops.ck.registry, []

    def counting(call: Callable) -> Callable:
        def run(**given: Tensor) -> Any:
            called.append(tuple(given.values()))
            return call(**given)

        return run

    floats = frozenset({torch.float32, torch.bfloat16})
    takes = {name: ["x"] if name.endswith("1") else ["xq", "xk"] for name in NAMES if name.startswith("apply")}
    capabilities = {
        name: FunctionConstraints({each: ParamConstraint(dtypes=floats) for each in own}, frozenset({"cpu"}))
        for name, own in takes.items()
    }
    before = list(registry._priority)
    registry.register("of this test", SimpleNamespace(**{n: counting(getattr(eager, n)) for n in takes}), capabilities)
    registry.enable("of this test")
    registry.set_priority(["of this test", *before])
    rope._has_kernel.cache_clear()
    try:
        yield called
    finally:
        registry.set_priority(before)
        registry.disable("of this test")
        rope._has_kernel.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_runs_forward_and_backward(kernel, name: str) -> None:
    found = results(getattr(rope, name), name, "flux", torch.bfloat16)
    forward, backward = kernel
    assert torch.equal(forward[-1].mT, backward[-1]) and backward[-1].is_contiguous()
    wanted = results(getattr(eager, name), name, "flux", torch.bfloat16)
    assert all(relative_error(ours, plain) < 8e-3 for ours, plain in zip(found, wanted, strict=True))


@contextmanager
def plain_rope() -> Iterator[None]:
    """Kernels in the place of which plain operators are, as ComfyUI trains FLUX."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(comfy.quant_ops.ck, name, getattr(eager, name))
        yield


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["flux1", "qwen_image", "lumina2", "wan21", "anima"])
def test_gradients_of_whole_models_are_those_of_plain_operators(models, monkeypatch, family, checkpointing) -> None:
    trio = models(family)
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]

    def gradient() -> tuple[Tensor, int]:
        with torch.inference_mode(), training_session(trio.model, checkpointing) as patcher:
            problem = Problem.of_model(patcher, conditioning)
            with torch.autograd.profiler.profile() as seen:
                found = problem.gradient()
        return found, sum(event.name == "_Turned" for event in seen.function_events)

    ours, turned = gradient()
    monkeypatch.setattr(session, "differentiable_rope", plain_rope)
    plain, none = gradient()
    assert turned > 0 == none
    assert relative_error(ours, plain) < 1e-6
