"""Attention with a backward, wherever a model gets its attention from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from comfy.ldm.modules.attention import attention_pytorch

from ...lora_core.swap import swapped

_CHOSEN = ("optimized_attention", "optimized_attention_masked")
OVERRIDE = "optimized_attention_override"


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Models call PyTorch's attention instead of the kernel that was chosen for sampling.

    SageAttention and ComfyUI's FlashAttention have no backward. The choice is made when ComfyUI starts, and every
    module that imports it holds it under one of two names; packs that put in their own do it there, too. A MODEL's
    override in its transformer options comes before it, so callers leave `OVERRIDE` out of those. What layers prefer
    (from ComfyUI 0.38 on, as a node has chosen it for the model) is passed over.
    """
    chosen = [
        (names, name, _with_backward)
        for names in (getattr(module, "__dict__", {}) for module in list(sys.modules.values()))
        for name in _CHOSEN
        if callable(names.get(name))
    ]
    with swapped(chosen):
        yield


def _with_backward(*args, preferred_attention=None, **kwargs):
    return attention_pytorch(*args, **kwargs)
