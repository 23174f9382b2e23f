"""ComfyUI's folders: where LoRAs live, where runs are kept, and what a name from a user may reach."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import date
from ipaddress import ip_address
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ....lora_core.data import folder as contents
from ....lora_core.data.places import read_only
from ....lora_core.files.names import alike, filled_in, matching, safe_name, safe_path
from ....lora_core.stack.rows import NONE

DATA_SETS = "lora_loom_datasets"  # a category of extra_model_paths.yaml


def lora_names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def lora_name(name: str) -> str:
    """Return the entry of `lora_names` that a name in a row or a stack means; separators of either system, a name
    without suffix, a bare file name, or the full path of a file below a loras folder will do.

    Raises ValueError when there is no such file, or when a bare name means several.
    """
    names = lora_names()
    found = matching(_below(name), names)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the LoRA name {name} fits {len(found)} files ({', '.join(found[:3])}); write the full name")
    near = " or ".join(alike(name, names))
    cure = f"similar names: {near}" if near else "choose it again in the list"
    raise ValueError(f"the LoRA {name} is not in any loras folder; {cure}")


def _below(name: str) -> str:
    """Return what follows the loras folder in a full path; another name as it is."""
    path = Path(name)
    roots = [folder for folder in folder_paths.get_folder_paths("loras") if path.is_relative_to(folder)]
    return str(path.relative_to(roots[0])) if roots else name


def lora_path(name: str) -> Path:
    """Return the file of a LoRA name. Raises ValueError as `lora_name`, and for a name in the list that is no file
    now."""
    listed = lora_name(name)
    if path := folder_paths.get_full_path("loras", listed):
        return Path(path)
    places = [os.path.join(folder, listed) for folder in folder_paths.get_folder_paths("loras")]
    if link := next((place for place in places if os.path.islink(place) and not os.path.exists(place)), None):
        raise ValueError(
            f"the LoRA {name} is a link to {os.readlink(link)}, which does not exist; connect its drive, or choose "
            "another LoRA"
        )
    fault = "is not a regular file" if any(map(os.path.exists, places)) else "does not exist any more"
    raise ValueError(f"the LoRA {name} {fault}; choose another LoRA")


def dataset_folder(text: str) -> Path:
    """Return an absolute folder, or one below ComfyUI's input folder or a folder of data sets.

    Raises ValueError when none is named, and on a server that other machines reach for what is not below ComfyUI's
    own folders, by its name or by a link.
    """
    name = text.strip().strip('"').strip()
    if not name:
        raise ValueError("no folder is given; write a folder with pictures and captions, or connect images")
    if "\0" in name:
        raise ValueError("the name of the folder contains a zero byte; write it again")
    try:
        path = _found(Path(name).expanduser())
        if open_to := listens_beyond():
            _check_inside(name, path, open_to)
    except RuntimeError as error:
        raise ValueError(f"the folder {name} cannot be found: {error}") from error
    except OSError as error:  # whose text tells the whole path
        raise ValueError(f"the folder {name} cannot be found: {error.strerror or type(error).__name__}") from error
    return path


def folder_state(text: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of every file that may be read of a data-set folder: changes when the node must read it
    again."""
    try:
        folder = dataset_folder(text or "")
    except ValueError:
        return []
    return sorted(_states(folder, contents.files(folder)))


def data_roots() -> list[Path]:
    """Return the folders below which a relative folder of a data set is looked for, ComfyUI's input folder first."""
    return [Path(folder_paths.get_input_directory()), *_data_sets()]


def upload_place(text: str, proposed: str) -> str:
    """The folder below ComfyUI's input folder, with forward slashes, into which its upload is to put pictures: the one
    that is named, else a new one that is called as proposed. Raises ValueError with the cure."""
    root = Path(folder_paths.get_input_directory())
    if not text.strip():
        name, number = filled_in("%name%", {"name": proposed or "pictures"}), 1
        while (root / (new := name if number == 1 else f"{name}_{number}")).exists():
            number += 1
        return new
    path = dataset_folder(text)
    if why := read_only(path, [root]):
        raise ValueError(
            f"pictures can be added only to folders below ComfyUI's input folder, and of {text.strip()} it is known "
            f"that {why}; copy the folder into the input folder, or add the files by hand"
        )
    name = Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
    return name if path.is_dir() else safe_name(name)


def listens_beyond() -> str:
    """Return the first address that the server listens on for other machines; empty when there is none."""
    addresses = [each.strip() for each in (args.listen or "").split(",") if each.strip()]
    return next((each for each in addresses if not _local(each)), "")


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
    """Return the first folder that ComfyUI searches for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def own_folder() -> Path:
    """Return where the pack keeps what is no run, in a part of the user folder that no browser is given."""
    return Path(folder_paths.get_system_user_directory("lora_loom"))


def runs_folder() -> Path:
    """Return where all runs are."""
    return Path(folder_paths.get_output_directory()) / "lora_loom"


def run_folder(name: str, fingerprint: str) -> Path:
    """Return where a run keeps its state: `<output>/lora_loom/<name>-<fingerprint>`."""
    return safe_path(runs_folder(), f"{name}-{fingerprint[:8]}")


def run_id(folder: Path) -> str:
    """A run's folder, as it is known to a browser: its name below `runs_folder`."""
    root = runs_folder().resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name


def without_paths(text: str) -> str:
    """Return the text with the server's own folders left out of it."""
    roots = folder_paths.base_path, folder_paths.get_output_directory(), folder_paths.get_input_directory()
    for root in (*roots, *map(os.path.realpath, roots)):
        text = text.replace(root + os.sep, "")
    return text


def file_for(template: str, values: dict[str, object], overwrite: bool) -> Path:
    """Return a new file in the first loras folder, named by the template with `%date%` and the given placeholders
    filled in.

    A name that is taken gets the first free number (`name_0002`) unless `overwrite`. Raises ValueError for a name that
    was typed to leave the folder; what fills a placeholder never does, see `filled_in`. Links among the folders are
    their owner's, and followed.
    """
    name = filled_in(template, {"date": date.today().isoformat(), **values})
    path, number = loras_folder() / safe_name(f"{name}.safetensors"), 1
    while path.exists() and not overwrite:
        number += 1
        path = loras_folder() / safe_name(f"{name}_{number:04d}.safetensors")
    return path


def _local(address: str) -> bool:
    try:
        return ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def _states(folder: Path, paths: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            found = path.lstat() if path.is_symlink() and not path.exists() else path.stat()
        except OSError:
            continue
        yield path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns


def _found(path: Path) -> Path:
    """A relative path below the first folder that has it, else below the input folder."""
    if path.is_absolute():
        return path
    first, *others = [root / path for root in data_roots()]
    return next((each for each in (first, *others) if each.is_dir()), first)


def _data_sets() -> list[Path]:
    """ComfyUI's own folders of data sets, where it has some, and those that the machine's owner has named for us."""
    known = folder_paths.folder_names_and_paths
    return [
        Path(root) for name in ("datasets", DATA_SETS) if name in known for root in folder_paths.get_folder_paths(name)
    ]


def _check_inside(name: str, path: Path, open_to: str) -> None:
    """The path as it is written comes first: one elsewhere is not even looked at."""
    roots = [Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory()), *_data_sets()]
    written = [Path(os.path.abspath(root)) for root in roots]
    real = [*written, *(Path(os.path.realpath(root)) for root in roots)]
    if not _is_in(Path(os.path.abspath(path)), real):
        raise ValueError(_refusal(f"the folder {name} is", open_to))
    for each in (path, *contents.files(path)):
        if not _is_in(Path(os.path.realpath(each)), real):
            what = f"the folder {name}" if each == path else f"{each.name} in the folder {name}"
            raise ValueError(_refusal(f"{what} is a link to a place", open_to))


def _is_in(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _refusal(what: str, open_to: str) -> str:
    return (
        f"{what} outside ComfyUI's input, output and datasets folders, which is not allowed while other machines can "
        f"reach this server (--listen, {open_to}). Move the pictures into ComfyUI's input folder, or ask the owner of "
        "the machine to add the folder above them to extra_model_paths.yaml and restart:\nlora_loom:\n    "
        f"{DATA_SETS}: /the/folder"
    )
