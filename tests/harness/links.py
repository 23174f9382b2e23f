"""Makes symbolic links, to which only Windows has people have a right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def link(path: Path, to: Path) -> None:
    """Make `path` lead to `to`. On Windows, without the right to, the test is skipped."""
    try:
        path.symlink_to(to, target_is_directory=os.path.isdir(to))
    except OSError:
        if os.name != "nt":
            raise
        pytest.skip("Windows gives the right to make links to few")
