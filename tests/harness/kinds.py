"""Files of every kind ComfyUI can load, with the names real files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lora_loom.nodes.bridge.model.names import NameTable
from safetensors.torch import save_file
from torch import Tensor

NAMES = {
    "sd15": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": None,
        "lora_unet_down_blocks_0_resnets_0_conv1": None,
        "lora_unet_down_blocks_0_attentions_0_proj_in": None,
    },
    "flux1": {
        "transformer.transformer_blocks.0.attn.to_q": None,
        "transformer.transformer_blocks.0.attn.to_k": None,
        "lora_unet_double_blocks_0_img_mlp_0": None,
        "diffusion_model.double_blocks.0.txt_attn.proj": None,
        "transformer.single_transformer_blocks.0.proj_mlp": None,
    },
}
Maker = Callable[[str, tuple[int, ...]], dict[str, Tensor]]


def randn(*shape: int, seed: int = 0, size: float = 0.2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def lora(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    up, down = randn(shape[0], 4, *(1 for _ in shape[2:]), seed=1), randn(4, *shape[1:], seed=2)
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.5)}


def dora(name: str, shape: tuple[int, ...], axis: int) -> dict[str, Tensor]:
    size = [count if index == axis else 1 for index, count in enumerate(shape)]
    return {**lora(name, shape), f"{name}.dora_scale": randn(*size, seed=3, size=1.0).abs() + 0.2}


def loha(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    wide = torch.Size(shape[1:]).numel()
    sizes = {"w1_a": (shape[0], 3), "w1_b": (3, wide), "w2_a": (shape[0], 3), "w2_b": (3, wide)}
    return named(name, {f"hada_{part}": size for part, size in sizes.items()}) | {f"{name}.alpha": torch.tensor(2.0)}


def lokr(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    sizes = {"w1": (4, 4), "w2_a": (shape[0] // 4, 3), "w2_b": (3, torch.Size(shape[1:]).numel() // 4)}
    return named(name, {f"lokr_{part}": size for part, size in sizes.items()}) | {f"{name}.alpha": torch.tensor(2.0)}


def glora(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    sizes = {"a1": (shape[1], 3), "a2": (3, shape[1]), "b1": (shape[0], 3), "b2": (3, *shape[1:])}
    return named(name, {f"{part}.weight": size for part, size in sizes.items()})


def difference(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    biased = not name.startswith("transformer.") and len(shape) > 1 and "to_q" not in name
    return named(name, {"diff": shape} | ({"diff_b": shape[:1]} if biased else {}))


def named(name: str, sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {f"{name}.{part}": randn(*size, seed=seed) for seed, (part, size) in enumerate(sizes.items())}


MAKERS: dict[str, Maker] = {
    "DoRA per row": lambda name, shape: dora(name, shape, 0),
    "DoRA per column": lambda name, shape: dora(name, shape, 1),
    "LoHa": loha,
    "LoKr": lokr,
    "GLoRA": glora,
    "OFT": lambda name, shape: named(name, {"oft_blocks": (shape[0] // 8, 8, 8)}),
    "BOFT": lambda name, shape: (
        named(name, {"oft_blocks": (2, shape[0] // 4, 4, 4)}) | {f"{name}.alpha": torch.ones(())}
    ),
    "full difference": difference,
}


def written(folder: Path, kind: str, model: Any, family: str, size: float = 1.0) -> str:
    """A file of the kind, every tensor shaped for the weight its name means, its factors times `size`."""
    table, tensors = NameTable(model), {}
    for name in NAMES[family]:
        target = table.targets[name]
        shape = table.shapes[target.layer]
        rows = target.rows[1] if target.rows else shape[0]
        make = lora if kind == "LoRA" else MAKERS[kind]
        tensors |= make(name, (rows, *shape[1:]))
    kept = ("alpha", "dora_scale")
    tensors = {key: tensor if key.endswith(kept) else tensor * size for key, tensor in tensors.items()}
    save_file(tensors, folder / f"{kind}.safetensors")
    return f"{kind}.safetensors"
