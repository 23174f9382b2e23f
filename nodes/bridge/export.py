"""Save an Adapter as a LoRA file that is proven to load: ComfyUI's own loader reads it back before it gets its name."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.files import formats, save
from ...lora_core.files.label import Label, labelled
from ...lora_core.low_rank import LowRank
from .folders import file_for, loras_folder
from .keys import NameTable
from .progress import Progress

log = logging.getLogger("lora_loom")

STYLES = {"comfyui": "native", "kohya": "kohya", "diffusers": "peft"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Proof:
    """What ComfyUI's loader made of a file: keys matched and not, layers applied, their largest relative error."""

    matched: int
    unmatched: tuple[str, ...]
    layers: int
    worst: float
    worst_layer: str

    def __str__(self) -> str:
        return (
            f"verified with ComfyUI's loader: {self.matched} keys matched, {len(self.unmatched)} unmatched, "
            f"{self.layers} layers applied, largest relative error {self.worst:.1e} ({self.worst_layer})"
        )


def save_adapter(
    adapter: Adapter, template: str, style: str, dtype: str, model, clip, overwrite: bool, label: Label, beside: bool
) -> tuple[str, str]:
    """Save below the first loras folder, with the label's preview as a picture `beside` the file when that is wanted.
    Returns the name under which loaders list the file, and a report."""
    meta = labelled(adapter.metadata, label)
    values = {
        "title": meta.get("modelspec.title", "lora"), "trigger": meta.get("modelspec.trigger_phrase", ""),
        "rank": adapter.rank(), "steps": meta.get("ss_steps", ""),
    }  # fmt: skip
    path = file_for(template, values, overwrite)
    adapter = replace(adapter, metadata={**meta, "ss_output_name": path.stem})
    progress = Progress(len(adapter.layers))
    saved, proof = save_proven(adapter, path, STYLES[style], DTYPES[dtype], model, clip, progress.update)
    report = f"{path.name}: {saved.size / 1e6:.2f} MB, {style}, {dtype}, AutoV3 {saved.model_hash[:12]}\n{proof}"
    report += "".join(f"\nno room in the header for {what}" for what in saved.left_out)
    if beside and label.thumbnail:
        report += "\n" + _put_beside(path, label.thumbnail, overwrite)
    progress.say(report)
    log.info(report)
    return str(path.relative_to(loras_folder())), report


def _put_beside(path: Path, thumbnail: bytes, overwrite: bool) -> str:
    """`<name>.jpg`, the one spelling that ComfyUI, A1111, Forge, Lora-Manager and rgthree all look for."""
    picture = path.with_suffix(".jpg")
    if picture.exists() and not overwrite:
        return f"{picture.name} was there before and is left as it is"
    picture.write_bytes(thumbnail)
    return f"preview in {picture.name}"


def save_proven(
    adapter: Adapter, path: Path, style: str, dtype: torch.dtype, model, clip=None, tick=lambda _: None
) -> tuple[save.SavedFile, Proof]:
    """Write `path` and prove it. Raises ValueError, and leaves no file, when what loads is not what was trained."""
    text = sum(name.startswith(TEXT_PREFIX) for name in adapter.layers)
    if text and clip is None:
        raise ValueError(
            f"{text} of the {len(adapter.layers)} layers are the text encoder's; connect CLIP to save them"
        )
    table = NameTable(model, clip)
    tensors = formats.encode(adapter, style, table.file_names(style, list(adapter.layers)), dtype)
    unproven = path.with_name(f".{path.stem}.unproven.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        saved = save.save(unproven, tensors, dict(adapter.metadata), overwrite=True)
        proof = prove(unproven, adapter, dtype, model, clip, tick)
        os.replace(unproven, path)
    finally:
        unproven.unlink(missing_ok=True)
    return replace(saved, path=path), proof


def prove(path: Path, adapter: Adapter, dtype: torch.dtype, model, clip=None, tick=lambda _: None) -> Proof:
    """Load the file as ComfyUI's LoraLoader does and compare every applied weight with the adapter's, in fp32."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    loaded = comfy.lora.load_lora(tensors, names, log_missing=False)
    read = set().union(*(patch.loaded_keys for patch in loaded.values())) if loaded else set()
    by_weight: dict[str, list] = {}
    for target, patch in loaded.items():
        by_weight.setdefault(_key(target), []).append((1.0, patch, 1.0, *_slice(target)))
    errors = {}
    for index, (name, layer) in enumerate(adapter.layers.items()):
        tick(index + 1)
        key = f"{name.removeprefix(TEXT_PREFIX)}.weight"
        errors[name] = _error(key, layer, by_weight.get(key, []))
    worst = max(errors, key=errors.__getitem__)
    proof = Proof(len(read & set(tensors)), tuple(sorted(set(tensors) - read)), len(errors), errors[worst], worst)
    if proof.unmatched or proof.worst > 4 * torch.finfo(dtype).eps:
        raise ValueError(
            f"the saved LoRA does not load as it was made ({proof}); "
            "nothing was kept, save it as fp32 or in another format"
        )
    return proof


def _error(key: str, layer: LowRank, patches: list) -> float:
    """Relative Frobenius error of what the loader adds to one weight."""
    wanted = layer.to("cpu", torch.float32).delta_weight()
    applied = comfy.lora.calculate_weight(patches, torch.zeros_like(wanted), key)
    return float((applied - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _key(target) -> str:
    return target[0] if isinstance(target, tuple) else target


def _slice(target) -> tuple:
    """(offset, function) of a key-map target."""
    return (*target[1:], None, None)[:2] if isinstance(target, tuple) else (None, None)
