"""Answers what the front end's list of LoRAs asks the server: names with what their headers tell, and previews.

Only names that ComfyUI itself lists are answered, and files are read by our own guard. Requests of other origins are
refused by ComfyUI before they come here. However many come, one thread answers each kind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import folder_paths
from aiohttp import ETag, web
from server import PromptServer

from ....lora_core.files import card
from ....lora_core.files.library import Library
from .folders import lora_names

_SECONDS = 1.0  # of reading headers per answer; the front end asks again for the rest
_MOST_WAITING = 64  # requests of a kind; a page has one at a time
_LARGE = 2**16  # bytes; more is compressed in a thread
_SAFE = {"X-Content-Type-Options": "nosniff"}

_library = Library()


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


_list_desk, _picture_desk = Desk("list"), Desk("pictures")


def serve() -> None:
    """Answer below /lora_loom from now on."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get("/lora_loom/loras")(loras)
        server.routes.get("/lora_loom/picture")(picture)


async def loras(request: web.Request) -> web.Response:
    """All LoRAs, or with `since` what changed after that version; 304 for a browser that has the list as it is."""
    since = request.query.get("since", "")
    version, body = await _list_desk.ask(_answer, since)
    headers = {**_SAFE, "Cache-Control": "no-store" if since else "no-cache"}
    if not since and any(tag.value == version for tag in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(
            body=body, content_type="application/json", charset="utf-8", headers=headers, zlib_executor_size=_LARGE
        )
        response.enable_compression()
    if not since:
        response.etag = ETag(version, is_weak=True)
    return response


async def picture(request: web.Request) -> web.Response:
    found = await _picture_desk.ask(pictured, request.query.get("name", ""))
    if found is None:
        return web.Response(status=404)
    headers = {**_SAFE, "Cache-Control": "private, max-age=86400"}  # the front end names the version
    return web.Response(body=found, content_type="image/jpeg", headers=headers)


def listed(seconds: float = _SECONDS, since: str = "") -> dict[str, Any]:
    """Every LoRA that ComfyUI lists, or what is another since a version; headers are read for so many seconds."""
    paths = {name.replace("\\", "/"): folder_paths.get_full_path("loras", name) for name in lora_names()}
    _library.look(paths, seconds)
    return _library.changes(since)


def pictured(name: str) -> bytes | None:
    """The preview of a LoRA, as a JPEG; None for a name that is not in ComfyUI's list."""
    path = _path(name)
    return card.picture(path) if path else None


def _answer(since: str) -> tuple[str, bytes]:
    """The version and the list, ready to send: both are the work of a thread."""
    found = listed(since=since)
    return found["version"], json.dumps(found).encode()


def _path(name: str) -> str | None:
    same = [each for each in lora_names() if each.replace("\\", "/") == name]
    return folder_paths.get_full_path("loras", same[0]) if same else None
