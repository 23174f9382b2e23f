"""Answers what the page of pictures and captions asks the server, and makes the changes that it asks for.

A folder is resolved as LoRA Dataset does it, and names in a request are compared with those in it, never joined to a
path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from ....lora_core.data import decoding, edits
from ....lora_core.data.album import Album, Shown
from ....lora_core.data.decoding import PictureError
from ....lora_core.data.edits import ChangedError
from ....lora_core.data.folder import TAKEN_OUT
from ....lora_core.data.inspection import NEAR_COPIES, copies
from ....lora_core.data.places import places
from ....lora_core.files.thumbnail import jpeg
from . import dataset_asked as asked
from . import dataset_masks as masks
from .dataset_asked import Question
from .dataset_kept import Albums, Looks, Taken
from .desk import SAFE, Desk, Route, of_json
from .desk import thumbnail as in_jpeg
from .folders import data_roots, upload_place

_SECONDS = 1.0  # of looking at pictures per answer; the page asks again for the rest

_desks = {name: Desk(f"dataset_{name}") for name in ("files", "folders", "looks", "thumbnails")}
_albums, _looks, _taken, _painter = Albums(), Looks(), Taken(), masks.Painter()


def serve_by(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/dataset/folders")(_reader(folders, "folders"))
    routes.get("/lora_loom/dataset/place")(_reader(place))
    routes.get("/lora_loom/dataset/pictures")(_reader(pictures))
    routes.get("/lora_loom/dataset/thumbnail")(thumbnail)
    routes.get("/lora_loom/dataset/canvas")(canvas)
    routes.post("/lora_loom/dataset/mask")(_writer(mask, "looks"))
    routes.post("/lora_loom/dataset/mask_back")(_writer(mask_back))
    routes.post("/lora_loom/dataset/look")(_writer(look, "looks"))
    routes.post("/lora_loom/dataset/copies")(_writer(same, "looks"))
    routes.post("/lora_loom/dataset/captions")(_writer(write))
    routes.post("/lora_loom/dataset/take_out")(_writer(take_out))
    routes.post("/lora_loom/dataset/put_back")(_writer(put_back))


# -- what is asked for -------------------------------------------------------------------------------------------------


def folders(_: Question) -> dict[str, Any]:
    found, whole = places(data_roots())
    return {"folders": [asdict(each) for each in found], "whole": whole, "suffixes": decoding.SUFFIXES}


def place(question: Question) -> dict[str, Any]:
    """Return where ComfyUI's upload puts pictures for a folder; a new one where none is named."""
    folder = upload_place(question.folder, question.text("name"))
    return {"folder": folder, "subfolder": folder}


def pictures(question: Question) -> dict[str, Any]:
    """All pictures with their captions, and whether they may be changed."""
    album = _albums.fresh(question)
    return {
        "pictures": [_told(album.shown(name)) for name in album.names()],
        "total": len(album.pictures),
        "locked": album.locked(album.folder),
        "left_out": [[name, why] for name, why in album.left_out[:200]],
    }


def look(question: Question) -> dict[str, Any]:
    """Sizes, crops and marks of the pictures that are named, as many as the time lets."""
    album, end = _albums.known(question), time.monotonic() + _SECONDS
    found = {}
    for name in question.names():
        if name in album.pictures and (not found or time.monotonic() < end):
            one = _looks.at(album.pictures[name][1], question.frames(), album)
            found[name] = {
                "size": one.size, "bucket": one.bucket, "frame": one.frame, "marks": one.marks, "fault": one.fault
            }  # fmt: skip
    return {"looks": found}


def same(question: Question) -> dict[str, Any]:
    """Groups of copies among the pictures that were looked at."""
    album = _albums.known(question)
    names = {str(path): name for name, (_, path) in album.pictures.items()}
    looks = _looks.of(album, question.frames())
    found = [[mark, text, [names[path] for path in paths if path in names]] for mark, text, paths in copies(looks)]
    return {"copies": found, "whole": len(looks) <= NEAR_COPIES}


def write(question: Question) -> dict[str, Any]:
    """Captions, each unless its file is not as it `was`; and all captions that are others now."""
    album = _albums.fresh(question)
    changed, refused, written = [], [], set()
    for name, text, was in question.edits():
        if name not in album.pictures:
            refused.append([name, "it is not in the folder any more"])
            continue
        try:
            edits.write_caption(album, name, text, was)
            written.update(album.together(name))
        except ChangedError:
            changed.append(name)
        except (ValueError, OSError) as error:
            refused.append([name, asked.words(error)])
    after = _albums.fresh(question)
    now = {name for each in (*written, *changed) if each in after.pictures for name in after.together(each)}
    return {
        "captions": [_told(after.shown(name)) for name in sorted(now)],
        "changed": changed,
        "refused": refused,
    }


def take_out(question: Question) -> dict[str, Any]:
    """Moves pictures to a folder below; `taken` is by what they are put back."""
    album = _albums.fresh(question)
    taken, refused = {}, []
    for name in question.names():
        try:
            if name in album.pictures:
                taken[name] = _taken.keep(edits.take_out(album, name))
        except (ValueError, OSError) as error:
            refused.append([name, asked.words(error)])
    return {"taken": taken, "refused": refused, "to": TAKEN_OUT}


def put_back(question: Question) -> dict[str, Any]:
    back, refused = [], []
    for name, mark in question.taken():
        try:
            _taken.put_back(mark)
            back.append(name)
        except (ValueError, OSError) as error:
            refused.append([name, asked.words(error)])
    return {"back": back, "refused": refused}


def mask(question: Question) -> dict[str, Any]:
    """The mask of a picture, from what the mask editor has uploaded; `mark` is by what it is undone."""
    return _masked(question, _painter.paint, question.text("painted"))


def mask_back(question: Question) -> dict[str, Any]:
    return _masked(question, _painter.back, question.text("mark"))


async def canvas(request: web.Request) -> web.Response:
    """A picture as the mask editor asks for it, by `channel`; 404 for one that is not there or cannot be read."""
    found = await _desks["thumbnails"].ask(_canvas, Question(dict(request.query)))
    if found is None:
        return web.Response(status=404)
    return web.Response(body=found[1], content_type=found[0], headers=SAFE)


async def thumbnail(request: web.Request) -> web.Response:
    """Return a picture, or its mask, drawn anew as a small JPEG; nothing for one that cannot be read."""
    return in_jpeg(await _desks["thumbnails"].ask(_thumbnail, Question(dict(request.query))))


# -- how it is answered ------------------------------------------------------------------------------------------------


def _reader(answer: Callable[[Question], dict[str, Any]], desk: str = "files") -> Route:
    async def respond(request: web.Request) -> web.Response:
        return await _desks[desk].json(_answered, answer, Question(dict(request.query)))

    return respond


def _writer(answer: Callable[[Question], dict[str, Any]], desk: str = "files") -> Route:
    async def respond(request: web.Request) -> web.Response:
        return await _desks[desk].json(_answered, answer, Question.read(await _body(request)))

    return of_json(respond)


async def _body(request: web.Request) -> str:
    try:
        return await request.text()
    except (UnicodeDecodeError, LookupError):  # of a character set that nobody knows
        raise web.HTTPBadRequest from None


def _answered(answer: Callable[[Question], dict[str, Any]], question: Question) -> dict[str, Any]:
    try:
        return answer(question)
    except (ValueError, OSError) as error:
        return {"problem": asked.words(error, question.folder)}


def _thumbnail(question: Question) -> bytes | None:
    """None for a picture that is not in the folder."""
    try:
        path = _picture(_albums.known(question), question.text("name"), bool(question.text("mask")))
    except (ValueError, OSError):
        return None
    try:
        side = 512 if question.text("side") == "512" else 256
        return jpeg(decoding.small(decoding.content(path), side, decoding.PICTURE)) if path else None
    except (PictureError, OSError):
        return b""


def _canvas(question: Question) -> tuple[str, bytes] | None:
    try:
        return masks.canvas(_albums.known(question), question.text("name"), question.text("channel"))
    except (ValueError, OSError):
        return None


def _masked(question: Question, change: Callable[[Album, str, str], dict[str, Any]], by: str) -> dict[str, Any]:
    album, name = _albums.fresh(question), question.text("name")
    found = change(album, name, by)
    _looks.forget(album.pictures[name][1])
    return found


def _picture(album: Album, name: str, mask: bool) -> Path | None:
    if name not in album.pictures:
        return None
    return album.mask(name) if mask else album.pictures[name][1]


def _told(shown: Shown) -> dict[str, Any]:
    return asdict(shown)
