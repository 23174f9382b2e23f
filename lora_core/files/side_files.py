"""Reads what other programs wrote of a LoRA into files beside it. They are somebody else's: whatever is in them, what
comes back is short text, and nothing is asked of any server."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import guard
from .faults import UnreadableFileError, UnsafeFileError
from .nested import table_of
from .permissions import Permissions, permissions_of
from .words import listed, unique

LARGEST = 2 * 2**20  # bytes
MOST_WORDS = 12
LONGEST, LONGEST_NOTES = 240, 600
PICTURES = (
    ".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp", ".thumb.jpg",
)  # fmt: skip

_LOOKED_AT = 20_000  # characters of a text: an image in a description is one word of a million
_BREAKS = re.compile(r"<(?:br|/p|/li|/div|/h[1-6])\b[^<>]*>", re.IGNORECASE)
_TAGS = re.compile(
    r"</?(?:a|b|blockquote|br|code|div|em|h[1-6]|hr|i|iframe|img|li|ol|p|pre|s|span|strong|sub|sup|table|tbody|td|th|tr"
    r"|u|ul)\b[^<>]*>",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SAYS_NOTHING = {"", "unknown", "other", "none"}


class Format(NamedTuple):
    """A kind of side file. `places` are where each field stands in its JSON, the first that says something first, with
    a dot for each table on the way; without any the file is notes in plain text.

    The ending follows the LoRA's name without its suffix, or `after_all` of it.
    """

    ending: str
    program: str
    places: Mapping[str, tuple[str, ...]]
    after_all: bool = False


_CIVITAI = {
    "title": ("model.name",), "words": ("trainedWords",), "base": ("baseModel",), "author": ("creator.username",),
    "notes": ("description", "model.description"), "tags": ("model.tags",), "permissions": ("model",),
    "answers": ("model",),
}  # fmt: skip
FORMATS = (  # those that people write into first
    Format(".metadata.json", "Lora-Manager", {
        "title": ("model_name",), "words": ("civitai.trainedWords",), "base": ("base_model",),
        "author": ("civitai.creator.username",), "notes": ("notes", "modelDescription", "civitai.description"),
        "tags": ("tags",), "strength": ("usage_tips",), "permissions": ("civitai.model",),
        "answers": ("civitai.model",), "preview": ("preview_url",), "favourite": ("favorite",),
    }),
    Format(".rgthree-info.json", "rgthree", {
        "title": ("name",), "words": ("trainedWords",), "base": ("baseModel",), "notes": ("userNote",),
        "author": ("raw.civitai.creator.username",), "strength": ("strengthMax",),
        "permissions": ("raw.civitai.model",), "answers": ("raw.civitai.model",),
    }, after_all=True),
    Format(".json", "A1111", {
        "words": ("activation text",), "base": ("sd version",), "notes": ("notes", "description"),
        "strength": ("preferred weight",),
    }),
    Format(".civitai.info", "Civitai Helper", _CIVITAI),
    Format(".cm-info.json", "Stability Matrix", {
        "title": ("UserTitle", "ModelName"), "words": ("TrainedWords",), "base": ("BaseModel",), "tags": ("Tags",),
        "notes": ("VersionDescription", "ModelDescription"),
    }),
    Format(".txt", "a text file", {}),
    Format(".description.txt", "a text file", {}),
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """`values` by field, none of them empty, and by the same fields the program whose file says so in `source`."""

    values: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def answers(self) -> Permissions:
        """Return the author's answers to Civitai, which `permissions` has in words."""
        return self.values.get("answers", Permissions())

    @property
    def preview(self) -> str:
        """Return the name of a picture in the LoRA's folder, which may not be there."""
        return self.values.get("preview", "")


def told(path: str | os.PathLike[str]) -> Told:
    """Return what all side files of a LoRA say; of those that say the same, what stands in the first of FORMATS."""
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for side in FORMATS:
        for name, value in _read(side, Path(path)):
            if name not in values:
                values[name], source[name] = value, side.program
    return Told(values, source)


def beside(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names that files of others may have beside a LoRA, pictures included."""
    path = Path(path)
    stem = path.name.removesuffix(path.suffix)
    return tuple(_named(side, path) for side in FORMATS) + tuple(stem + ending for ending in PICTURES)


def short(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _named(side: Format, path: Path) -> str:
    return (path.name if side.after_all else path.name.removesuffix(path.suffix)) + side.ending


def _read(side: Format, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield fields with what they say."""
    raw = _content(path.with_name(_named(side, path)))
    if not side.places:
        text = _notes(raw.decode("utf-8-sig", "replace"))
        yield from [("notes", text)] if text else []
    elif guard.fits(raw, 0):
        table = table_of(raw.decode("utf-8-sig", "replace"))
        for name, places in side.places.items():
            found = (_READERS[name](_at(table, place)) for place in places)
            if value := next(filter(None, found), None):
                yield name, value


def _content(path: Path) -> bytes:
    """Return what is in a file; nothing of one that is not there, is no file, or is larger than any of its kind."""
    try:
        with guard.opened(path) as file:
            found = file.read(LARGEST + 1)
    except (UnreadableFileError, UnsafeFileError, OSError, ValueError):
        return b""
    return found if len(found) <= LARGEST else b""


def _at(table: Any, place: str) -> Any:
    for key in place.split("."):
        table = table.get(key) if isinstance(table, dict) else None
    return table


# -- a value as it stands in the JSON to what is shown of it; something empty for any that is of another type ---------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    text = " ".join(_CONTROL.sub(" ", value[:_LOOKED_AT]).split())
    return "" if text.casefold() in _SAYS_NOTHING else short(text)


def _notes(value: Any) -> str:
    """Text without the tags of HTML and with few empty lines."""
    if not isinstance(value, str):
        return ""
    plain = html.unescape(_TAGS.sub("", _BREAKS.sub("\n", value[:_LOOKED_AT])))
    lines = (" ".join(line.split()) for line in _CONTROL.sub(" ", plain.replace("\r", "\n")).split("\n"))
    return short(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip(), LONGEST_NOTES)


def _words(value: Any) -> tuple[str, ...]:
    """Return each entry of a list as it is, be it a word or a line of them; of those of rgthree only what a person or
    the author named, as it lists all tags of the training, too."""
    if isinstance(value, str):
        value = listed(value[:_LOOKED_AT])
    found = value if isinstance(value, list) else []
    chosen = [
        each.get("word") for each in found if isinstance(each, dict) and (each.get("civitai") or each.get("user"))
    ]
    return unique(map(_word, [*(each for each in found if isinstance(each, str)), *chosen]))[:MOST_WORDS]


def _word(value: Any) -> str:
    return _text(value).strip(" ,")


def _strength(value: Any) -> str:
    """A number, alone or in Lora-Manager's tips, which are JSON in a text."""
    if isinstance(value, str) and len(value) < _LOOKED_AT:
        value = table_of(value).get("strength")
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    return f"{number:.4g}" if 0 < abs(number) <= 100 else ""


def _permissions(model: Any) -> str:
    """Civitai's four answers in words."""
    return permissions_of(model).in_words()


def _answers(model: Any) -> Permissions | None:
    found = permissions_of(model)
    return found if found.table() else None


def _picture_name(value: Any) -> str:
    """The last part of a path or address, if it is a picture's name."""
    name = re.split(r"[/\\:]", value)[-1] if isinstance(value, str) and len(value) < _LOOKED_AT else ""
    suffix = os.path.splitext(name)[1].lower()
    return name if suffix in (".png", ".jpg", ".jpeg", ".webp") and len(name) <= LONGEST and name.isprintable() else ""


_READERS = {
    "title": _text, "words": _words, "base": _text, "author": _text, "notes": _notes, "tags": _words,
    "strength": _strength, "permissions": _permissions, "preview": _picture_name,
    "favourite": lambda value: value is True, "answers": _answers,
}  # fmt: skip
