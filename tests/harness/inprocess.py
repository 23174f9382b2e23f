"""Real ComfyUI imported into this process, and the pack under the name `lora_loom`."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from harness.comfyui import DEMO_MODELS, ROOT, comfyui_path, prepare_base

PRETEND = os.environ.get("LORA_LOOM_PRETEND", "")  # whose rules the pretend device has, if tests run on it


def alias_pack(name: str = "lora_loom") -> None:
    """`from lora_loom.lora_core.adapter import Adapter`, without running the pack's __init__ and without the repository
    on sys.path, where its `nodes` would hide ComfyUI's."""
    package = ModuleType(name)
    package.__path__ = [str(ROOT)]
    sys.modules[name] = package


@cache
def load_comfyui(base: Path | None = None) -> Path:
    """Makes `import comfy`, `import nodes`, `import folder_paths` those of ComfyUI, all its folders below `base` (a new
    temporary one unless given; returned). On the pretend device, if PRETEND, or else on the CPU unless torch sees CUDA.
    Call before any such import; again, it only returns the same folder."""
    sys.path.insert(0, str(comfyui_path()))
    base = prepare_base(base or Path(tempfile.mkdtemp(prefix="lora-loom-")))
    if PRETEND:
        import comfy_aimdo.control

        comfy_aimdo.control.init("cuda")  # dynamic VRAM's modules look for its library when they are imported
    import comfy.cli_args
    import torch

    torch.set_num_threads(1)
    arguments = comfy.cli_args.args
    arguments.cpu = bool(PRETEND) or not torch.cuda.is_available()
    arguments.use_pytorch_cross_attention = True
    arguments.base_directory = str(base)
    import folder_paths

    for folder in sorted(DEMO_MODELS.iterdir()):
        folder_paths.add_model_folder_path(folder.name, str(folder))
    if PRETEND:
        use_pretend_device()
    return base


def use_pretend_device() -> None:
    """ComfyUI, imported and with no model loaded, computes on the pretend device from now on, by PRETEND's rules."""
    from pretend import RULES
    from pretend.comfyui import use

    use(RULES[PRETEND])
