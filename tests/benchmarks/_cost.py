"""Measures what a training step computes and what it keeps: figures that no load of the machine changes."""

from __future__ import annotations

import torch
from _measure import Step
from harness.inprocess import PRETEND
from lora_loom.lora_core.training.meter import Meter
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, sdpa_backward_flop, sdpa_flop

_aten = torch.ops.aten
_UNKNOWN_TO_TORCH = {
    _aten.addmm_: addmm_flop.__wrapped__,
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop.__wrapped__,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop.__wrapped__,
}


def flops(step: Step) -> int:
    """Count the floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter:
        step()
    return counter.get_total_flops()


def launches_and_stalls(step: Step, device: torch.device) -> tuple[int, str]:
    """How many operators a step launches, and how often the host waits in it for what is queued, which the pretend
    device tells: LORA_LOOM_PRETEND=gpu. A CPU has no queue to wait for."""
    if PRETEND:
        import pretend

        pretend.reset()
        step()
        found = pretend.totals()
        return found.launches, str(found.stalls)
    with Meter(device) as meter:
        step()
    return meter.launches, "-"


def saved_bytes(step: Step) -> int:
    """Count the bytes of all storages kept for backward, except those of parameters and of other leaves that want a
    gradient."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter) and not (owner.is_leaf and owner.requires_grad):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
