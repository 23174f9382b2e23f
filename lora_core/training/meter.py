"""Measures what a computation holds and costs by the operators that it dispatches, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import addmm_flop, flop_registry, sdpa_backward_flop, sdpa_flop

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_FLOPS = {
    **flop_registry,
    _aten.addmm_: addmm_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


@dataclass(frozen=True)
class OperatorWork:
    """Multiply-adds of matrix products, convolutions and attention counted as two; bytes that operators read and write;
    and the number of operators."""

    flops: int = 0
    moved: int = 0
    launches: int = 0

    def __add__(self, other: OperatorWork) -> OperatorWork:
        return OperatorWork(self.flops + other.flops, self.moved + other.moved, self.launches + other.launches)

    def __sub__(self, other: OperatorWork) -> OperatorWork:
        return OperatorWork(self.flops - other.flops, self.moved - other.moved, self.launches - other.launches)


@dataclass
class Span:
    """Holds what was done within: its work, and the most bytes held beside those that were held at its beginning."""

    above: int = 0
    work: OperatorWork = OperatorWork()


class Meter(TorchDispatchMode):
    """While active, `peak` is the most bytes held at once on `device` in storages made since it was entered."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.peak = self.flops = self.moved = self.launches = 0
        self._live: dict[int, int] = {}
        self._held = 0

    @property
    def held(self) -> int:
        """Return bytes on `device` of those storages that are still there."""
        return self._held

    @property
    def work(self) -> OperatorWork:
        return OperatorWork(self.flops, self.moved, self.launches)

    def restart(self) -> None:
        """Forget the work and the peak so far; what is held stays held."""
        self.peak, self.flops, self.moved, self.launches = self._held, 0, 0, 0

    @contextmanager
    def aside(self) -> Iterator[Span]:
        """Measure what is done inside by itself: peak and work so far stay as they were."""
        before, held, span = (self.peak, self.work), self._held, Span()
        self.restart()
        try:
            yield span
        finally:
            span.above, span.work = self.peak - held, self.work
            self.peak = before[0]
            self._set(before[1])

    @contextmanager
    def charged(self, span: Span, gone: int = 0) -> Iterator[None]:
        """Count what was measured before in the place of what is done inside, `gone` bytes being held that were not
        then; only what is left of that is held."""
        work = self.work + span.work
        peak = max(self.peak, self._held - gone + span.above)
        yield
        self.peak = peak
        self._set(work)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Inside, what is done is held, but is no work."""
        work = self.work
        yield
        self._set(work)

    def add(self, work: OperatorWork) -> None:
        """Count work that was done elsewhere."""
        self._set(self.work + work)

    def place(self, tensor: Tensor) -> int:
        """Return where it lies, for `held_at`."""
        return tensor.untyped_storage()._cdata

    def held_at(self, place: int) -> int:
        """Bytes of what lies there, if it was made since this was entered and is still there."""
        return self._live.get(place, 0)

    def _set(self, work: OperatorWork) -> None:
        self.flops, self.moved, self.launches = work.flops, work.moved, work.launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:  # fake tensors dispatch their .device
            return func(*args)
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            taken, made = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), out))
            self._count(func, args, kwargs, out, [*taken, *made])
            old = {tensor.untyped_storage()._cdata for tensor in taken}
            for tensor in made:
                storage = tensor.untyped_storage()
                if tensor.device.type == self.device.type and storage._cdata not in old:
                    self._hold(storage)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or not size:
            return
        self._live[key] = size
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._held -= self._live.pop(key)

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, tensors: list[Tensor]) -> None:
        self.launches += 1
        self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        formula = _FLOPS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
