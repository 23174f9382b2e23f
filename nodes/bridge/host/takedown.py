"""The takedown lists of this ComfyUI, and what they say of a file that a node is about to use."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from torch import Tensor

from ....lora_core.adapter import Adapter
from ....lora_core.files import guard
from ....lora_core.files.cache import Cache
from ....lora_core.files.library import NO_RULES, Rules
from ....lora_core.stack.attribution import stated_hash
from ....lora_core.trust.sketches import VERSION, sketch
from ....lora_core.trust.takedown import Takedown, Verdict, marks
from .model_files import lora_hash, recorded_lora_hashes
from .progress import Progress

_lists: dict[Path, Takedown] = {}
_picker: dict[Path, Takedown] = {}  # of another thread


def folder() -> Path:
    """Return where a person puts lists: `takedown` in the pack's part of ComfyUI's user folder, which no route of the
    server reaches."""
    return _own("takedown")


def state() -> list:
    """Name, size and time of each list; nothing where there is none."""
    return list(_here(_lists).state())


def checked(name: str, file: Adapter, in_model: Adapter) -> Verdict:
    """Return what the lists say of a file of the loras folders, as it was read and in its model's names, where a person
    has overruled all of it. Raises ValueError with reason, issuer and date where not."""
    if not (lists := _here(_lists)).state():
        return Verdict()
    sha256 = lora_hash(name, Progress(1))
    verdict = lists.look(marks(sha256, file.metadata), sha256, lambda: _sketch(sha256, in_model))
    if verdict.standing:
        raise ValueError(verdict.standing[0].refusal(name))
    return verdict


def rules() -> Rules:
    """Return what a list of all files goes by. None is read for it: they are known by the hash on record, else the one
    in their header, and by what that says of their ancestors."""
    lists = _here(_picker)
    if not (now := lists.state()):
        return NO_RULES
    hashes = recorded_lora_hashes()

    def fault(path: str) -> str:
        metadata = guard.inspect(path).metadata
        sha256 = hashes(path) or stated_hash(metadata)
        standing = lists.look(marks(sha256, metadata)).standing
        return standing[0].refusal(Path(path).name) if standing else ""

    return Rules(now, fault)


def _here(kept: dict[Path, Takedown]) -> Takedown:
    return kept.setdefault(place := folder(), Takedown(place))


def _sketch(sha256: str, adapter: Adapter) -> Tensor:
    """Worked out once per file, which takes a moment."""
    cache, key = Cache(_own("sketches")), f"{sha256}-{VERSION}"
    kept = cache.get(key)
    if isinstance(kept, Tensor):
        return kept
    made = sketch(adapter)
    cache.put(key, made)
    return made


def _own(name: str) -> Path:
    return Path(folder_paths.get_system_user_directory("lora_loom")) / name
