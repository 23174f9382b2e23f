"""Offloaded weights on their way to a device that copies beside its computing: pinned where they lie, or staged.

The device is the CPU, its streams are recorded ones: values are those of a real step, and every order that a GPU would
need is checked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import comfy.model_management
import pytest
import torch
from harness import host
from harness.calls import encode
from harness.layers import apply_layers
from harness.pages import on_pages
from harness.runs import STEPS, cancelled, on_forward, train
from harness.streams import Streams, gradients
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.plan import Measures, Rates
from lora_loom.nodes.bridge.session import memory_plan
from lora_loom.nodes.bridge.session.memory_plan import Planner
from lora_loom.nodes.bridge.session.offload import copied, largest, slots
from lora_loom.nodes.bridge.session.rates import rates_of
from lora_loom.nodes.bridge.session.rehearsal import Job
from lora_loom.nodes.bridge.session.session import blocks, loaded, trainable
from lora_loom.nodes.bridge.session.staging import COUNT, PAGEABLE, PINNED, STAGED, blank, parts
from tiny.stored import load_stored
from torch import Tensor, nn

CPU = torch.device("cpu")
TRIGGER = ""
WAYS = [PINNED, STAGED]
NEEDED = {
    PINNED: [host.COMPUTE_AFTER_COPIES, host.COPIES_AFTER_COMPUTE, host.UNPIN_AFTER_COPIES],
    STAGED: [
        host.COMPUTE_AFTER_COPIES, host.COPIES_AFTER_COMPUTE, host.FILL_AFTER_COPIES,
        host.COMPUTE_AFTER_QUEUED, host.UNPIN_AFTER_THREAD, host.UNPIN_AFTER_EVENTS,
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


class StoppedError(Exception):
    """In the middle of a step."""


@contextmanager
def stopped(model: Any, streams: Streams) -> Iterator[None]:
    """The second step ends after its first block, when the next one is copied and not yet used."""
    runs = count(1)

    def look(*_: Any) -> None:
        if next(runs) == 2:
            if streams.work is not None:
                streams.work.result()  # not by the logged way: nobody knows that it is done
            raise StoppedError

    hook = blocks(model.model.diffusion_model)[0].register_forward_hook(look)
    try:
        with pytest.raises(StoppedError):
            yield
    finally:
        hook.remove()


def is_over(streams: Streams) -> bool:
    """Whether nothing is pinned any more, nor any thread at work."""
    own = [thread for thread in threading.enumerate() if thread.name.startswith("lora-loom-offload")]
    return not streams.driver.pinned and not comfy.model_management.PINNED_MEMORY and not own


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_gradients_are_equal_to_the_bit_and_in_order(models, pages, family: str, way: str) -> None:
    trio, streams = models(family), Streams()
    (kept,) = gradients(trio, trio.model, 0.0, steps=1)
    with pages(trio.model, streams) if way == STAGED else ExitStack():
        found = gradients(trio, trio.model, 1.0, streams)
    assert all(torch.equal(gradient, kept) for gradient in found)
    assert set(streams.waits) == set(NEEDED[way]), "others are not tried below"
    assert is_over(streams) and not streams.races
    if way == STAGED:
        assert (streams.driver.tried, streams.driver.refused) == (2, 0), "the buffers alone are pinned"
    copies = [launches for launches in streams.beside if launches]
    assert len(copies) > 0.7 * len(streams.beside) and median(copies) > 10, "made beside computing"


@pytest.mark.parametrize(("way", "wait"), [(way, wait) for way in WAYS for wait in NEEDED[way]])
def test_no_wait_can_be_left_out(models, pages, way: str, wait: str) -> None:
    trio, streams = models("flux1"), Streams(ignored=wait)
    with pages(trio.model, streams) if way == STAGED else ExitStack():
        with stopped(trio.model, streams):
            gradients(trio, trio.model, 1.0, streams)
    assert streams.races


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_is_broken_off(models, pages, way: str) -> None:
    """The thread has ended, the buffers are gone, and the weights lie where they lay."""
    trio, streams = models("flux1"), Streams()
    with pages(trio.model, streams) if way == STAGED else ExitStack():
        before = [(own, name, own[name]) for own, name in slots(trio.model.model.diffusion_model)]
        with stopped(trio.model, streams):
            gradients(trio, trio.model, 1.0, streams)
        assert all(own[name] is tensor for own, name, tensor in before)
    assert is_over(streams) and not streams.races
    assert streams.waits[host.COMPUTE_AFTER_COPIES] > 2


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_weights_that_are_patched_lie_in_ram_and_are_pinned(models, pages, random_adapter, share: float) -> None:
    """Beside others that are not, in the same blocks."""
    trio, streams = models("flux1"), Streams()
    patched = apply_layers(trio.model, None, random_adapter(trio.model, size=0.5).layers)[0]
    (kept,) = gradients(trio, patched, 0.0, steps=1)
    with pages(trio.model, streams):
        found = gradients(trio, patched, share, streams)
    assert all(torch.equal(gradient, kept) for gradient in found)
    assert is_over(streams) and not streams.races
    assert streams.driver.tried > COUNT and not streams.driver.refused


def whole(model: Any) -> int:
    return largest(blocks(model.model.diffusion_model))


@pytest.mark.parametrize("form", ["fp32", "fp8_e4m3fn", "nvfp4"])
@pytest.mark.parametrize("room", [COUNT, COUNT + 1, 0], ids=["buffers", "buffers and some weights", "nothing"])
def test_what_is_refused_is_tried_once(models, tmp_path: Path, form: str, room: int) -> None:
    """`room` is how many times the largest block may be pinned. Where even the buffers may not, copies are plain."""
    trio, streams = models("sd15"), Streams()
    with torch.inference_mode():
        model = trio.model if form == "fp32" else load_stored("sd15", tmp_path, form)
    streams.driver.room = room * whole(model)
    (kept,) = gradients(trio, model, 0.0, steps=1)
    found = gradients(trio, model, 1.0, streams)
    assert all(torch.equal(gradient, kept) for gradient in found)
    assert is_over(streams) and not streams.races
    assert streams.driver.refused == (1 if room else 2), "a buffer, a weight"
    assert bool(streams.waits[host.FILL_AFTER_COPIES]) == bool(room)


def test_a_comfyui_that_pins_nothing_is_not_asked(models, monkeypatch) -> None:
    trio, streams = models("flux1"), Streams()
    with streams.installed(), monkeypatch.context() as pins:
        pins.setattr(comfy.model_management, "MAX_PINNED_MEMORY", -1)  # --disable-pinned-memory
        with trainable(trio.model) as patcher:
            assert Planner(patcher).way(Measures(True, 1.0)) == PAGEABLE
            with loaded(patcher, Measures(True, 1.0)) as way:
                assert way == PAGEABLE
    assert not streams.driver.tried


class Packed(Tensor):
    """As a loader of packed weights has them: a class of its own, with attributes."""


def test_tensors_of_every_class_are_copied_whole(tmp_path: Path) -> None:
    packed = Tensor._make_subclass(Packed, torch.arange(6, dtype=torch.uint8))
    packed.kind = "Q8_0"
    with torch.inference_mode():
        quantised = [*load_stored("sd15", tmp_path, "nvfp4").model.diffusion_model.parameters()]
    scalar, columns = torch.tensor(3.0), torch.rand(4, 5).T
    for tensor in (packed, scalar, columns, nn.Parameter(columns, requires_grad=False), *quantised):
        made, wanted = blank(tensor, CPU), copied(tensor, CPU)
        for target, source in zip(parts(made), parts(tensor), strict=True):
            target.copy_(source)
        assert type(made) is type(wanted) and isinstance(made, nn.Parameter) == isinstance(wanted, nn.Parameter)
        assert getattr(made, "kind", "") == getattr(tensor, "kind", "")
        assert (made.shape, made.dtype, made.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
        assert all(torch.equal(*pair) for pair in zip(parts(made), parts(wanted), strict=True))


# -- what is predicted -------------------------------------------------------------------------------------------------


@pytest.fixture
def rated(monkeypatch) -> None:
    """Copies take longer in each way than in the one before it."""
    rates = {PINNED: 4e6, STAGED: 2e6, PAGEABLE: 1e6}
    monkeypatch.setattr(memory_plan, "rates_of", lambda _device, _dtype, way: Rates(1e15, 1e15, 0, rates[way]))


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_knows_how_weights_are_copied(models, pages, rated, way: str) -> None:
    trio, streams, measures = models("flux1"), Streams(), Measures(True, 1.0)
    conditioning = encode(trio.clip, "a", guidance=1.0)
    job = Job(LoraConfig(2), TrainConfig(), (16, 8, 8), conditioning, 64)
    with pages(trio.model, streams) if way == STAGED else ExitStack(), streams.installed():
        with trainable(trio.model) as patcher:
            planner = Planner(patcher)
            settled, line = planner.settle(job, measures, automatic=False)
            seconds = {each: planner.seconds(job, measures, each) for each in (PINNED, STAGED, PAGEABLE)}
            known = dict(memory_plan._traces)
            with loaded(patcher, measures) as really:
                assert really == planner.way(measures) == way
                assert planner.expected(job, settled, really).seconds == planner.seconds(job, measures) == seconds[way]
                assert planner.expected(job, settled, PAGEABLE).seconds == seconds[PAGEABLE]
            assert not planner.otherwise(job, settled, way, way) and memory_plan._traces == known, (
                "nothing is traced again"
            )
            told = planner.otherwise(job, settled, way, PAGEABLE)
    assert seconds[PINNED] < seconds[STAGED] < seconds[PAGEABLE]
    assert ("GB of pinned RAM is used to copy offloaded blocks" in line) == (way == STAGED)
    assert f"about {seconds[PAGEABLE]:.2g} s a step" in told and "not all offloaded weights could be pinned" in told


@pytest.mark.parametrize("way", [PINNED, STAGED, PAGEABLE])
def test_copies_are_measured_in_the_way_in_which_they_are_made(way: str) -> None:
    streams = Streams()
    with streams.installed():
        rates = rates_of.__wrapped__(CPU, torch.float32, way)
    assert rates.copied > 0 and rates.overlapped == (way != PAGEABLE)
    assert bool(streams.waits[host.FILL_AFTER_COPIES]) == (way == STAGED)
    assert streams.driver.tried == {PINNED: 1, STAGED: COUNT, PAGEABLE: 0}[way] and is_over(streams)


# -- through the node --------------------------------------------------------------------------------------------------


def test_runs_end_in_the_same_bytes(models, pages, data, runs: Path) -> None:
    """One at a stretch, one that is cancelled and gone on with, and one that is short of memory in between."""
    trio, streams = models("flux1"), Streams()
    wanted = train(trio, data, run_name="plain").lora_model
    choices = {"offload": 1.0, "memory": "as set"}

    def short(number: int) -> None:
        if number == 3:
            raise torch.OutOfMemoryError("for the test")

    with pages(trio.model, streams), streams.installed():
        found = [train(trio, data, run_name="staged", **choices)]
        with cancelled(trio, 3):
            train(trio, data, run_name="cut", **choices)
        assert is_over(streams)
        found.append(train(trio, data, run_name="cut", **choices))
        with on_forward(trio, short) as forwards:
            found.append(train(trio, data, run_name="short", **choices))
        assert len(forwards) == STEPS + 1
    assert is_over(streams)
    for outputs in found:
        assert all(torch.equal(value, outputs.lora_model[name]) for name, value in wanted.items())
