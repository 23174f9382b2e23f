"""Experts in a rehearsal. Which tokens go to which is not known there, so that each is given as many.

HiDream's tokens go to a fixed number of experts each, so the bytes of all of them together are those of a real step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from comfy.ldm.hidream.model import MOEFeedForwardSwiGLU
from torch import Tensor

from ....lora_core.swap import swapped


def shared_evenly() -> AbstractContextManager[None]:
    """Let experts take tokens in turn, whatever their gate says."""
    return swapped([(MOEFeedForwardSwiGLU, "forward", _in_turn)])


def _in_turn(layer: MOEFeedForwardSwiGLU, tokens: Tensor) -> Tensor:
    """(batch, tokens, width) to the same, by operators whose results have a known size."""
    _, weights, _ = layer.gate(tokens)
    sent = tokens.flatten(0, -2).repeat_interleave(layer.num_activated_experts, dim=0)
    made, count = torch.empty_like(sent), len(layer.experts)
    for first, expert in enumerate(layer.experts):
        own = torch.arange(first, len(sent), count, device=sent.device)
        made[own] = expert(sent[own])
    made = (made.unflatten(0, weights.shape) * weights[..., None]).sum(1)
    return made.view_as(tokens) + layer.shared_experts(tokens)
