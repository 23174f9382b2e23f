"""Answers what the rows on Load LoRA Stack ask about the model that they are connected to: its family and its blocks.

Only models that ComfyUI lists are looked at, by their headers; what a header does not tell is not in the answer.
"""

from __future__ import annotations

from typing import Any

import folder_paths
from aiohttp import web

from ....lora_core.families.blocks import PRESETS
from ....lora_core.families.signs import SIGNS
from ..host.desk import Desk
from ..model.header_family import look

_FOLDERS = ("checkpoints", "diffusion_models")

_desk = Desk("family")


def serve_by(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/family")(family)


async def family(request: web.Request) -> web.Response:
    return await _desk.json(told, *(request.query.get(key, "") for key in ("folder", "name")))


def told(folder: str, name: str) -> dict[str, Any]:
    """`family` is "" where none is known; whether a LoRA fits can be `judged` only of one whose files have signs."""
    path = folder_paths.get_full_path(folder, name) if _is_listed(folder, name) else None
    found = look(path) if path else None
    if found is None or found.family is None:
        return {"family": "", "judged": False, "blocks": [], "presets": {}}
    of = found.family.name
    return {"family": of, "judged": of in SIGNS, "blocks": found.blocks, "presets": dict(PRESETS.get(of, {}))}


def _is_listed(folder: str, name: str) -> bool:
    return folder in _FOLDERS and name in folder_paths.get_filename_list(folder)
