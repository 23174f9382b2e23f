"""ComfyUI's rotary kernels with a backward.

Each pair of numbers is multiplied by the 2 x 2 matrix of its place, which is linear: the gradient of what went in is
that of what came out, multiplied by the transposed matrices, and the same kernel does that. Nothing is kept for it but
the matrices, which all blocks share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Any

import comfy.ldm.flux.math
import comfy.quant_ops
import torch
from comfy_kitchen.backends.eager import rope as eager
from comfy_kitchen.exceptions import NoCapableBackendError
from torch import Tensor
from torch.nn import functional

Pair = tuple[Tensor, Tensor]
_IN_PLACE = "_"  # at the end of a kernel's name


@contextmanager
def differentiable_rope() -> Iterator[None]:
    """Inside, ComfyUI's rotary kernels have gradients. Families that would do without them in training use them, too:
    FLUX and those that share its functions."""
    kernels, plain = comfy.quant_ops.ck, comfy.ldm.flux.math
    places = [(kernels, name, call) for name, call in _with_a_backward().items()]
    places += [(plain, "_apply_rope1", apply_rope1), (plain, "_apply_rope", apply_rope)]
    with ExitStack() as undo:
        for owner, name, call in places:
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, call)
        yield


def apply_rope1(x: Tensor, freqs_cis: Tensor) -> Tensor:
    return _Turned.apply("apply_rope1", freqs_cis, x)


def apply_rope(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> Pair:
    return _Turned.apply("apply_rope", freqs_cis, xq, xk)


def apply_rope_split_half1(x: Tensor, freqs_cis: Tensor) -> Tensor:
    return _Turned.apply("apply_rope_split_half1", freqs_cis, x)


def apply_rope_split_half(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> Pair:
    return _Turned.apply("apply_rope_split_half", freqs_cis, xq, xk)


def rms_rope1(x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6) -> Tensor:
    return apply_rope1(_normed(x, scale, epsilon), freqs_cis)


def rms_rope(
    q: Tensor, k: Tensor, freqs_cis: Tensor, q_scale: Tensor, k_scale: Tensor | None = None, epsilon: float = 1e-6
) -> Pair:
    q, k = _both_normed(q, k, q_scale, k_scale, epsilon)
    return apply_rope(q, k, freqs_cis)


def rms_rope_split_half1(x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6) -> Tensor:
    return apply_rope_split_half1(_normed(x, scale, epsilon), freqs_cis)


def rms_rope_split_half(
    q: Tensor,
    k: Tensor,
    freqs_cis: Tensor,
    q_scale: Tensor,
    k_scale: Tensor | None = None,
    epsilon: float = 1e-6,
    rot_dim: int = 0,
) -> Pair:
    """The first `rot_dim` numbers of each head are turned, all of them for 0."""
    q, k = _both_normed(q, k, q_scale, k_scale, epsilon)
    if rot_dim in (0, q.shape[-1]):
        return apply_rope_split_half(q, k, freqs_cis)
    turned = apply_rope_split_half(q[..., :rot_dim], k[..., :rot_dim], freqs_cis)
    left = (q[..., rot_dim:], k[..., rot_dim:])
    return torch.cat((turned[0], left[0]), -1), torch.cat((turned[1], left[1]), -1)


def _with_a_backward() -> dict[str, Callable]:
    """Each by the name of the kernel in whose place it is."""
    ones = (apply_rope1, apply_rope_split_half1, rms_rope1, rms_rope_split_half1)
    pairs = (apply_rope, apply_rope_split_half, rms_rope, rms_rope_split_half)
    calls = {call.__name__: call for call in (*ones, *pairs)}
    return calls | {call.__name__ + _IN_PLACE: _in_place(call, 1 + (call in pairs)) for call in (*ones, *pairs)}


def _in_place(call: Callable, count: int) -> Callable:
    """The same, its result put where the first `count` arguments are, of which a norm's backward needs copies."""

    @wraps(call)
    def changing(*args: Any, **choices: Any) -> Any:
        found = call(*map(torch.clone, args[:count]), *args[count:], **choices)
        for tensor, value in zip(args[:count], found if count > 1 else (found,), strict=True):
            tensor.copy_(value)
        return args[:count] if count > 1 else args[0]

    return changing


def _both_normed(q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor | None, epsilon: float) -> Pair:
    return _normed(q, q_scale, epsilon), _normed(k, q_scale if k_scale is None else k_scale, epsilon)


def _normed(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], scale, epsilon)


class _Turned(torch.autograd.Function):
    """One or two tensors (batch, ., ., channels) turned by the kernel of that name; `freqs_cis` (..., 2, 2) are the
    matrices."""

    @staticmethod
    def forward(ctx: Any, name: str, freqs_cis: Tensor, *tensors: Tensor) -> Tensor | Pair:
        ctx.save_for_backward(freqs_cis)
        ctx.name = name
        return _run(name, freqs_cis, tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (freqs_cis,) = ctx.saved_tensors
        found = _run(ctx.name, freqs_cis.mT, grads)
        return None, None, *((found,) if torch.is_tensor(found) else found)


def _run(name: str, freqs_cis: Tensor, tensors: Sequence[Tensor]) -> Tensor | Pair:
    if _has_kernel(name, len(tensors), tensors[0].device, tensors[0].dtype, freqs_cis.dtype):
        return getattr(torch.ops.comfy_kitchen, name)(*tensors, freqs_cis.contiguous())
    return getattr(eager, name)(*tensors, freqs_cis)


@cache
def _has_kernel(name: str, count: int, device: torch.device, dtype: torch.dtype, of_freqs: torch.dtype) -> bool:
    """Whether ComfyUI has more than plain operators for this, as it has been set up."""
    find = getattr(getattr(comfy.quant_ops.ck, "registry", None), "get_capable_backend", None)
    if find is None or not hasattr(torch.ops.comfy_kitchen, name):
        return False
    x = torch.empty(1, 1, 1, 2, dtype=dtype, device=device)
    given = {"x": x} if count == 1 else {"xq": x, "xk": x}
    try:
        return (
            find(name, {**given, "freqs_cis": torch.empty(1, 1, 1, 1, 2, 2, dtype=of_freqs, device=device)}) != "eager"
        )
    except NoCapableBackendError:
        return False
