"""What the front end's list of LoRAs asks the server: names with what their headers tell, and previews.

Only names that ComfyUI itself lists are answered, and files are read by our own guard.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

from ...lora_core.files import card
from ...lora_core.files.faults import UnreadableFileError
from .folders import lora_names

_SECONDS = 1.0  # of reading headers per answer; the front end asks again for the rest

_cards: dict[str, tuple[tuple[int, int], card.Card]] = {}  # path: (size and time, card)


def serve() -> None:
    """Answer below /lora_loom from now on."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get("/lora_loom/loras")(loras)
        server.routes.get("/lora_loom/picture")(picture)


async def loras(_request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(listed))


async def picture(request: web.Request) -> web.Response:
    found = await asyncio.to_thread(pictured, request.query.get("name", ""))
    if found is None:
        return web.Response(status=404)
    headers = {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}  # the front end names the version
    return web.Response(body=found, content_type="image/jpeg", headers=headers)


def listed(seconds: float = _SECONDS) -> dict[str, Any]:
    """Every LoRA that ComfyUI lists; `unread` of them are told by their names alone until the next answer."""
    end, found, unread = time.monotonic() + seconds, [], 0
    for name in lora_names():
        told = _told(name, time.monotonic() < end)
        unread += told is None
        found.append({"name": name.replace("\\", "/"), **(told or {})})
    return {"loras": found, "unread": unread}


def pictured(name: str) -> bytes | None:
    """The preview of a LoRA, as a JPEG; None for a name that is not in ComfyUI's list."""
    path = _path(name)
    return card.picture(path) if path else None


def _path(name: str) -> str | None:
    same = [each for each in lora_names() if each.replace("\\", "/") == name]
    return folder_paths.get_full_path("loras", same[0]) if same else None


def _told(name: str, may_read: bool) -> dict[str, Any] | None:
    path = folder_paths.get_full_path("loras", name)
    try:
        found = os.stat(path or "")
        stamp = (found.st_size, found.st_mtime_ns)
        known = _cards.get(path)
        if known is None or known[0] != stamp:
            if not may_read:
                return None
            known = _cards[path] = (stamp, card.read(path))
    except (OSError, UnreadableFileError):
        return {"fault": "the file cannot be read"}
    return {**known[1].told(), "version": f"{stamp[0]:x}-{stamp[1]:x}"}
