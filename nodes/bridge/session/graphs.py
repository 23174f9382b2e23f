"""Steps of a run as graphs of a CUDA device, where they are asked for.

No run takes this of its own accord: Train LoRA's cuda_graphs asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache

import torch

from ....lora_core.training.plan import Measures
from ....lora_core.training.replayed import Replayed
from ....lora_core.training.tasks import Task
from ..host.device import streams_of

_MODE = "thread_local"  # of captures: calls that other threads make to the device meanwhile are let pass


class CudaGraphs:
    """Satisfies `lora_core.training.replayed.Graphs`. All graphs share one pool, which is right as no two run at once
    and no tensor that one of them makes is looked at when the next has run."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, _stream_of(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], None]) -> None:
        """On the stream of the captures: libraries make a work space for each stream that they meet."""
        around = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(around)
        try:
            with torch.cuda.stream(self.stream):
                work()
        finally:
            around.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Without torch.cuda.graph: when a capture fails, it stays on its stream, and its pool goes on collecting."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # which graphs cannot use
        with torch.cuda.stream(self.stream), ExitStack() as undo:
            undo.callback(self._cut_off, graph)
            graph.capture_begin(self.pool, capture_error_mode=_MODE)
            work()
            graph.capture_end()
            undo.pop_all()
        return graph.replay

    def _cut_off(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that has failed. CUDA's random numbers, which torch takes to be captured until a capture ends
        well, would fail in all that this process does later: an empty one does."""
        with suppress(RuntimeError):  # it has failed already
            graph.capture_end()
        with suppress(RuntimeError, AttributeError):  # the pool has been left, or torch calls it otherwise
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), self.pool)
        with suppress(RuntimeError), torch.inference_mode():  # in which others' graphs may have made what is written
            whole = torch.cuda.CUDAGraph()
            whole.capture_begin(capture_error_mode=_MODE)
            torch.zeros(1, device=self.device)
            whole.capture_end()

    def close(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all runs: libraries keep a work space for each stream that they have met, to the end of the process."""
    return torch.cuda.Stream(device)


def lacking(device: torch.device) -> str:
    """Return why steps are not replayed on the device, in words; empty where they can be.

    What a failed capture has taken by cudaMallocAsync is freed by a call that CUDA refuses, where nothing can catch it.
    """
    if streams_of(device) is None:
        return "graphs need a GPU of NVIDIA or AMD"
    if torch.cuda.get_allocator_backend() != "native":
        return "graphs need ComfyUI to be started with --disable-cuda-malloc"
    return ""


def possible(asked: Measures, text: bool, device: torch.device, task: Task) -> Measures:
    """Return the measures, without graphs where there can be none. `text`: text encoders are trained."""
    return replace(asked, graph=asked.graph and task.replays and not text and not lacking(device))


def unused(asked: Measures, taken: Measures, text: bool, device: torch.device, task: Task) -> str:
    """Say why graphs that were asked for are not used; empty when they are, or were not. `text` as in `possible`."""
    if not asked.graph or taken.replays:
        return ""
    reasons = (
        "" if task.replays else f"steps that learn from {task.name} are not captured",
        "text encoders are trained" * text, lacking(device), "gradient_checkpointing is on" * taken.checkpointing,
        "blocks are offloaded" * bool(taken.offload), "there is too little memory for graphs",
    )  # fmt: skip
    return f"cuda_graphs is not used: {next(filter(None, reasons))}"


@contextmanager
def replaying(device: torch.device, measures: Measures, tell: Callable[[str], object]) -> Iterator[Replayed | None]:
    """Yield the gradient of steps that are replayed; None where the measures do not say so, or the device cannot."""
    if not measures.replays or lacking(device):
        yield None
        return
    gradient = Replayed(CudaGraphs(device), tell)
    try:
        yield gradient
    finally:
        gradient.close()
