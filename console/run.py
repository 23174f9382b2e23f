"""Runs one prompt in ComfyUI's executor and hears how far it is."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Job:
    """A prompt that the server has accepted, as an item of its queue."""

    server: Any
    item: tuple
    prompt: Prompt
    hear: Hear
    ending: Ending

    async def executed(self, nodes: Sequence[str] | None = None) -> None:
        """Execute it, or, under an id of its own, these nodes of it; what was executed before is kept.

        Raises CancelledError or FailedError.
        """
        if self.ending.came:
            raise CancelledError(self.ending.status)
        item = self.item
        if nodes is not None:
            item = (item[0], str(uuid.uuid4()), *item[2:4], list(nodes), *item[5:])
        self.server.prompt_queue.put(item)
        self._judge((await self._ended(item[1])).get("status") or {})

    async def _ended(self, key: str) -> dict[str, Any]:
        """Return what the history says of it when it is over."""
        worker = next((each for each in threading.enumerate() if _WORKER in each.name), None)
        while not (entry := self.server.prompt_queue.get_history(prompt_id=key).get(key)):
            self._hear_all()
            if worker is not None and not worker.is_alive():
                raise FailedError("ComfyUI's executor has ended; what it said is above")
            await asyncio.sleep(_LOOK)
        await asyncio.sleep(_LOOK)
        self._hear_all()
        return entry

    def _hear_all(self) -> None:
        """ComfyUI forgets a cancel from before a prompt begins."""
        messages = self.server.messages
        while not messages.empty():
            event, data, *_ = messages.get_nowait()
            if event == "execution_start" and self.ending.came:
                self.ending.cancel()
            self.hear(event, data)

    def _judge(self, status: Mapping[str, Any]) -> None:
        if status.get("completed"):
            return
        for kind, data in status.get("messages") or []:
            if kind == "execution_interrupted":
                raise CancelledError(self.ending.status)
            if kind == "execution_error":
                node = str(data.get("node_id"))
                said = str(data.get("exception_message")).strip()
                raise FailedError(f"{title(self.prompt, node)} (node {node}): {said}")
        raise FailedError("ComfyUI did not say why it ended; run it again with --verbose")
