"""Tells links from what they lead to, on every system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT


def is_link(path: str | Path) -> bool:
    """Return whether a path is a symbolic link, or a junction: the link of Windows that Python takes for a folder.
    Where there is nothing, there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == _JUNCTION
