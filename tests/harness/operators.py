"""Counts what a call launches, multiplies and moves: figures that no load of the machine changes, and that a
GPU shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import addmm_flop, flop_registry

_aten, _kitchen = torch.ops.aten, torch.ops.comfy_kitchen
_PRODUCTS = {_aten.linear, _aten.mm, _aten.addmm}
_WITHOUT_WORK = {
    _aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided, _aten.detach,
    _aten._unsafe_view, _aten.alias, _aten.set_, torch.ops.prim.device,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Operators that launch something, each by name; multiply-adds of products counted as two; bytes read and
    written."""

    names: Counter[str]
    flops: int
    moved: int

    @property
    def operators(self) -> int:
        return self.names.total()


class _Counting(TorchDispatchMode):
    """Counts operators as a GPU would launch them: a product of quantised tensors is one, whatever a CPU makes of it,
    and so is each of comfy-kitchen's kernels. (On CUDA `int8_linear` is two, the rows' quantisation and the product,
    and a product that adds a matrix and is not in place copies that first; neither is counted.)"""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.flops, self.moved = Counter[str](), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if any(issubclass(kind, QuantizedTensor) for kind in types) and packet not in _PRODUCTS:
            return NotImplemented  # the layout's own operators come by
        out = func(*args, **(kwargs or {}))
        if not func.is_view and packet not in _WITHOUT_WORK:
            self.names[str(packet)] += 1
            self.moved += sum(_bytes(each) for each in tree_leaves((args, kwargs, out)))
            self.flops += _flops(packet, args, kwargs or {}, out)
        return out


def _bytes(value: object) -> int:
    if isinstance(value, QuantizedTensor):
        return value._qdata.nbytes
    return value.nbytes if isinstance(value, Tensor) else 0


def _flops(packet: Any, args: Sequence[Any], kwargs: dict, out: Any) -> int:
    if packet in (_aten.linear, _kitchen.int8_linear):
        return 2 * out.numel() * args[0].shape[-1]
    if packet in (_aten.mm, _aten.addmm, _aten.addmm_):
        return 2 * out.numel() * args[-2].shape[-1]
    formula = flop_registry.get(packet)
    return formula(*args, **kwargs, out_val=out) if formula and formula is not addmm_flop else 0


def cost(step: Callable[[], object]) -> Cost:
    with _Counting() as counted:
        step()
    return Cost(counted.names, counted.flops, counted.moved)
