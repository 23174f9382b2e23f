"""ComfyUI's folders: where LoRAs live, where runs are kept, and what a name from a user may reach."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import folder_paths

from ...lora_core.files.guard import safe_name

NONE = "None"


def lora_names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file of a LoRA name as lists and stacks hold it; separators of either system, or a bare file name, will do.

    Raises ValueError when there is no such file, or when a bare name means several.
    """
    names = lora_names()
    wanted = name.replace("\\", "/")
    same = [n for n in names if n.replace("\\", "/") == wanted] or [n for n in names if Path(n.replace("\\", "/")).name == wanted]
    if len(same) != 1:
        problem = f"means {len(same)} files ({', '.join(same[:3])})" if same else "is not in any loras folder"
        raise ValueError(f"the LoRA {name} {problem}; pick it again in the list")
    return Path(folder_paths.get_full_path_or_raise("loras", same[0]))


def dataset_folder(text: str) -> Path:
    """An absolute folder, or one inside ComfyUI's input folder."""
    path = Path(text.strip().strip('"')).expanduser()
    return path if path.is_absolute() else Path(folder_paths.get_input_directory()) / path


def loras_folder() -> Path:
    """The first folder that ComfyUI searches for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def run_folder(name: str, fingerprint: str) -> Path:
    """Where a run keeps its state: `<output>/lora_loom/<name>-<fingerprint>`."""
    return Path(folder_paths.get_output_directory()) / "lora_loom" / f"{safe_name(name)}-{fingerprint[:8]}"


def lora_name_from(template: str, values: dict[str, object]) -> str:
    """The template with `%date%` and the given `%name%` placeholders filled in, safe to use below a folder."""
    for key, value in {"date": date.today().isoformat(), **values}.items():
        template = template.replace(f"%{key}%", str(value))
    return safe_name(template)


def free_path(folder: Path, name: str, overwrite: bool) -> Path:
    """`folder/name.safetensors`, or the first free `name_0002` when that exists and must be kept."""
    path, number = folder / f"{name}.safetensors", 1
    while path.exists() and not overwrite:
        number += 1
        path = folder / f"{name}_{number:04d}.safetensors"
    return path
