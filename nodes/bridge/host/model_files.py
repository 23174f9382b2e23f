"""Tells which files the parts of a graph were read from, and the base model's hash, worked out once per file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management

from ....lora_core.files.hashes import data_hash, file_hash
from ....lora_core.ranks.group import here
from .folders import lora_path, own_folder
from .progress import Progress
from .wires import Clip, Model, Vae

log = logging.getLogger("lora_loom")

_LORA_HASHES = "lora_hashes.json"


def files_of(part: Model | Clip | Vae) -> list[str]:
    """The paths that a MODEL, CLIP or VAE was read from, where its loader has noted them; else none."""
    loader = getattr(getattr(part, "patcher", part), "cached_patcher_init", None)
    first = loader[1][0] if loader and loader[1] else None
    paths = first if isinstance(first, (list, tuple)) else [first]
    return [os.fspath(path) for path in paths if isinstance(path, (str, os.PathLike))]


def file_name(path: str) -> str:
    """Return the last part of a path of either system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def known_hash(
    path: str, progress: Progress, of: Callable[..., str] | None = None, record_name: str = "model_hashes.json"
) -> str:
    """Return what `of`, by default its sha256, makes of a model file. It is read when its path, size or time is not on
    record in the user folder; then this takes as long as the disk needs, and raises ComfyUI's interrupt when the user
    cancelled."""
    found = os.stat(path)
    stamp = [found.st_size, found.st_mtime_ns]
    hashes = on_record(record_name)
    size, time, digest = hashes.get(path, (0, 0, ""))
    if [size, time] == stamp:
        return digest

    def tick(done: int) -> None:
        progress.say(
            f"computing the hash of {file_name(path)} (once per file): {done / 1e9:.1f} of {found.st_size / 1e9:.1f} GB"
        )
        comfy.model_management.throw_exception_if_processing_interrupted()

    digest = (of or file_hash)(path, tick)
    put_on_record(record_name, {**hashes, path: [*stamp, digest]})
    return digest


def lora_hash(name: str, progress: Progress) -> str:
    """sha256 of the data section of a file of the loras folders, as `known_hash`."""
    return known_hash(str(lora_path(name)), progress, data_hash, _LORA_HASHES)


def recorded_lora_hashes() -> Callable[[str], str]:
    """Return a function that gives what `lora_hash` has on record for a path, "" where nothing is, or the file is
    another by now."""
    hashes = on_record(_LORA_HASHES)

    def of(path: str) -> str:
        found = os.stat(path)
        known = hashes.get(path)
        return known[2] if isinstance(known, list) and known[:2] == [found.st_size, found.st_mtime_ns] else ""

    return of


def on_record(name: str) -> dict[str, Any]:
    """Return what is on record in the user folder under a file's name; nothing when it is missing or damaged."""
    try:
        found = json.loads(_record(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def put_on_record(name: str, known: Mapping[str, Any]) -> None:
    """A record that cannot be kept costs no more than finding out again. Of several ranks the first one writes it."""
    if not here().first:
        return
    record = _record(name)
    unfinished = record.with_suffix(f".{os.getpid()}.tmp")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(known, indent=0), encoding="utf-8")
        os.replace(unfinished, record)
    except OSError as error:
        log.warning("what is known of models cannot be saved in %s: %s", record, error)


def _record(name: str) -> Path:
    return own_folder() / name
