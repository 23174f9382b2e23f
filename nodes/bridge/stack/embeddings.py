"""Embeddings that come with LoRAs, known to a CLIP by their names as those of ComfyUI's embeddings folder are."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import folder_paths

from ....lora_core.files import save
from ....lora_core.files.bundled import Embedding, written
from ....lora_core.files.hashes import data_hash
from ....lora_core.files.names import matching
from ..host.folders import own_folder
from ..host.wires import Clip
from .entries import Entry


def with_embeddings(clip: Clip | None, entries: Sequence[Entry]) -> tuple[Clip | None, list[str]]:
    """Return the CLIP with the entries' embeddings, and a line for each that has some. ComfyUI's tokenizers read them
    from files, so each has one in a folder of our own, once. One that has the name of another is called by that of its
    LoRA, too."""
    notes, folders, known = [], [], set[str]()
    for entry in entries:
        words = []
        for name, embedding in entry.adapter.embeddings.items():
            word = _word(name)
            word = word if word not in known and not _has(word) else _word(f"{entry.name}.{name}")
            known.add(word)
            words.append(f"embedding:{word}")
            folders.append(_kept(word, embedding))
        if words:
            cure = "write" if clip is not None else "connect CLIP, and write"
            notes.append(f"{entry.name}: comes with embeddings for prompts; to use them, {cure} {' or '.join(words)}")
    return (clip and _knowing(clip, folders) if folders else clip), notes


def _has(name: str) -> bool:
    """Whether a person has an embedding of that name."""
    return bool(matching(name, folder_paths.get_filename_list("embeddings")))


def _word(name: str) -> str:
    """As it can stand in a prompt."""
    return re.sub(r"[^\w.-]+", "_", name)


def _kept(word: str, embedding: Embedding) -> Path:
    """Return the folder with the file of an embedding, and nothing else, which is written where it is not yet."""
    tensors = written(embedding)
    folder = own_folder() / "embeddings" / f"{data_hash(tensors)[:16]}-{word}"
    file = folder / f"{word}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save.save(file, tensors, overwrite=True)
    return folder


def _knowing(clip: Clip, folders: Iterable[Path]) -> Clip:
    """A clone whose tokenizers look into the folders, too."""
    made, more = clip.clone(), [str(folder) for folder in folders]
    made.tokenizer = copy.copy(clip.tokenizer)
    for name, tokenizer in vars(clip.tokenizer).items():
        if hasattr(tokenizer, "embedding_directory"):
            before = tokenizer.embedding_directory or []
            mine = copy.copy(tokenizer)
            mine.embedding_directory = [*([before] if isinstance(before, str) else before), *more]
            setattr(made.tokenizer, name, mine)
    return made
