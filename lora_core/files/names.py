"""Names for files: those to be written, portable and inside their folder, and those that a name in a list means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from .faults import quote

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
_FORBIDDEN = set('<>:"|?*')
_LONGEST = 200  # bytes of a piece; file systems take 255, and a file that is not proven yet has a longer name
_FILLED = 150  # the same where placeholders are filled in; with its folders it suits Windows, too
_ADDED = "_0002.safetensors"


def safe_name(name: str) -> str:
    """`name` as a relative path with forward slashes that every system accepts; else ValueError with the cure.

    Subfolders are welcome (`styles/ink`); absolute paths, drives, `..`, control characters, characters and device
    names that Windows reserves are not.
    """
    pieces = name.replace("\\", "/").split("/")
    for piece in pieces:
        if fault := _fault(piece):
            raise ValueError(f"the name {quote(name)} {fault}; use a plain name such as 'my_lora' or 'styles/my_lora'.")
    return "/".join(pieces)


def check_template(template: str) -> None:
    """Raises ValueError, as `safe_name`, for what is wrong with a name whatever its placeholders stand for."""
    typed = template.replace("%", "x")
    safe_name(typed)
    safe_name(typed + _ADDED)


def filled_in(template: str, values: Mapping[str, object]) -> str:
    """Return the template with `%name%` replaced by its value: in names that every system accepts, in which a value
    makes no folder, and shortened where they would be too long. Pieces without a placeholder stay as they are."""
    known = re.compile("|".join(f"%{re.escape(name)}%" for name in values))
    pieces = template.replace("\\", "/").split("/")
    return "/".join(_filled(piece, known, values) if known.search(piece) else piece for piece in pieces)


def _filled(piece: str, known: re.Pattern[str], values: Mapping[str, object]) -> str:
    told = {mark: _cleaned(str(values[mark.strip("%")])) for mark in known.findall(piece)}
    while (excess := len(_filling(piece, known, told).encode()) - _FILLED) > 0 and any(told.values()):
        longest = max(told, key=lambda mark: len(told[mark].encode()))
        told[longest] = _cut(told[longest], max(len(told[longest].encode()) - excess, 0))
    made = _cleaned(_filling(piece, known, told)) or "lora"
    return f"_{made}" if _RESERVED.fullmatch(made) else made


def _filling(piece: str, known: re.Pattern[str], told: Mapping[str, str]) -> str:
    return known.sub(lambda found: told[found[0]], piece)


def _cleaned(text: str) -> str:
    spaced = re.sub(r"\s+", " ", text)
    return "".join("_" if each in _FORBIDDEN | set("/\\") else each for each in spaced if each.isprintable()).strip(
        " ."
    )


def _cut(text: str, size: int) -> str:
    """The beginning that takes at most so many bytes."""
    return text.encode()[:size].decode(errors="ignore").rstrip(" .")


def matching(wanted: str, names: Sequence[str]) -> list[str]:
    """Return the `names` (relative paths, separators of either system) that `wanted` means: itself, with or without
    suffix; or, when it has no folder, files of that name in any."""
    wanted = _spelled(wanted)
    for spelled in (_spelled, _without_suffix, _last, lambda name: _last(_without_suffix(name))):
        if found := [name for name in names if spelled(name) == wanted]:
            return found
    return []


def alike(wanted: str, names: Sequence[str]) -> list[str]:
    """Up to three `names` whose last part looks like that of `wanted`."""
    by_last = {_last(_without_suffix(name)).casefold(): name for name in names}
    close = get_close_matches(_last(_without_suffix(wanted)).casefold(), by_last, 3)
    return [by_last[each] for each in close]


def _spelled(name: str) -> str:
    return name.strip().replace("\\", "/")


def _without_suffix(name: str) -> str:
    return re.sub(r"\.(safetensors|ckpt|pth|pt|bin|sft)$", "", _spelled(name))


def _last(name: str) -> str:
    return _spelled(name).rsplit("/", 1)[-1]


def _fault(piece: str) -> str:
    if piece == "":
        return "is empty, starts at the root, or has an empty folder in it"
    if piece.strip(".") == "":
        return "leads out of its folder"
    if not piece.isprintable():
        return "has control characters"
    if bad := _FORBIDDEN.intersection(piece):
        return f"has {' '.join(sorted(bad))}, which Windows does not allow"
    if piece != piece.strip() or piece.endswith("."):
        return "has a piece that starts or ends with a space or ends with a dot"
    if _RESERVED.fullmatch(piece):
        return f"uses {quote(piece)}, a reserved name of Windows"
    if len(piece.encode()) > _LONGEST:
        return f"has a piece of {len(piece.encode())} bytes, above {_LONGEST}"
    return ""


def safe_path(folder: str | os.PathLike[str], name: str) -> Path:
    """`folder / name`, after symbolic links still inside `folder`; else ValueError."""
    root = Path(folder).resolve()
    path = (root / safe_name(name)).resolve()
    if root not in path.parents:
        raise ValueError(f"the name {quote(name)} leads out of {root} through a link; choose another name.")
    return path
