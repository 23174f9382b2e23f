"""Names for files to be written: portable, and inside the folder they are meant for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .faults import quote

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
_FORBIDDEN = set('<>:"|?*')


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


def _fault(piece: str) -> str:
    if piece == "":
        return "is empty, starts at the root, or has an empty folder in it"
    if piece.strip(".") == "":
        return "steps out of its folder"
    if not piece.isprintable():
        return "has control characters"
    if bad := _FORBIDDEN.intersection(piece):
        return f"has {' '.join(sorted(bad))}, which Windows refuses"
    if piece != piece.strip() or piece.endswith("."):
        return "has a piece that starts or ends with a space or ends with a dot"
    if _RESERVED.fullmatch(piece):
        return f"uses {quote(piece)}, a device of Windows"
    if len(piece.encode("utf-8", "surrogatepass")) > 200:
        return f"has a piece of {len(piece.encode())} bytes, above 200"
    return ""


def safe_path(folder: str | os.PathLike[str], name: str) -> Path:
    """`folder / name`, after symbolic links still inside `folder`; else ValueError."""
    root = Path(folder).resolve()
    path = (root / safe_name(name)).resolve()
    if root not in path.parents:
        raise ValueError(f"the name {quote(name)} leads out of {root} through a link; choose another name.")
    return path
