"""Answers what the front end's list of LoRAs asks the server: names with what their headers tell, and previews.

Only names that ComfyUI itself lists are answered, and files are read by our own guard.
"""

from __future__ import annotations

import json
from typing import Any

import folder_paths
from aiohttp import ETag, web

from ....lora_core.files import card
from ....lora_core.files.library import Library
from .desk import SAFE, Desk, in_json, thumbnail
from .folders import lora_names
from .takedown import rules

_SECONDS = 1.0  # of reading headers per answer; the front end asks again for the rest

_library = Library()
_list_desk, _picture_desk = Desk("list"), Desk("pictures")


def serve_by(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/loras")(loras)
    routes.get("/lora_loom/picture")(picture)


async def loras(request: web.Request) -> web.Response:
    """Return all LoRAs, or with `since` what changed after that version; 304 for a browser that has the list as it
    is."""
    since = request.query.get("since", "")
    version, body = await _list_desk.ask(_answer, since)
    if since:
        return in_json(body)
    headers = {**SAFE, "Cache-Control": "no-cache"}
    same = any(tag.value == version for tag in request.if_none_match or ())
    response = web.Response(status=304, headers=headers) if same else in_json(body, headers=headers)
    response.etag = ETag(version, is_weak=True)
    return response


async def picture(request: web.Request) -> web.Response:
    return thumbnail(await _picture_desk.ask(pictured, request.query.get("name", "")))


def listed(seconds: float = _SECONDS, since: str = "") -> dict[str, Any]:
    """Return every LoRA that ComfyUI lists, or what is another since a version; headers are read for so many
    seconds."""
    paths = {name.replace("\\", "/"): folder_paths.get_full_path("loras", name) for name in lora_names()}
    _library.look(paths, seconds, rules())
    return _library.changes(since)


def pictured(name: str) -> bytes | None:
    """Return the preview of a LoRA, as a JPEG; None for a name that is not in ComfyUI's list."""
    path = _path(name)
    return card.picture(path) if path else None


def _answer(since: str) -> tuple[str, bytes]:
    """The version and the list, ready to send: both are the work of a thread."""
    found = listed(since=since)
    return found["version"], json.dumps(found).encode()


def _path(name: str) -> str | None:
    same = [each for each in lora_names() if each.replace("\\", "/") == name]
    return folder_paths.get_full_path("loras", same[0]) if same else None
