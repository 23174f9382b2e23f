"""Counts the pictures of a folder, and what there is to caption them with, without decoding any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .captions import clean_trigger
from .folder import look
from .pictures import Masks


@dataclass(frozen=True)
class Counts:
    """Counts the pictures with a caption of their own, the `bare` ones that are taken with the trigger or the words of
    their folder alone, and those that are left out as they have neither."""

    captioned: int = 0
    bare: int = 0
    left_out: int = 0


def count(folder: Path, trigger: str, masks: Masks = "off") -> Counts:
    """As `reading.from_folder` takes them, apart from files that cannot be read. Raises ValueError when there are no
    pictures."""
    sets, _ = look(folder, masks)
    captioned = bare = left_out = 0
    for each in sets:
        own = sum(bool(each.captions.of(path)) for path in each.images)
        captioned += own
        if clean_trigger(trigger) or each.words:
            bare += len(each.images) - own
        else:
            left_out += len(each.images) - own
    return Counts(captioned, bare, left_out)
