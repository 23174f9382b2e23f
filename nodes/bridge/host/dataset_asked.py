"""Reads what the page of pictures and captions sends: bounded, and of the kinds that are expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from ....lora_core.data.buckets import USUAL_STEP, check_resolution, numbers, step_at
from ....lora_core.data.inspection import Frames, Reading
from ....lora_core.data.pictures import MASKS
from .folders import dataset_folder, without_paths

_LONGEST = 4096  # characters of a name or a field
_MOST = 20_000  # names in a request


@dataclass(frozen=True)
class Question:
    """The fields of a request, which may be anything: each is looked at when it is asked for.

    What is not of its kind raises web.HTTPBadRequest.
    """

    fields: dict[str, Any]

    @classmethod
    def read(cls, text: str) -> Question:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise web.HTTPBadRequest
        return cls(found)

    @property
    def folder(self) -> str:
        return self.text("folder")

    def text(self, name: str) -> str:
        found = self.fields.get(name, "")
        if isinstance(found, (list, dict)):
            raise web.HTTPBadRequest
        return _text(found if isinstance(found, str) else str(found))

    def switch(self, name: str) -> bool:
        return self.text(name).lower() in ("true", "1")

    def reading(self) -> Reading:
        masks = next((each for each in MASKS if each == (self.text("masks") or "off")), None)
        if masks is None:
            raise web.HTTPBadRequest
        return Reading(
            trigger=self.text("trigger"),
            masks=masks,
            class_images=self.switch("class_images"),
            caption_weights=self.switch("caption_weights"),
        )

    def frames(self) -> Frames:
        """Raises ValueError for a resolution that the node would not take."""
        step = self._number("bucket_step", USUAL_STEP)
        resolution = max(numbers("resolutions", self.text("resolutions")) or (self._number("resolution", 512),))
        check_resolution(resolution, step)
        return Frames(resolution, step_at(resolution, step))

    def names(self) -> list[str]:
        return [_text(each) for each in self._list("names")]

    def edits(self) -> Iterator[tuple[str, str, str]]:
        """(name, caption, what was there before) of each caption to be written."""
        for each in self._list("edits"):
            if not isinstance(each, dict) or not all(isinstance(each.get(key), str) for key in ("name", "text", "was")):
                raise web.HTTPBadRequest
            yield _text(each["name"]), each["text"], _text(each["was"])

    def taken(self) -> Iterator[tuple[str, str]]:
        found = self.fields.get("taken")
        if not isinstance(found, dict) or len(found) > _MOST:
            raise web.HTTPBadRequest
        for name, mark in found.items():
            yield _text(name), _text(mark)

    def _list(self, name: str) -> list[Any]:
        found = self.fields.get(name)
        if not isinstance(found, list) or len(found) > _MOST:
            raise web.HTTPBadRequest
        return found

    def _number(self, name: str, usual: int) -> int:
        try:
            return int(self.text(name) or usual)
        except ValueError:
            raise web.HTTPBadRequest from None


def words(error: ValueError | OSError, folder: str = "") -> str:
    """Return what an error says, without the place of a folder on this machine."""
    if isinstance(error, OSError):
        return f"the disk says: {error.strerror or type(error).__name__}"
    return without_paths(str(error).replace(_place(folder), folder) if folder else str(error))


def _place(folder: str) -> str:
    try:
        return str(Path(dataset_folder(folder)))
    except ValueError:
        return folder


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise web.HTTPBadRequest
    return value
