"""Answers what the front end asks below /lora_loom/: each kind of work in a thread of its own, as JSON or a picture.

Requests of other origins are refused by ComfyUI before they come here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from server import PromptServer

SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_A_DAY = {**SAFE, "Cache-Control": "private, max-age=86400"}
_MOST_WAITING = 64  # requests of a kind; a page has one at a time
_LARGEST = 2**23  # bytes of a request
_LARGE = 2**16  # bytes; more is compressed in a thread
Route = Callable[[web.Request], Awaitable[web.Response]]


class RefusedError(Exception):
    """Says why something was not done, with HTTP's number for the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Desk:
    """One thread that answers in turn; who finds a long queue is sent away."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, f"lora_loom_{name}")
        self._waiting = 0

    async def ask(self, answer: Callable[..., Any], *question: Any) -> Any:
        if self._waiting >= _MOST_WAITING:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, answer, *question)
        finally:
            self._waiting -= 1

    async def json(self, answer: Callable[..., Any], *question: Any) -> web.Response:
        """Send what `answer` returns; what it raises as RefusedError is told as {error}."""
        status, body = await self.ask(_written, answer, *question)
        return in_json(body, status)


def serve(*rooms: Callable[[web.RouteTableDef], None]) -> None:
    """Answer with the routes of each from now on."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        for serve_by in rooms:
            serve_by(server.routes)


def of_json(route: Route) -> Route:
    """Take only JSON, which a page of another origin cannot send without asking first, and not too much of it."""

    async def respond(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType
        if (size := request.content_length or 0) > _LARGEST or (size := len(await request.read())) > _LARGEST:
            raise web.HTTPRequestEntityTooLarge(_LARGEST, size)
        return await route(request)

    return respond


def in_json(body: bytes, status: int = 200, headers: Mapping[str, str] = SAFE) -> web.Response:
    response = web.Response(
        status=status, body=body, content_type="application/json", charset="utf-8", headers=headers,
        zlib_executor_size=_LARGE,
    )  # fmt: skip
    response.enable_compression()
    return response


def thumbnail(jpeg: bytes | None) -> web.Response:
    """Return a picture whose address names its version; none for one that cannot be read (b"") or is not there
    (None)."""
    if not jpeg:
        return web.Response(status=404 if jpeg is None else 204)
    return web.Response(body=jpeg, content_type="image/jpeg", headers=_A_DAY)


def _written(answer: Callable[..., Any], *question: Any) -> tuple[int, bytes]:
    try:
        return 200, json.dumps(answer(*question)).encode()
    except RefusedError as refusal:
        return refusal.status, json.dumps({"error": str(refusal)}).encode()
