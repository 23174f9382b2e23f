"""Captures of a CUDA device, for which a stand-in keeps torch's rules of them: one that fails leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lora_loom.nodes.bridge.session import graphs
from lora_loom.nodes.bridge.session.graphs import CudaGraphs


class Device:
    """Holds what torch knows of a device: which streams are captured, which pools collect, how many graphs hold each,
    and whether random numbers are taken to be captured. `refuses` names the call that fails."""

    def __init__(self) -> None:
        self.stream = self.usual = Stream()
        self.captured, self.collecting, self.holders = set(), [], {}
        self.random, self.refuses, self.ran = False, "", []

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def end_pool(self, _device: int, pool: object) -> None:
        if pool not in self.collecting:
            raise RuntimeError("not currently recording to the pool")
        self.collecting.remove(pool)

    def release(self, _device: int, pool: object) -> None:
        self.holders[pool] -= 1


class Stream:
    def __init__(self, *_: object) -> None:
        self.waited = []

    def wait_stream(self, other: object) -> None:
        self.waited.append(other)


class Graph:
    """torch.cuda.CUDAGraph up to 2.11: a capture that was made invalid raises at its end, when it has left its stream,
    but neither its pool nor the random numbers."""

    device: Device

    def __init__(self) -> None:
        self.ended = False

    def capture_begin(self, pool: object = "own", capture_error_mode: str = "global") -> None:
        device = self.device
        assert device.stream != device.usual and device.stream not in device.captured and not device.collecting
        device.random = True
        device.collecting.append(pool)
        device.holders[pool] = device.holders.get(pool, 0) + 1
        self.pool, self.mode = pool, capture_error_mode
        if device.refuses == "begin":
            device.refuses = ""
            raise RuntimeError("refused to begin")
        device.captured.add(device.stream)

    def capture_end(self) -> None:
        device = self.device
        if device.stream not in device.captured:
            raise RuntimeError("no capture is under way")
        device.captured.remove(device.stream)
        if device.refuses == "end":
            device.refuses = ""
            raise RuntimeError("capture was made invalid")
        device.end_pool(0, self.pool)
        device.random, self.ended = False, True

    def replay(self) -> None:
        assert self.ended
        self.device.ran.append("replayed")

    def __del__(self) -> None:
        if self.ended:
            self.device.release(0, self.pool)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device, zeros = Device(), torch.zeros
    monkeypatch.setattr(Graph, "device", device, raising=False)
    for name, stand_in in {
        "CUDAGraph": Graph, "Stream": Stream, "stream": device.on, "synchronize": lambda *_: None,
        "empty_cache": lambda: None, "graph_pool_handle": object, "current_device": lambda: 0,
        "current_stream": lambda _: device.usual,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", device.end_pool, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", device.release, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: zeros(*shape))
    graphs._stream_of.cache_clear()
    yield device
    graphs._stream_of.cache_clear()


def is_clear(device: Device) -> bool:
    found = (device.stream, device.captured, device.collecting, device.random)
    return found == (device.usual, set(), [], False) and not any(device.holders.values())


def test_what_is_captured_is_replayed_and_its_memory_goes_with_it(device: Device) -> None:
    captures = CudaGraphs(torch.device("cuda"))
    captures.run(lambda: device.ran.append(device.stream))
    assert device.ran == [captures.stream]
    assert captures.stream.waited == [device.usual] and device.usual.waited == [captures.stream]
    replay = captures.capture(lambda: device.ran.append(device.captured.copy()))
    replay()
    assert device.ran[1:] == [{captures.stream}, "replayed"] and device.holders == {captures.pool: 1}
    del replay
    captures.close()
    assert is_clear(device) and CudaGraphs(torch.device("cuda")).stream is captures.stream


@pytest.mark.parametrize("where", ["begin", "work", "work and end", "end"])
def test_a_capture_that_fails_leaves_nothing_behind_and_the_next_one_is_made(device: Device, where: str) -> None:
    """Neither a stream under capture, nor a pool that collects or is held, nor random numbers that would be refused."""

    def work() -> None:
        if "work" in where:
            raise RuntimeError("the work failed")

    captures = CudaGraphs(torch.device("cuda"))
    device.refuses = where.split()[-1]
    with pytest.raises(RuntimeError, match={"begin": "refused", "end": "invalid"}.get(where, "the work failed")):
        captures.capture(work)
    assert is_clear(device), vars(device)
    captures.capture(lambda: None)()
    assert device.ran == ["replayed"] and is_clear(device)
