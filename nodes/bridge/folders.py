"""ComfyUI's folders: where LoRAs live, where runs are kept, and what a name from a user may reach."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import folder_paths

from ...lora_core.files.names import alike, matching, safe_path
from ...lora_core.rows import NONE


def lora_names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def lora_name(name: str) -> str:
    """The entry of `lora_names` that a name in a row or a stack means; separators of either system, a name without
    suffix, a bare file name, or the full path of a file below a loras folder will do.

    Raises ValueError when there is no such file, or when a bare name means several.
    """
    names = lora_names()
    found = matching(_below(name), names)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the LoRA {name} means {len(found)} files ({', '.join(found[:3])}); write it in full")
    near = " or ".join(alike(name, names))
    cure = f"near it is {near}" if near else "pick it again in the list"
    raise ValueError(f"the LoRA {name} is not in any loras folder; {cure}")


def _below(name: str) -> str:
    """Of a full path, what follows the loras folder."""
    path = Path(name)
    roots = [folder for folder in folder_paths.get_folder_paths("loras") if path.is_relative_to(folder)]
    return str(path.relative_to(roots[0])) if roots else name


def lora_path(name: str) -> Path:
    """The file of a LoRA name. Raises ValueError as `lora_name`, and for a name in the list that is no file now."""
    listed = lora_name(name)
    if path := folder_paths.get_full_path("loras", listed):
        return Path(path)
    places = [os.path.join(folder, listed) for folder in folder_paths.get_folder_paths("loras")]
    if link := next((place for place in places if os.path.islink(place) and not os.path.exists(place)), None):
        raise ValueError(
            f"the LoRA {name} is a link to {os.readlink(link)}, which is not there; connect its drive, or choose "
            "another LoRA"
        )
    fault = "is not a regular file" if any(map(os.path.exists, places)) else "is not there any more"
    raise ValueError(f"the LoRA {name} {fault}; choose another LoRA")


def dataset_folder(text: str) -> Path:
    """An absolute folder, or one inside ComfyUI's input folder. Raises ValueError when none is named."""
    if not text.strip():
        raise ValueError("no folder is given; name one that holds captioned pictures, or connect images")
    path = Path(text.strip().strip('"')).expanduser()
    return path if path.is_absolute() else Path(folder_paths.get_input_directory()) / path


def folder_state(text: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of every file in a data-set folder: changes when the node must read it again."""
    folder = dataset_folder(text) if text and text.strip() else None
    if folder is None or not folder.is_dir():
        return []
    return sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()
    )


def lora_state(name: str | None) -> tuple[str | None, int, int]:
    """Name, size and time of a LoRA file; zeros when there is none or the name is not known yet."""
    if not name or name == NONE:
        return name, 0, 0
    try:
        found = lora_path(name).stat()
    except (ValueError, OSError):
        return name, 0, 0
    return name, found.st_size, found.st_mtime_ns


def loras_folder() -> Path:
    """The first folder that ComfyUI searches for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def run_folder(name: str, fingerprint: str) -> Path:
    """Where a run keeps its state: `<output>/lora_loom/<name>-<fingerprint>`."""
    return safe_path(Path(folder_paths.get_output_directory()) / "lora_loom", f"{name}-{fingerprint[:8]}")


def file_for(template: str, values: dict[str, object], overwrite: bool) -> Path:
    """A new file in the first loras folder, named by the template with `%date%` and the given placeholders filled in.

    A name that is taken gets the first free number (`name_0002`) unless `overwrite`. Raises ValueError for a name that
    leaves the folder.
    """
    for key, value in {"date": date.today().isoformat(), **values}.items():
        template = template.replace(f"%{key}%", str(value))
    path, number = safe_path(loras_folder(), f"{template}.safetensors"), 1
    while path.exists() and not overwrite:
        number += 1
        path = safe_path(loras_folder(), f"{template}_{number:04d}.safetensors")
    return path
