"""Finds what earlier runs left in their folders: their settings, and how far they came."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint

logger = logging.getLogger("lora_loom")
_LORA = re.compile(r"step_(\d+)\.safetensors")


@dataclass(frozen=True)
class Past:
    """Describes what an earlier run left: its folder, its identity, its settings and the last step of which there is a
    LoRA or a state."""

    folder: Path
    identity: str
    settings: Mapping[str, Any]
    step: int

    @property
    def finished(self) -> bool:
        return self.step >= self.settings["train"]["steps"]


def last_saved(folder: Path) -> int:
    """The last step of which a run's folder has a LoRA, 0 for none."""
    try:
        return max(numbered(folder), default=0) if os.path.isdir(folder) else 0
    except OSError:
        return 0


def past_runs(parent: Path, name: str) -> list[Past]:
    """Earlier runs of a name with their settings, the latest last; folders that have none are passed over."""
    found = []
    for path in parent.glob(f"{_literal(name)}-*/run.json") if os.path.isdir(parent) else ():
        if not re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", path.parent.name):
            continue
        try:
            found.append((path.parent.stat().st_mtime, _past(path)))
        except (ValueError, KeyError, TypeError, OSError) as error:
            logger.warning("%s is ignored: %s", path, error)
    return [past for _, past in sorted(found, key=lambda each: each[0]) if past.step]


def numbered(folder: Path) -> dict[int, Path]:
    """The LoRA files of a run by step, in order."""
    found = ((_LORA.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _past(path: Path) -> Past:
    """Read a run.json. Raises ValueError, KeyError, TypeError or OSError for one that does not tell."""
    run = json.loads(path.read_text(encoding="utf-8"))
    settings = dict(run["settings"])
    if not isinstance(settings["train"]["steps"], int):
        raise TypeError("its number of steps is not a number")
    step = max(max(numbered(path.parent), default=0), checkpoint.step_of(path.with_name("state.safetensors")))
    return Past(path.parent, str(run["identity"]), settings, step)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
