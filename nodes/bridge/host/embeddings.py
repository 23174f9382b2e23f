"""Files of ComfyUI's embeddings folder, in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import comfy.utils
import folder_paths
from torch import Tensor

from ....lora_core.files import bundled, save
from ....lora_core.files.bundled import Embedding
from ....lora_core.files.names import alike, matching, safe_name


def chosen(text: str) -> dict[str, Embedding]:
    """Return the embeddings of a text of names between commas, `embedding:` before each or not. Raises ValueError for
    one that is not in the folder, or is no embedding."""
    names = [name.strip().removeprefix("embedding:") for name in text.split(",") if name.strip()]
    return {Path(name).stem: _read(name) for name in map(_listed, names)}


def save_apart(embeddings: Mapping[str, Embedding], overwrite: bool) -> list[str]:
    """Write each into the first embeddings folder; return a line for each: one that is there already stays, unless
    `overwrite`."""
    folder, said = Path(folder_paths.get_folder_paths("embeddings")[0]), []
    for name, embedding in embeddings.items():
        path = folder / safe_name(f"{name}.safetensors")
        if path.exists() and not overwrite:
            said.append(f"{path.name} was in the embeddings folder before and stays; switch overwrite on to replace it")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        save.save(path, bundled.written(embedding), overwrite=True)
        said.append(f"{path.name} is in the embeddings folder; write embedding:{name} in a prompt to use it")
    return said


def _listed(name: str) -> str:
    names = folder_paths.get_filename_list("embeddings")
    found = matching(name, names)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the embedding {name} fits {len(found)} files ({', '.join(found[:3])}); write the full name")
    near = " or ".join(alike(name, names))
    cure = f"similar names: {near}" if near else "leave it out, or put its file there"
    raise ValueError(f"the embedding {name} is not in any embeddings folder; {cure}")


def _read(name: str) -> Embedding:
    path = folder_paths.get_full_path_or_raise("embeddings", name)
    held = cast(Mapping[str, Any], comfy.utils.load_torch_file(path, safe_load=True))
    parts, stem = dict(_parts(held)), Path(name).stem
    keyed = {f"bundle_emb.{stem}.{part}": value for part, value in parts.items()}
    found, others = bundled.taken(keyed, keyed)
    if not parts or others:
        raise ValueError(f"{name} is no embedding that a LoRA can be bundled with; leave it out")
    return found[stem]


def _parts(held: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by their parts; those of the first web UI lie one level deeper."""
    inner = held.get("string_to_param")
    if isinstance(inner, Mapping):
        yield from ((f"string_to_param.{name}", value) for name, value in inner.items() if isinstance(value, Tensor))
    else:
        yield from ((name, value) for name, value in held.items() if isinstance(value, Tensor))
