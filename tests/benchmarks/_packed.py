"""Quantised networks of real depth, LoRAs on them as we and as ComfyUI put them there, and steps with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import comfy.model_management
import comfy.utils
import tiny
import torch
from _measure import Step, Variant
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import BypassInjectionManager
from comfy.weight_adapter.lora import LoRAAdapter
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.chain import Step as Change
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.targets import select, weight_shape
from lora_loom.nodes.bridge.model.recast import recast_in_backward
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.stack.apply_chain import apply_chain
from tiny.families import FAMILIES, Tiny
from tiny.stored import LAYOUTS, quantised
from torch import nn

# -- models ------------------------------------------------------------------------------------------------------------


_SDXL = {
    "model_channels": 64, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip
_FLUX = {"depth": 19, "depth_single_blocks": 38}
NETWORKS = {
    name: replace(FAMILIES[family], unet={**FAMILIES[family].unet, **deep})
    for name, family, deep in (("SDXL", "sdxl", _SDXL), ("FLUX.1", "flux1", _FLUX))
}


@torch.inference_mode()  # as loaders run
def network(row: Tiny, form: str) -> Any:
    """A MODEL of that row, its blocks' linear layers quantised, computing in bf16."""
    weights = quantised(row, LAYOUTS[form])
    patcher = tiny.patcher_of(tiny.built(row, "cpu", quantised=True), comfy.utils.convert_old_quants(weights)[0])
    patcher.set_model_compute_dtype(torch.bfloat16)
    return patcher


def text_of(row: Tiny) -> list:
    """A CONDITIONING of random numbers."""
    width = row.unet.get("context_dim") or row.unet["context_in_dim"]
    pooled = {"vec_in_dim": 0, "adm_in_channels": 1536}  # an SDXL adds sizes to it
    size = next(row.unet[name] - rest for name, rest in pooled.items() if row.unet.get(name))
    return [[torch.randn(1, 77, width), {"pooled_output": torch.zeros(1, size), "guidance": 1.0}]]


# -- LoRAs -------------------------------------------------------------------------------------------------------------


def adapters(layers: dict[str, nn.Module], count: int, rank: int) -> list[Adapter]:
    """Random LoRAs of those layers, about a fiftieth of the weights."""
    return [Adapter({name: _low_rank(weight_shape(each), rank) for name, each in layers.items()}) for _ in range(count)]


def _low_rank(shape: tuple[int, ...], rank: int) -> LowRank:
    out, columns = shape[0], torch.Size(shape[1:]).numel()
    down = torch.randn(rank, columns) / columns**0.5
    return LowRank(down, torch.randn(out, rank) * (0.02 / rank**0.5), float(rank), tuple(shape[2:]))


def linear_layers(model: Any) -> dict[str, nn.Module]:
    return select(model.model.diffusion_model, LoraConfig(4, 4.0, "attention+mlp"), PREFIX)


@torch.inference_mode()  # as nodes are run
def ours(model: ModelPatcher, loras: Sequence[Adapter]) -> ModelPatcher:
    """As Load LoRA Stack does it with `apply` at auto."""
    terms = {name: tuple(each.layers[name] for each in loras) for name in loras[0].layers}
    return apply_chain(model, None, {name: [Change(each)] for name, each in terms.items()})[0]


def core(model: ModelPatcher, loras: Sequence[Adapter]) -> ModelPatcher:
    """A chain of LoraLoader."""
    model = model.clone()
    for each in loras:
        model.add_patches(_as_core(each), 1.0)
    return model


def bypass(model: ModelPatcher, loras: Sequence[Adapter]) -> ModelPatcher:
    """As LoraModelLoader with `bypass`, whose second replaces the first: only the last LoRA takes effect."""
    model = model.clone()
    for each in loras:
        manager = BypassInjectionManager()
        for key, adapter in _as_core(each).items():
            manager.add_adapter(key, adapter)
        model.set_injections("bypass_lora", manager.create_injections(model.model))
    return model


def _as_core(lora: Adapter) -> dict[str, LoRAAdapter]:
    return {
        f"{name}.weight": LoRAAdapter(set(), (each.lora_B, each.lora_A, each.alpha, None, None, None))
        for name, each in lora.layers.items()
    }


def in_sampling(model: ModelPatcher, step: Step, resident: bool = True) -> Variant:
    """Loaded, in inference mode as ComfyUI samples; unless `resident`, as where the weights have no room on the device,
    so that what is patched is patched anew in every forward."""

    @contextmanager
    def session() -> Iterator[Step]:
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model], force_full_load=True)
            if not resident:
                model.partially_unload(model.offload_device, 1e32)
            yield step
            comfy.model_management.unload_all_models()

    return session


def in_training(model: ModelPatcher, step: Step, around: Callable[[], AbstractContextManager]) -> Variant:
    """Loaded, its quantised weights dequantised for every use as Train LoRA does it."""

    @contextmanager
    def session() -> Iterator[Step]:
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model], force_full_load=True)
        with recast_in_backward(model.model, torch.bfloat16), around():
            yield step
        with torch.inference_mode():
            comfy.model_management.unload_all_models()

    return session
