"""Keeps in its folder what a finished run told, so that the same run is answered without any of it being done again."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..files.hashes import file_hash
from ..files.save import write_whole
from ..stored import as_dict, from_dict, stored
from ..training.config import fingerprint
from . import kept_picture

log = logging.getLogger("lora_loom")


@stored("step file kept_step losses report summary")
@dataclass(frozen=True)
class Finished:
    """`step` is the run's last, `file` the LoRA that came out, in the folder, and `kept_step` the step of that."""

    step: int
    file: str
    kept_step: int
    losses: list[float]
    report: str
    summary: str


def remember(folder: Path, key: str, told: Finished, charts: Image.Image) -> None:
    """Write `charts.png`, then `done.json`, which counts only beside charts of the same `key`.

    A disk that does not take them is a warning: the run is whole without.
    """
    try:
        kept_picture.write(folder / "charts.png", charts, key)
        plain = {"key": key, "sha256": file_hash(folder / told.file), **as_dict(told)}
        write_whole(folder / "done.json", json.dumps({"digest": fingerprint(plain), **plain}).encode())
    except OSError as error:
        log.warning("%s: the report of the run could not be saved (%s)", folder.name, error.strerror or error)


def forget(folder: Path) -> None:
    with suppress(OSError):
        (folder / "done.json").unlink(missing_ok=True)


def recall(folder: Path, key: str) -> tuple[Finished, Image.Image] | None:
    """Return what a run under this key told, and its charts. Return None when there is none, or when a file of it is
    gone, damaged or no longer the one that was written."""
    try:
        plain = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        if plain.pop("digest") != fingerprint(plain) or plain.pop("key") != key:
            return None
        if plain.pop("sha256") != file_hash(folder / plain["file"]):
            return None
        charts = kept_picture.read(folder / "charts.png", key)
        return (from_dict(Finished, plain), charts) if charts else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.debug("%s has no saved result to return: %s", folder, error)
        return None
