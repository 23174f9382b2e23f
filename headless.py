"""Runs a workflow in this process, through ComfyUI's own executor and without server or browser:
`python headless.py workflow.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

PACK = Path(os.path.abspath(__file__)).parent  # as it was called: a link to it lies where ComfyUI is


def name_package() -> None:
    """The pack's modules become `lora_loom...`, and its folder leaves the search path, where its `nodes` would hide
    ComfyUI's."""
    package = ModuleType("lora_loom")
    package.__path__ = [str(PACK)]
    sys.modules["lora_loom"] = package
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder) != os.path.realpath(PACK)]


if __name__ == "__main__":
    name_package()
    from lora_loom.console.main import main

    main(PACK, sys.argv[1:])
