"""The trainable low-rank path of one layer.

The frozen layer runs as its owner runs it (any dtype, quantisation or offloading); its output then receives
`scaling * B (A x)`. Where the owner knows that it is one product, layer and path run as one. `W + delta_W` is never
formed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kinds import DoRA
from ..low_rank import LowRank
from .dora import Magnitude
from .pairs import Pair, Twins
from .passes import AddConvolution, AddLowRank, Geometry, LinearWithLowRank, Weights
from .targets import weight_shape


class Branch:
    """The trainable pair of one layer: `lora_A` (rank, in * prod(kernel)) and `lora_B` (out, rank), fp32 leaves.

    `keep` (rank,) multiplies what passes through each rank; None: 1. `strength` is that of the whole correction.
    `magnitude` is there for DoRA. `twins` are those of the flat buffer that the leaves are views of, if they are.
    `fresh` brings the leaves up to date where they are worked out of others. A forward hook of its module.
    """

    def __init__(
        self, lora_A: Tensor, lora_B: Tensor, alpha: float, module: nn.Module, magnitude: Magnitude | None = None,
        twins: Twins | None = None, fresh: Callable[[], None] | None = None,
    ):  # fmt: skip
        self._leaves, self.alpha, self.fresh = (lora_A, lora_B), alpha, fresh
        self.module = module
        self.kernel = weight_shape(module)[2:]
        self.muted = False
        self.keep: Tensor | None = None
        self.strength = 1.0
        self.magnitude = magnitude
        self.twins, self.pairs = twins, dict[torch.dtype, Pair]()
        self.joined: weakref.ref[Tensor] | None = None

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        joined, self.joined = self.joined, None
        return out if joined is not None and joined() is out else self.add_to(out, args[0])

    @property
    def lora_A(self) -> Tensor:  # noqa: N802  # the name of the matrix
        return self._up_to_date()[0]

    @property
    def lora_B(self) -> Tensor:  # noqa: N802  # the name of the matrix
        return self._up_to_date()[1]

    def _up_to_date(self) -> tuple[Tensor, Tensor]:
        if self.fresh is not None:
            self.fresh()
        return self._leaves

    @classmethod
    def alone_on(cls, module: nn.Module) -> Branch | None:
        """The branch that is all that hangs on a layer, if it can be `joined_to` it."""
        hooks = module._forward_hooks
        own = next(iter(hooks.values())) if len(hooks) == 1 else None
        if isinstance(own, cls) and not own.kernel and own.magnitude is None and not own.muted:
            return own
        return None

    def joined_to(self, module: nn.Module, weights: Weights, x: Tensor) -> Tensor:
        """Return what the linear layer gives for `x`, the low-rank path included; the hook then leaves it as it is."""
        pair, scaling = self._pair(x.dtype), self.scaling * self.strength
        out = LinearWithLowRank.apply(x, self.lora_A, self.lora_B, pair, scaling, self.keep, module, weights)
        self.joined = weakref.ref(out)
        return out

    @property
    def scaling(self) -> float:
        return self.alpha / self._leaves[0].shape[0]

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """`out` plus the low-rank path of `x`; `out` may be modified in place and must not be used afterwards."""
        if self.muted:
            return out
        if self.magnitude is None:
            return self._sum(out, x, self.scaling * self.strength)
        before = None if self.strength == 1 else out.clone()
        norms = self.magnitude.norms(self.lora_A, self.lora_B, self.scaling, x.dtype)
        changed = self.magnitude.rescale(self._sum(out, x, self.scaling), norms, len(self.kernel))
        return changed if before is None else before + self.strength * (changed - before)

    def _sum(self, out: Tensor, x: Tensor, scaling: float) -> Tensor:
        factors = self.lora_A, self.lora_B, self._pair(x.dtype), scaling, self.keep
        if not self.kernel:
            return AddLowRank.apply(out if out.is_contiguous() else out.contiguous(), x, *factors)
        x, geometry = self._padded(x)
        if x.dim() == len(self.kernel) + 1:  # one that is not in a batch
            return AddConvolution.apply(out[None], x[None], *factors, self.kernel, geometry)[0]
        return AddConvolution.apply(out, x, *factors, self.kernel, geometry)

    def _pair(self, dtype: torch.dtype) -> Pair:
        if dtype not in self.pairs:
            leaves = self._leaves
            self.pairs[dtype] = self.twins.pair(*leaves, dtype) if self.twins else Pair(*leaves)
        return self.pairs[dtype]

    def _padded(self, x: Tensor) -> tuple[Tensor, Geometry]:
        """The input of a convolution with what its padding asks for beyond zeros that it adds itself, and the rest."""
        module: Any = self.module
        padding = module.padding
        if module.padding_mode != "zeros" or padding == "same":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), "valid"
        return x, (module.stride, tuple(0 for _ in self.kernel) if padding == "valid" else padding, module.dilation)

    @torch.no_grad()
    def square(self) -> Tensor:
        """Squared Frobenius norm of the whole correction, a scalar on the device."""
        if self.magnitude is None:
            return self._low_rank_square()
        inner, delta = self.magnitude.products(self.lora_A, self.lora_B, self.scaling, torch.float32)
        base = self.magnitude.base.square()
        gain = self.magnitude.value[:, 0] / (base + 2 * inner + delta).sqrt()
        return ((gain - 1).square() * base + 2 * gain * (gain - 1) * inner + gain.square() * delta).sum().clamp(min=0)

    def _low_rank_square(self) -> Tensor:
        square = ((self.lora_B.T @ self.lora_B) * (self.lora_A @ self.lora_A.T)).sum()
        return square.clamp(min=0) * self.scaling**2

    def low_rank(self) -> LowRank:
        """Return a detached fp32 copy on the CPU; of DoRA, the update inside."""
        return LowRank(copied(self.lora_A), copied(self.lora_B), self.alpha, self.kernel)

    @torch.no_grad()
    def dora(self) -> DoRA | None:
        """Return the same with its magnitudes, as ComfyUI reads them: relative to the norms of W, not of W +
        delta_W."""
        if self.magnitude is None:
            return None
        norms = self.magnitude.norms(self.lora_A, self.lora_B, self.scaling)
        return DoRA(self.low_rank(), copied(self.magnitude.value[:, 0] * self.magnitude.base / norms), 0, "base")


def copied(factor: Tensor) -> Tensor:
    """Detached, on the CPU in fp32."""
    return factor.detach().to("cpu", torch.float32, copy=True)
