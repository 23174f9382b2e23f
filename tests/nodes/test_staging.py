"""Offloaded weights on their way to a device that copies beside its computing: pinned where they lie, or staged.

The device is the CPU, its streams are recorded ones: values are those of a real step, and every order that a GPU would
need is checked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import comfy.model_management
import pytest
import torch
from harness import streams as recorded
from harness.calls import encode
from harness.pages import on_pages
from harness.problem import Problem
from harness.runs import SETTINGS, cancelled, on_forward, train
from harness.streams import RaceError, Streams
from lora_loom.nodes.bridge import session, staging
from lora_loom.nodes.bridge.offload import Stream, largest, shared_out, slots
from lora_loom.nodes.bridge.patching import apply_layers
from lora_loom.nodes.bridge.rates import rates_of
from lora_loom.nodes.bridge.session import blocks, loaded, trainable, training_session
from lora_loom.nodes.bridge.staging import PAGEABLE, PINNED, STAGED, Staging, blank, foreseen, parts, room_for
from lora_loom.lora_core.training.plan import Measures
from tiny.stored import load_stored
from torch import Tensor, nn

CPU = torch.device("cpu")
TRIGGER = ""
WAYS = [PINNED, STAGED]
NEEDED = {
    PINNED: [recorded.COMPUTE_AFTER_COPIES, recorded.COPIES_AFTER_COMPUTE, recorded.UNPIN_AFTER_COPIES],
    STAGED: [
        recorded.COMPUTE_AFTER_COPIES, recorded.COPIES_AFTER_COMPUTE, recorded.FILL_AFTER_COPIES,
        recorded.COMPUTE_AFTER_QUEUED, recorded.UNPIN_AFTER_THREAD, recorded.UNPIN_AFTER_EVENTS,
    ],
}  # fmt: skip


@pytest.fixture
def pages(tmp_path: Path) -> Any:
    """Puts the weights of a MODEL on read-only pages, which the driver of the streams refuses to pin."""

    @contextmanager
    def laid(model: Any, streams: Streams) -> Iterator[None]:
        with on_pages(model.model.diffusion_model, tmp_path / "weights") as streams.driver.read_only:
            yield

    return laid


def gradients(streams: Streams | None, model: Any, clip: Any, share: float = 1.0, steps: int = 2) -> list[Tensor]:
    conditioning = [encode(clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with ExitStack() as stack:
        if streams is not None:
            stack.enter_context(streams.installed())
        stack.enter_context(torch.inference_mode())
        patcher = stack.enter_context(training_session(model, True, offload=share))
        problem = Problem.of_model(patcher, conditioning)
        if streams is not None:
            stack.enter_context(streams.recorded())
        return [problem.gradient() for _ in range(steps)]


def is_over(streams: Streams) -> bool:
    """Whether nothing is pinned any more, nor any thread at work."""
    own = [thread for thread in threading.enumerate() if thread.name.startswith("lora-loom-offload")]
    return not streams.driver.pinned and not comfy.model_management.PINNED_MEMORY and not own


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["sd15_full", "flux1"])
def test_gradients_are_equal_to_the_bit_and_in_order(models, pages, family: str, way: str) -> None:
    trio, streams = models(family), Streams()
    (kept,) = gradients(None, trio.model, trio.clip, 0.0, 1)
    with pages(trio.model, streams) if way == STAGED else ExitStack():
        found = gradients(streams, trio.model, trio.clip)
    assert all(torch.equal(gradient, kept) for gradient in found)
    assert set(streams.waits) == set(NEEDED[way]), "others are not tried below"
    assert is_over(streams)
    if way == STAGED:
        assert (streams.driver.tried, streams.driver.refused) == (2, 0), "the buffers alone are pinned"
    copies = [launches for launches in streams.beside if launches]
    assert len(copies) > 0.7 * len(streams.beside) and median(copies) > 20, "made beside computing"


@pytest.mark.parametrize(("way", "wait"), [(way, wait) for way in WAYS for wait in NEEDED[way]])
def test_no_wait_can_be_left_out(models, pages, way: str, wait: str) -> None:
    trio, streams = models("flux1"), Streams(ignored=wait)
    with pages(trio.model, streams) if way == STAGED else ExitStack(), pytest.raises(RaceError):
        gradients(streams, trio.model, trio.clip)
