"""Save an Adapter as a LoRA file that is proven to load: ComfyUI's own loader reads it back before it gets its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan, prod
from pathlib import Path
from typing import Any, cast

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from torch import Tensor

from ....lora_core.adapter import TEXT_PREFIX, Adapter
from ....lora_core.files import bundled, formats, readers, save
from ....lora_core.files.hashes import content_hash
from ....lora_core.files.label import Label, labelled
from ....lora_core.files.lineage import CONTENT
from ....lora_core.kinds import Correction, DoRA
from ....lora_core.kinds.correction import USUAL
from ....lora_core.low_rank import LowRank
from ....lora_core.trust.contract import Contract
from ....lora_core.trust.written import in_words, with_contract
from ..host import embeddings
from ..host.folders import file_for, loras_folder
from ..host.progress import Progress
from ..host.wires import Clip, Model
from ..model.names import names_of
from ..model.weights import key_of, weight_of
from ..trust.receipts import signing
from .published import Bare

log = logging.getLogger("lora_loom")

STYLES: dict[str, formats.Style] = {"comfyui": "native", "kohya": "kohya", "diffusers": "peft"}
_TINY = torch.finfo(torch.float32).tiny
_PART = 2**18  # numbers: 1 MB
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Proof:
    """Tells what ComfyUI's loader made of a file: keys matched and not, layers applied, their largest relative
    error."""

    matched: int
    unmatched: tuple[str, ...]
    layers: int
    worst: float
    worst_layer: str
    loader: str = "ComfyUI's loader"

    def __str__(self) -> str:
        return (
            f"verified with {self.loader}: {self.matched} keys matched, {len(self.unmatched)} unmatched, "
            f"{self.layers} layers applied, largest relative error {self.worst:.2g} ({self.worst_layer})"
        )


def save_adapter(
    adapter: Adapter, template: str, style: str, dtype: str, model: Model, clip: Clip | None, overwrite: bool,
    label: Label, beside: bool, contract: Contract | None = None, sign: bool = False,
) -> tuple[str, str]:  # fmt: skip
    """Save below the first loras folder, with the label's preview as a picture `beside` the file when that is wanted.
    What the contract leaves open is filled from the header. `sign` puts a receipt into it, signed with this machine's
    key.
    Returns the name under which loaders list the file, and a report."""
    meta = labelled(adapter.metadata, label)
    values = {
        "title": meta.get("modelspec.title", "lora"), "trigger": meta.get("modelspec.trigger_phrase", ""),
        "rank": adapter.rank(), "steps": meta.get("ss_steps", ""),
    }  # fmt: skip
    path = file_for(template, values, overwrite)
    meta = {**meta, "ss_output_name": path.stem, CONTENT: content_hash(adapter)}
    adapter = replace(adapter, metadata=with_contract(meta, contract, label))
    signed = signing(path) if sign else None
    progress = Progress(len(adapter.layers) + len(adapter.others))
    seal = signed.seal if signed else save.unsealed
    saved, proof = save_proven(adapter, path, STYLES[style], DTYPES[dtype], model, clip, progress.update, seal=seal)
    report = f"{path.name}: {saved.size / 1e6:.2f} MB, {style}, {dtype}, AutoV3 {saved.model_hash[:12]}\n{proof}"
    report += f"\n{bundled.kept_line(adapter.embeddings)}" if adapter.embeddings else ""
    report += "".join(f"\n{line}" for line in in_words(adapter.metadata, contract))
    report += f"\n{signed.note}" if signed else ""
    report += "".join(f"\n{note}" for note in _notes(adapter, STYLES[style], saved, model, clip))
    report += "".join(f"\nleft out to keep the header small: {what}" for what in saved.left_out)
    if beside and label.thumbnail:
        report += "\n" + _put_beside(path, label.thumbnail, overwrite)
    log.info(report)
    return str(path.relative_to(loras_folder())), report


def with_embeddings(adapter: Adapter, text: str) -> Adapter:
    """Return the adapter with embeddings of ComfyUI's folder beside its own, see `embeddings.chosen`."""
    return replace(adapter, embeddings=bundled.joined(adapter.embeddings, embeddings.chosen(text)))


def _notes(adapter: Adapter, style: str, saved: save.SavedFile, model: Model, clip: Clip | None) -> list[str]:
    """Return what diffusers makes of the file, and what it cost to be right there."""
    told, table = readers.filling(style, saved.filled, saved.size), names_of(model, clip)
    if style == "peft":
        return told
    cure = readers.cure_of(table.unnamed("peft", [*adapter.layers, *adapter.others]))
    return told + readers.notes(table.config_class, style, adapter, cure)


def _put_beside(path: Path, thumbnail: bytes, overwrite: bool) -> str:
    """`<name>.jpg`, the one spelling that ComfyUI, A1111, Forge, Lora-Manager and rgthree all look for."""
    picture = path.with_suffix(".jpg")
    if picture.exists() and not overwrite:
        return f"{picture.name} existed before and was not replaced; switch overwrite on to replace it"
    picture.write_bytes(thumbnail)
    return f"preview in {picture.name}"


def save_proven(
    adapter: Adapter, path: Path, style: formats.Style, dtype: torch.dtype, model: Model, clip: Clip | None = None,
    tick: Callable[[int], None] = lambda _: None, seal: save.Seal = save.unsealed,
) -> tuple[save.SavedFile, Proof]:  # fmt: skip
    """Write `path` and prove it. Raises ValueError, and leaves no file, when what loads is not what was trained."""
    names = [*adapter.layers, *adapter.others]
    text = sum(name.startswith(TEXT_PREFIX) for name in names)
    if text and clip is None:
        raise ValueError(f"{text} of the {len(names)} layers belong to the text encoder; connect CLIP to save them")
    table = names_of(model, clip)
    of_sum = style == "peft" and adapter.kinds()["DoRA"]  # DoRA that ComfyUI's loader does not read
    alone = table.is_read_here_alone(style)
    if of_sum:
        readers.check_dora(table.config_class, table.family.name)
    written = replace(adapter, others=_others_of_sum(adapter, model, clip)) if of_sum else adapter
    spelled = table.file_names(style, names)
    tensors, zeros = formats.encode(written, style, spelled, dtype), formats.zeros(written, style, spelled)
    tensors |= bundled.tensors(adapter.embeddings)
    unproven = path.with_name(f".{path.stem}.unproven.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        saved = save.save(unproven, tensors, dict(adapter.metadata), overwrite=True, seal=seal)
        proof = (prove_in_stack if of_sum or alone else prove)(unproven, adapter, dtype, model, clip, tick)
        os.replace(unproven, path)
    finally:
        unproven.unlink(missing_ok=True)
    return replace(saved, path=path, filled=zeros * dtype.itemsize), proof


def prove(
    path: Path, adapter: Adapter, dtype: torch.dtype, model: Model, clip: Clip | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Proof:  # fmt: skip
    """Load the file as ComfyUI's LoraLoader does and compare every applied weight with the adapter's, in fp32."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    tensors = comfy.lora_convert.convert_lora(_read(path))
    loaded = comfy.lora.load_lora(tensors, names, log_missing=False)
    read = set().union(*(_read_keys(patch, tensors) for patch in loaded.values()))
    by_weight: dict[str, list] = {}
    for target, patch in loaded.items():
        by_weight.setdefault(_key(target), []).append((1.0, patch, 1.0, *_slice(target)))

    def apply(name: str, weight: Tensor) -> Tensor:
        key = key_of(name, model, clip)
        return comfy.lora.calculate_weight(by_weight.get(key, []), weight, key, weight.dtype)

    errors = _errors(adapter, apply, model, clip, tick)
    return _proven(Proof(len(read & set(tensors)), tuple(sorted(set(tensors) - read)), *errors), dtype)


def prove_in_stack(
    path: Path, adapter: Adapter, dtype: torch.dtype, model: Model, clip: Clip | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Proof:  # fmt: skip
    """The same by Load LoRA Stack, for what ComfyUI's loader does not read: DoRA as PEFT writes it, which it would take
    for plain LoRA, and diffusers' names of networks that ComfyUI does not have."""
    tensors = _read(path)
    resolved = names_of(model, clip).resolve(formats.decode(tensors, source=path.name), path.name)
    found = resolved.adapter

    def apply(name: str, weight: Tensor) -> Tensor:
        for item in found.others.get(name, ()):
            weight = item.apply_to(weight)
        return found.layers[name].to(weight.dtype).add_to_(weight) if name in found.layers else weight

    errors = _errors(adapter, apply, model, clip, tick)
    what = "DoRA in this format" if found.others else f"this format of {names_of(model, clip).family.name}"
    loader = f"Load LoRA Stack (ComfyUI's own loader does not read {what})"
    left_out = (*resolved.unmatched, *(misfit.name for misfit in resolved.misfits))
    return _proven(Proof(len(tensors), left_out, *errors, loader), dtype)


def _proven(proof: Proof, dtype: torch.dtype) -> Proof:
    if proof.unmatched or not proof.worst <= 4 * torch.finfo(dtype).eps:  # NaN is none
        raise ValueError(
            f"the LoRA was not saved, because the file does not load correctly ({proof}); "
            "save it as fp32 or in another format"
        )
    return proof


def _errors(
    adapter: Adapter, apply: Callable[[str, Tensor], Tensor], model: Model, clip: Clip | None,
    tick: Callable[[int], None],
) -> tuple[int, float, str]:  # fmt: skip
    """Return how many weights there are, and the largest relative Frobenius error of what is added to one, and to
    which.

    DoRA depends on the weight that it finds, and is looked at in fp64.
    """
    errors, room = {}, torch.empty(max((prod(layer.shape) for layer in adapter.layers.values()), default=0))
    for index, (name, change) in enumerate((*adapter.layers.items(), *adapter.others.items())):
        tick(index + 1)
        if isinstance(change, LowRank):
            zeros = room[: prod(change.shape)].view(change.shape).zero_()  # new memory would take as long as the sums
            errors[name] = _error(change.to("cpu", torch.float32), apply(name, zeros))
        else:
            weight = _found_by(name, change, model, clip)
            wanted = change[0].difference(weight)
            applied = apply(name, weight.clone()) - weight
            errors[name] = float((applied - wanted).norm() / wanted.norm().clamp(min=_TINY))
    worst = max(errors, key=lambda name: (isnan(errors[name]), errors[name]))
    return len(errors), errors[worst], worst


def _found_by(name: str, items: Sequence[Correction], model: Model, clip: Clip | None) -> Tensor:
    """Return the weight that a layer changes, fp64; any will do where there is none (see `Bare`), and zeros for a
    change that is the same on all."""
    if any(item.depends_on_weight for item in items) and not isinstance(model, Bare):
        return weight_of(name, model, clip)
    table = names_of(model, clip)
    shape = table.shapes.get(name) or table.parameters[name]
    if not any(item.depends_on_weight for item in items):
        return torch.zeros(shape, dtype=torch.float64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(USUAL)


def _error(layer: LowRank, applied: Tensor) -> float:
    """Return the relative error over every number of a weight to which the layer was added, computed in parts that fit
    into a processor's cache."""
    rows = max(1, _PART // prod(layer.shape[1:]))
    wrong = size = 0.0
    for part, factor in zip(applied.split(rows), layer.lora_B.split(rows), strict=True):
        wanted = replace(layer, lora_B=factor).delta_weight()
        size += float(wanted.norm()) ** 2
        wrong += float(wanted.sub_(part).norm()) ** 2
    return (wrong / max(size, _TINY**2)) ** 0.5


def _others_of_sum(adapter: Adapter, model: Model, clip: Clip | None) -> dict[str, tuple[Correction, ...]]:
    """DoRA with magnitudes as PEFT has them."""
    return {
        name: tuple(
            item.relative_to("sum", weight_of(name, model, clip)) if isinstance(item, DoRA) else item for item in items
        )
        for name, items in adapter.others.items()
    }


def _read(path: Path) -> dict[str, Tensor]:
    """The layers of a file."""
    return bundled.without(cast(dict[str, Tensor], comfy.utils.load_torch_file(str(path), safe_load=True)))


def _read_keys(patch: Any, tensors: dict[str, Tensor]) -> set[str]:
    """The keys of a file that went into a patch; of a whole difference ComfyUI notes none."""
    if not isinstance(patch, tuple):
        return patch.loaded_keys
    return {key for key, tensor in tensors.items() if any(tensor is value for value in patch[1])}


def _key(target: Any) -> str:
    return target[0] if isinstance(target, tuple) else target


def _slice(target: Any) -> tuple:
    """(offset, function) of a key-map target."""
    return (*target[1:], None, None)[:2] if isinstance(target, tuple) else (None, None)
