"""Writing a LoRA file whole or not at all."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from . import guard
from .fitting import fitted
from .packing import Packed, pack

_TRIES, _PAUSE = 20, 0.05  # seconds

MAX_HEADER = 2**20  # ComfyUI shows no metadata of a larger header
Seal = Callable[[Mapping[str, str], Packed], Mapping[str, str]]  # what a finished header gets last, a signature


@dataclass(frozen=True)
class SavedFile:
    """`model_hash` is of its data section; `size` in bytes. `left_out` names what the header had no room for, `filled`
    bytes are zeros that make layers alike (see `one_rank`)."""

    path: Path
    size: int
    model_hash: str
    left_out: tuple[str, ...] = ()
    filled: int = 0


def unsealed(metadata: Mapping[str, str], _: Packed) -> Mapping[str, str]:
    return metadata


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    seal: Seal = unsealed,
) -> SavedFile:
    """Write a safetensors file with its hashes filled in; the same content gives the same bytes.

    The file appears under its name only when it is complete and on the disk; until then, and for ever when anything
    fails, an older file of that name stays as it was. Of a header above 1 MiB what is worth least is left out, see
    `fitting`. Raises FileExistsError unless `overwrite`, ValueError when the header still would pass 1 MiB.
    `lora_adapter_metadata` is dropped: the tensors carry their own strength. `seal` adds to the header when all else is
    in it.
    """
    path = Path(path)
    _check_free(path, overwrite)
    packed = pack(tensors)
    head, left_out = _header(path, packed, metadata or {}, seal)
    write_whole(path, head, packed.data, overwrite=overwrite)
    return SavedFile(path, len(head) + len(packed.data), packed.model_hash(), tuple(left_out))


def write_whole(path: Path, *parts: bytes | memoryview, overwrite: bool = True) -> None:
    """Write a file that appears under its name only when it is complete and on the disk. Raises OSError, and leaves
    nothing of it, when the disk does not take it; FileExistsError unless `overwrite`."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # hidden, and no loader lists .tmp
    try:
        _write(temporary, *parts)
        _check_free(path, overwrite)
        replace_soon(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def replace_soon(source: Path, path: Path) -> None:
    """As `os.replace`. Windows refuses it while somebody reads the file: a moment later they are done, and it is tried
    again for a second."""
    for _ in range(_TRIES if os.name == "nt" else 0):
        try:
            return os.replace(source, path)
        except PermissionError:
            time.sleep(_PAUSE)
    os.replace(source, path)


def _check_free(path: Path, overwrite: bool) -> None:
    if not overwrite and path.exists():
        raise FileExistsError(
            f"{path.name} exists already in {path.parent}; choose another name, or switch overwrite on"
        )


def _header(path: Path, packed: Packed, metadata: Mapping[str, str], seal: Seal) -> tuple[bytes, list[str]]:
    """The header's bytes and what it had no room for."""
    kept = {key: value for key, value in metadata.items() if key != "lora_adapter_metadata"}
    for key, value in kept.items():
        if not isinstance(value, str):
            raise ValueError(f"metadata {key!r} is {type(value).__name__}; write it as text")
    digest = packed.model_hash()
    kept |= {"sshs_model_hash": digest, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x" + digest}
    kept, left_out = fitted(kept, lambda text: _length(packed.header(seal(text, packed)), packed), MAX_HEADER)
    del kept["sshs_legacy_hash"]
    if legacy := packed.legacy_hash(kept):
        kept["sshs_legacy_hash"] = legacy
    head = packed.header(seal(kept, packed))
    if _length(head, packed) > MAX_HEADER:
        raise ValueError(
            f"the header of {path.name} would take {len(head)} bytes, above the {MAX_HEADER} that ComfyUI reads, or "
            "more memory than the whole file; "
            f"shorten the metadata (largest: {max(kept, key=lambda key: len(kept[key]))})"
        )
    return head, left_out


def _length(head: bytes, packed: Packed) -> int:
    """Above MAX_HEADER, too, when the header would take more memory than `guard` lets it."""
    return len(head) if guard.fits(head[8:], len(head) + len(packed.data)) else MAX_HEADER + len(head)


def _write(path: Path, *parts: bytes | memoryview) -> None:
    with open(path, "xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable; Windows has no such call and needs none."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
