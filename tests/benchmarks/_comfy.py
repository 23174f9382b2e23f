"""Real ComfyUI in this process, and models with layers of real size. Import this before anything of ComfyUI."""

from __future__ import annotations

import atexit
import logging
import shutil
from dataclasses import replace

import _measure  # noqa: F401  makes harness, tiny and the pack importable
from harness.inprocess import load_comfyui

_base = load_comfyui()
atexit.register(shutil.rmtree, _base, ignore_errors=True)
LORAS = _base / "models" / "loras"

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from _real import META, shell  # noqa: E402
from lora_loom.lora_core.adapter import Adapter  # noqa: E402
from lora_loom.lora_core.files import formats  # noqa: E402
from lora_loom.lora_core.low_rank import LowRank  # noqa: E402
from lora_loom.lora_core.training.config import LoraConfig  # noqa: E402
from lora_loom.lora_core.training.targets import select  # noqa: E402
from lora_loom.nodes.bridge.model.names import NameTable  # noqa: E402
from lora_loom.nodes.bridge.model.trained_layers import PREFIX  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny.families import FAMILIES, SD_SMALLEST, Tiny  # noqa: E402
from tiny.weights import seeded  # noqa: E402

logging.getLogger().setLevel(logging.ERROR)
comfy.utils.PROGRESS_BAR_ENABLED = False

_TWO_LEVELS = {
    **SD_SMALLEST, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4, "transformer_depth_middle": 1,
}  # fmt: skip

SD_TWO_LEVELS = replace(FAMILIES["sd15"], unet=_TWO_LEVELS)


def build(row: Tiny, dtype: torch.dtype = torch.float16, weights: bool = True, cast: torch.dtype | None = None):
    """A MODEL of that row, as `_real.shell` makes it, with seeded weights, or without any: for its names and shapes."""
    store = comfy.model_management.unet_offload_device() if weights else META
    model = shell(row, dtype, cast, store)
    if weights:
        shapes = model.diffusion_model.state_dict()
        model.load_model_weights({name: value.to(dtype) for name, value in seeded(shapes).items()}, "")
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), store)


def random_adapter(model, rank: int, seed: int = 0, size: float = 0.02) -> Adapter:
    """On attention and mlp; `size` is about the norm of each correction relative to its weight's. alpha = rank / 2."""
    generator = torch.Generator().manual_seed(seed)
    config, layers = LoraConfig(rank, rank / 2, "attention+mlp"), {}
    for name, module in select(model.model.diffusion_model, config, PREFIX).items():
        out, columns = module.weight.shape[0], module.weight.shape[1:].numel()
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        up = torch.randn(out, rank, generator=generator) * (1.6 * size / rank**0.5)
        layers[name] = LowRank(down, up, rank / 2, tuple(module.weight.shape[2:]))
    return Adapter(layers)


def write_loras(model, count: int, rank: int) -> tuple[list[str], list[Adapter]]:
    """fp16 kohya files in the loras folder, in place of earlier ones: their names, and what they hold."""
    names, adapters, known = [], [], NameTable(model)
    for seed in range(count):
        adapter = random_adapter(model, rank, seed)
        names.append(f"benchmark_{seed}.safetensors")
        save_file(formats.encode(adapter, "kohya", known.file_names("kohya", list(adapter.layers))), LORAS / names[-1])
        adapters.append(adapter.map(lambda layer: layer.to(torch.float16)))
    return names, adapters
