"""Runs one prompt in ComfyUI's executor and hears how far it is."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from .asked import title
from .document import Prompt
from .ending import Ending

_LOOK = 0.1  # seconds
_WORKER = "prompt_worker"  # ComfyUI's thread that executes
Hear = Callable[[object, Any], None]


class CancelledError(Exception):
    """A person or the system has ended it; what was trained is kept. `status` is that of the process."""

    def __init__(self, status: int) -> None:
        super().__init__("what was done is kept, and the same command goes on from there")
        self.status = status


class FailedError(Exception):
    """A node has failed, or ComfyUI itself."""


async def executed(
    server: Any, item: tuple, prompt: Prompt, hear: Hear, ending: Ending, nodes: Sequence[str] | None = None
) -> None:
    """Execute an item of the queue, or, under an id of its own, these nodes of it; what was executed before is kept.

    Raises CancelledError or FailedError.
    """
    if ending.came:
        raise CancelledError(ending.status)
    item = item if nodes is None else (item[0], str(uuid.uuid4()), *item[2:4], list(nodes), *item[5:])
    server.prompt_queue.put(item)
    entry = await _ended(server, item[1], hear, ending)
    status = entry.get("status") or {}
    if status.get("completed"):
        return
    for kind, data in status.get("messages") or []:
        if kind == "execution_interrupted":
            raise CancelledError(ending.status)
        if kind == "execution_error":
            node = str(data.get("node_id"))
            raise FailedError(f"{title(prompt, node)} (node {node}): {str(data.get('exception_message')).strip()}")
    raise FailedError("ComfyUI did not say why it ended; run it again with --verbose")


async def _ended(server: Any, key: str, hear: Hear, ending: Ending) -> dict[str, Any]:
    worker = next((each for each in threading.enumerate() if _WORKER in each.name), None)
    while not (entry := server.prompt_queue.get_history(prompt_id=key).get(key)):
        _hear_all(server, hear, ending)
        if worker is not None and not worker.is_alive():
            raise FailedError("ComfyUI's executor has ended; what it said is above")
        await asyncio.sleep(_LOOK)
    await asyncio.sleep(_LOOK)
    _hear_all(server, hear, ending)
    return entry


def _hear_all(server: Any, hear: Hear, ending: Ending) -> None:
    """ComfyUI forgets a cancel from before a prompt begins."""
    while not server.messages.empty():
        event, data, *_ = server.messages.get_nowait()
        if event == "execution_start" and ending.came:
            ending.cancel()
        hear(event, data)
