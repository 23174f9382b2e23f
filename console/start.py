"""Starts ComfyUI in this process as `python main.py` would, up to where it would begin to listen."""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any

_NODE = "LoraLoom_TrainLora"  # by which the pack is known to be loaded
# After these ComfyUI has loaded every node and has its executor's thread, and listens to nobody. Its database may be in
# use by a server, which goes on meanwhile; so may its temporary folder, which ComfyUI empties when it starts.
_ALWAYS = ("--quick-test-for-ci", "--disable-auto-launch")
_QUIET = ("--verbose", "WARNING")
_OWN_DATABASE = ("--database-url", "sqlite:///:memory:")


class StartError(RuntimeError):
    """ComfyUI did not start; it has said why."""


def folder_of_comfyui(pack: Path, asked: Path | None) -> Path:
    """Return the one that is asked for, by an option or by COMFYUI_PATH, or the one in whose custom_nodes the pack
    lies. Raises ValueError when there is none."""
    named = asked or environ.get("COMFYUI_PATH")
    places = [Path(named).expanduser()] if named else [place.parents[1] for place in (pack, pack.resolve())]
    for place in places:
        if (place / "main.py").is_file() and (place / "comfy").is_dir():
            return place.resolve()
    cure = "give ComfyUI's folder, the one with main.py, by --comfyui FOLDER or in the variable COMFYUI_PATH"
    raise ValueError(f"there is no ComfyUI in {places[0]}; {cure}")


@contextmanager
def started(comfyui: Path, flags: Sequence[str]) -> Iterator[Any]:
    """Yield ComfyUI's PromptServer, with all nodes loaded, which does not listen; its loop does not run yet.

    torch must not have been imported before, as ComfyUI sets up its memory first. Raises StartError.
    """
    temporary = tempfile.mkdtemp(prefix="lora-loom-headless-")
    try:
        _run(comfyui, [*flags, *_beside(flags, temporary)])
        yield _server()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(flags: Sequence[str], temporary: str) -> Iterator[str]:
    yield from _ALWAYS
    for own in (_QUIET, _OWN_DATABASE, ("--temp-directory", temporary)):
        if not any(flag.partition("=")[0] == own[0] for flag in flags):
            yield from own


def _run(comfyui: Path, flags: Sequence[str]) -> None:
    main = str(comfyui / "main.py")
    sys.path.insert(0, str(comfyui))
    sys.argv = [main, *flags]
    try:
        runpy.run_path(main, run_name="__main__")
    except SystemExit as end:
        if end.code not in (0, None):
            raise StartError(f"ComfyUI ended with {end.code} while it started; what it said is above") from None


def _server() -> Any:
    import folder_paths
    from comfy.cli_args import args
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        raise StartError("ComfyUI ended before its nodes were loaded; what it said is above")
    args.quick_test_for_ci = False  # other packs may heed it
    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    return server


async def load_pack(pack: Path) -> None:
    """The pack itself, where ComfyUI has not found it: by COMFYUI_PATH, or with custom nodes switched off."""
    import nodes

    if _NODE not in nodes.NODE_CLASS_MAPPINGS:
        await nodes.load_custom_node(str(pack))
    if _NODE not in nodes.NODE_CLASS_MAPPINGS:
        raise StartError("ComfyUI could not load LoRA Loom; what it said is above")
