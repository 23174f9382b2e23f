"""The text in a LoRA file's header, under the names that other programs look for.

`modelspec.*` is ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec); `ss_*` are the keys of sd-scripts, which A1111,
Forge, Civitai, Lora-Manager and ComfyUI's asset scan read. All values are text, JSON with sorted keys where nested.
Nothing is taken from the clock, so the same facts give the same text. `save` adds the hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

from ..adapter import TEXT_PREFIX, Adapter
from .packing import pack


@dataclass(frozen=True)
class Parent:
    """A file that went into a merge; `data_hash` is the sha256 of its data section."""

    name: str
    data_hash: str
    strength: float


@dataclass(frozen=True)
class Facts:
    """What is known of how a LoRA came to be; what is left at None or empty is not written.

    `architecture` is ModelSpec's name of the base (`stable-diffusion-v1`, `stable-diffusion-xl-v1-base`, `flux-1-dev`),
    `base_version` sd-scripts' (`sd_v1`, `sdxl_base_v1-0`, `flux1`), `base_name` and `base_hash` the file and its
    sha256. `resolution` is (width, height). `tag_frequency` ({folder: {tag: count}}) and `dataset_dirs`
    ({folder: images}) tell about the training data: give them only when its owner agreed. `date` is ISO 8601.
    """

    title: str
    architecture: str
    base_version: str = ""
    base_name: str = ""
    base_hash: str = ""
    trigger: str = ""
    description: str = ""
    author: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()
    date: str = ""
    prediction_type: str = ""
    resolution: tuple[int, int] | None = None
    steps: int | None = None
    max_steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    learning_rate: float | None = None
    text_learning_rate: float | None = None
    optimizer: str = ""
    scheduler: str = ""
    precision: str = ""
    seed: int | None = None
    targets: tuple[str, ...] = ()
    num_images: int | None = None
    min_snr_gamma: float | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    dataset_dirs: Mapping[str, int] | None = None
    merged_from: tuple[Parent, ...] = ()


def build(facts: Facts, adapter: Adapter) -> dict[str, str]:
    """The header text of `adapter`; its rank and alpha are read from the factors."""
    found = {"format": "pt", **_modelspec(facts), **_kohya(facts), **_network(facts, adapter), **_lineage(facts)}
    return {key: _text(value) for key, value in sorted(found.items()) if value not in (None, "", (), {})}


def _modelspec(facts: Facts) -> dict[str, Any]:
    size = facts.resolution
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{facts.architecture}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": facts.title,
        "modelspec.resolution": f"{size[0]}x{size[1]}" if size else None,
        "modelspec.description": facts.description,
        "modelspec.author": facts.author,
        "modelspec.license": facts.license,
        "modelspec.date": facts.date,
        "modelspec.tags": ", ".join(facts.tags),
        "modelspec.trigger_phrase": facts.trigger,
        "modelspec.prediction_type": facts.prediction_type,
        "modelspec.merged_from": ", ".join(parent.name for parent in facts.merged_from),
        "modelspec.base_model": facts.base_name,
    }


def _kohya(facts: Facts) -> dict[str, Any]:
    size, per_step = facts.resolution, facts.batch_size
    return {
        "ss_output_name": facts.title,
        "ss_base_model_version": facts.base_version,
        "ss_sd_model_name": facts.base_name,
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_v2": "False",
        "ss_resolution": f"({size[0]}, {size[1]})" if size else None,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.max_steps,
        "ss_num_epochs": facts.epochs,
        "ss_batch_size_per_device": per_step,
        "ss_total_batch_size": per_step and per_step * (facts.accumulation or 1),
        "ss_gradient_accumulation_steps": facts.accumulation,
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.learning_rate,
        "ss_text_encoder_lr": facts.text_learning_rate,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.scheduler,
        "ss_mixed_precision": facts.precision,
        "ss_seed": facts.seed,
        "ss_num_train_images": facts.num_images,
        "ss_min_snr_gamma": facts.min_snr_gamma,
        "ss_tag_frequency": facts.tag_frequency or _trigger_frequency(facts),
        "ss_dataset_dirs": facts.dataset_dirs and {name: {"img_count": n} for name, n in facts.dataset_dirs.items()},
    }


def _trigger_frequency(facts: Facts) -> dict[str, dict[str, int]]:
    """Readers list the words of ss_tag_frequency as a LoRA's words; the trigger alone tells nothing else."""
    return {"trigger": {facts.trigger: facts.num_images or 1}} if facts.trigger else {}


def _network(facts: Facts, adapter: Adapter) -> dict[str, Any]:
    text = [layer for name, layer in adapter.layers.items() if name.startswith(TEXT_PREFIX)]
    layers = [layer for name, layer in adapter.layers.items() if not name.startswith(TEXT_PREFIX)] or text
    arguments = {
        "targets": list(facts.targets) if facts.targets else None,
        "text_rank": _common({layer.rank for layer in text}),
    }
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common({layer.rank for layer in layers}),
        "ss_network_alpha": _common({layer.alpha for layer in layers}),
        "ss_network_args": {name: value for name, value in arguments.items() if value},
    }


def _common(values: set[int] | set[float]) -> str:
    """`Dynamic` is what sd-scripts' resize_lora writes when layers differ."""
    return _text(*values) if len(values) == 1 else "Dynamic" if values else ""


def _lineage(facts: Facts) -> dict[str, Any]:
    parents = [{"name": p.name, "sha256": p.data_hash, "strength": p.strength} for p in facts.merged_from]
    return {"lora_loom.parents": json.dumps(parents, sort_keys=True, ensure_ascii=False) if parents else None}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return str(value)


def data_hash(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> str:
    """sha256 of a safetensors file's data section, 64 hex digits: `sshs_model_hash`, and its first 12 are AutoV3.

    `source` is a path, or tensors as they would be saved. It names bytes, not an effect: another dtype or an
    equivalent rescaling changes it, renaming keys in the same order does not.
    """
    if isinstance(source, Mapping):
        return pack(source).model_hash()
    with open(source, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return _digest(file)


def file_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a whole file; its first 10 digits are AutoV2."""
    with open(path, "rb") as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()
