"""LoRA files, read the way that ComfyUI was told to read files."""

from __future__ import annotations

from pathlib import Path

import comfy.utils

from ....lora_core.adapter import Adapter
from ....lora_core.files import formats


def read_lora(path: Path, broken: bool = False) -> Adapter:
    """As `formats.read`; into memory where ComfyUI was started with `--disable-mmap`."""
    return formats.read(path, mapped=not getattr(comfy.utils, "DISABLE_MMAP", False), broken=broken)
