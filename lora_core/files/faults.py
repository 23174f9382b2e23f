"""Says in one sentence what can be wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

RE_SAVE = "download it again, or ask its author for a clean safetensors file"


class UnsafeFileError(ValueError):
    """The file is broken or hostile; nothing of it was used."""


class UnreadableFileError(ValueError):
    """The file is not there, or its disk does not give it."""


class UnsupportedWeightsError(ValueError):
    """The file is sound, but holds something other than plain LoRA factors."""


def quote(text: str) -> str:
    """`text` in quotes, shortened, with control, bidi and broken characters escaped."""
    return repr(text if len(text) <= 160 else text[:120] + "..." + text[-30:])


def unreadable(path: Path, error: OSError) -> str:
    """Return why a file cannot be read."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"{quote(path.name)} is a link to {quote(os.readlink(path))}, which is not there; connect its drive."
    return f"{quote(path.name)} cannot be read ({error.strerror or error}); look at the file and its disk."


def refuse(source: str, fault: str, cure: str = RE_SAVE) -> NoReturn:
    """Raise UnsafeFileError. `source` is a file's name or what stands in for one."""
    raise UnsafeFileError(f"{quote(source)} {fault}; {cure}.")
