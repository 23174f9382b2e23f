"""Collects, in a thread, what a ComfyUI server says over its websocket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Event:
    kind: str  # "progress", "executed", ..., one of ours, or "binary" for a preview picture
    data: dict[str, Any]
    time: float = field(default_factory=time.monotonic)  # seconds, time.monotonic()

    @property
    def prompt_id(self) -> str | None:
        return self.data.get("prompt_id")


class EventListener:
    """Mind: ComfyUI sends at most about ten `progress` a second, and nothing for nodes it answers from its cache."""

    def __init__(self, url: str, client_id: str) -> None:
        self._url = f"{url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        self._events: list[Event] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), name="comfyui-events", daemon=True)

    def start(self) -> None:
        """Returns when the server has greeted, so that no event of a later prompt is missed."""
        self._thread.start()
        self.wait(lambda event: event.kind == "status", timeout=120)

    def join(self) -> None:
        """The server is gone, so the socket closes and the thread ends."""
        if self._thread.is_alive():
            self._thread.join(10)

    def all(self, kind: str | None = None, prompt_id: str | None = None) -> list[Event]:
        with self._news:
            return [
                event for event in self._events if kind in (None, event.kind) and prompt_id in (None, event.prompt_id)
            ]

    def wait(self, matches: Callable[[Event], bool], timeout: float = 60) -> Event:
        """The first event so far, or to come, that matches; raises TimeoutError."""
        end, seen = time.monotonic() + timeout, 0
        with self._news:
            while True:
                for event in self._events[seen:]:
                    if matches(event):
                        return event
                seen = len(self._events)
                if not self._news.wait(end - time.monotonic()) and time.monotonic() >= end:
                    last = [event.kind for event in self._events[-5:]]
                    raise TimeoutError(f"no matching event in {timeout} s; the last of {seen} events: {last}")

    async def _listen(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(self._url, max_msg_size=0) as socket:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    self._add(Event(content["type"], content.get("data") or {}))
                elif message.type is aiohttp.WSMsgType.BINARY:
                    self._add(Event("binary", {"bytes": message.data}))

    def _add(self, event: Event) -> None:
        with self._news:
            self._events.append(event)
            self._news.notify_all()
