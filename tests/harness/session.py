"""A model in a training session in one line, as a run opens it when it has planned what to load and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_loom.lora_core.training.plan import Measures
from lora_loom.nodes.bridge.session.session import aside, loaded, trainable


@contextmanager
def training_session(model: Any, checkpointing: bool, text: Any = None, offload: float = 0.0) -> Iterator[Any]:
    """Yield a loaded ModelPatcher whose model can be differentiated; leave weights, flags and kernels as they were.

    `text`, the ModelPatcher of a CLIP, is loaded beside it and treated in the same way. `offload` is the share of the
    blocks whose weights stay in RAM.
    """
    with trainable(model) as patcher, aside(text) as encoders:
        with loaded(patcher, Measures(checkpointing, offload), text=encoders):
            yield patcher
