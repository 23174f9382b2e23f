"""The text in a LoRA file's header, under the names that other programs look for.

`modelspec.*` is ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec); `ss_*` are the keys of sd-scripts, which A1111,
Forge, Civitai, Lora-Manager and ComfyUI's asset scan read. All values are text, JSON with sorted keys where nested.
Nothing is taken from the clock, so the same facts give the same text. `save` adds the hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from ..adapter import TEXT_PREFIX, Adapter
from . import lineage
from .lineage import Parent

SETTINGS, QUIET, STRENGTH = "lora_loom.settings", "lora_loom.quiet", "lora_loom.strength"
ASSISTANTS = "lora_loom.assistants"
HINT = "modelspec.usage_hint"


@dataclass(frozen=True)
class Facts:
    """Holds what is known of how a LoRA came to be; what is left at None or empty is not written.

    `architecture` is ModelSpec's name of the base (`stable-diffusion-v1`, `stable-diffusion-xl-v1-base`, `flux-1-dev`),
    `base_version` sd-scripts' (`sd_v1`, `sdxl_base_v1-0`, `flux1`), `base_name` the file, `base_hash` its sha256 and
    `base_part_hash` its AutoV1. `resolution` is (width, height). `buckets` ({(width, height): count}, repeats
    included), `dataset_dirs` and, for class images, `class_dirs` ({folder: (repeats, pictures)}) and `tag_frequency`
    ({folder: {tag: count}}) tell about the training data, `folder_triggers` the words of each folder where it has some;
    `label.redacted` takes out what has folders again.
    `settings` is the text of `runs.recipe_json`; `made_by` tells how it was made of `merged_from`, and `quiet` of the
    directions that it keeps out of; `learned_on` are the LoRAs that were on the model in training, and
    `assistants` tells of those that were on in its steps alone, which are no parents. `strength` is the one to use it
    at, and `usage_hint` says so. `contract` is the text of a contract.
    """

    title: str
    architecture: str
    base_version: str = ""
    base_name: str = ""
    base_hash: str = ""
    base_part_hash: str = ""
    trigger: str = ""
    prediction_type: str = ""
    resolution: tuple[int, int] | None = None
    steps: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    learning_rate: float | None = None
    text_learning_rate: float | None = None
    optimizer: str = ""
    scheduler: str = ""
    warmup: int | None = None
    max_grad_norm: float | None = None
    caption_dropout: float | None = None
    clip_skip: int | None = None
    seed: int | None = None
    targets: tuple[str, ...] = ()
    min_snr_gamma: float | None = None
    loss: str = ""
    noise_offset: float | None = None
    max_norm: float | None = None
    debiased: bool | None = None
    num_images: int | None = None
    num_class_images: int | None = None
    buckets: Mapping[tuple[int, int], float] | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    dataset_dirs: Mapping[str, tuple[int, int]] | None = None
    class_dirs: Mapping[str, tuple[int, int]] | None = None
    folder_triggers: Mapping[str, str] | None = None
    settings: str = ""
    merged_from: tuple[Parent, ...] = ()
    made_by: Mapping[str, Any] | None = None
    continued_from: Parent | None = None
    quiet: Mapping[str, Any] | None = None
    usage_hint: str = ""
    strength: float | None = None
    learned_on: tuple[Parent, ...] = ()
    contract: str = ""
    assistants: tuple[Mapping[str, Any], ...] = ()


def build(facts: Facts, adapter: Adapter) -> dict[str, str]:
    """Return the header text of `adapter`; its rank and alpha are read from the factors."""
    found = {
        "format": "pt", **_modelspec(facts), **_kohya(facts), **_data(facts), **_network(facts, adapter),
        **_lineage(facts), SETTINGS: facts.settings, QUIET: facts.quiet, STRENGTH: facts.strength,
        lineage.CONTRACT: facts.contract, ASSISTANTS: [*facts.assistants],
    }  # fmt: skip
    return {key: text_of(value) for key, value in sorted(found.items()) if value not in (None, "", (), {}, [])}


def usage_of(header: Mapping[str, str]) -> dict[str, Any]:
    """Return what a header says of how to use its LoRA, as fields of `Facts`."""
    try:
        strength = {"strength": float(header[STRENGTH])}
    except (KeyError, ValueError):
        return {}
    return {"usage_hint": header.get(HINT, ""), **strength}


def _modelspec(facts: Facts) -> dict[str, Any]:
    size = facts.resolution
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": facts.architecture and f"{facts.architecture}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": facts.title,
        "modelspec.resolution": f"{size[0]}x{size[1]}" if size else None,
        "modelspec.trigger_phrase": facts.trigger,
        "modelspec.prediction_type": facts.prediction_type,
        "modelspec.encoder_layer": facts.clip_skip,
        HINT: facts.usage_hint,
        "modelspec.merged_from": ", ".join(parent.name for parent in facts.merged_from),
        "modelspec.base_model": facts.base_name,
    }


def _kohya(facts: Facts) -> dict[str, Any]:
    size, per_step = facts.resolution, facts.batch_size
    return {
        "ss_output_name": facts.title,
        "ss_base_model_version": facts.base_version,
        "ss_sd_model_name": facts.base_name,
        "ss_sd_model_hash": facts.base_part_hash,
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_v2": "False",
        "ss_clip_skip": facts.clip_skip,
        "ss_resolution": f"({size[0]}, {size[1]})" if size else None,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.max_steps,
        "ss_batch_size_per_device": per_step,
        "ss_total_batch_size": per_step and per_step * (facts.accumulation or 1),
        "ss_gradient_accumulation_steps": facts.accumulation,
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.learning_rate,
        "ss_text_encoder_lr": facts.text_learning_rate,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.scheduler,
        "ss_lr_warmup_steps": facts.warmup,
        "ss_max_grad_norm": facts.max_grad_norm,
        "ss_caption_dropout_rate": facts.caption_dropout,
        "ss_seed": facts.seed,
        "ss_min_snr_gamma": facts.min_snr_gamma,
        "ss_debiased_estimation": facts.debiased,
        "ss_loss_type": facts.loss,
        "ss_noise_offset": facts.noise_offset,
        "ss_scale_weight_norms": facts.max_norm,
    }


def _data(facts: Facts) -> dict[str, Any]:
    """The training data as sd-scripts counts it: a picture counts as often as it is repeated."""
    tags = {"ss_tag_frequency": frequency_text(facts.tag_frequency or {}, facts.trigger)}
    if not facts.buckets:
        return tags | {"ss_datasets": trigger_datasets(facts.trigger)}
    counts = facts.buckets.values()
    batches = sum(ceil(count / (facts.batch_size or 1)) for count in counts)
    return tags | {
        "ss_num_train_images": facts.num_images,
        "ss_num_reg_images": facts.num_class_images,
        "ss_num_batches_per_epoch": batches,
        "ss_num_epochs": _epochs(facts.max_steps, facts, batches),
        "ss_epoch": _epochs(facts.steps, facts, batches),
        "ss_enable_bucket": True,
        "ss_bucket_info": {
            "buckets": {
                str(number): {"resolution": list(size), "count": round(count)}
                for number, (size, count) in enumerate(zip(facts.buckets, counts, strict=True))
            }
        },
        "ss_dataset_dirs": _dirs(facts.dataset_dirs),
        "ss_reg_dataset_dirs": _dirs(facts.class_dirs),
        "ss_datasets": _datasets(facts),
    }


def _datasets(facts: Facts) -> list[dict[str, Any]]:
    """As sd-scripts writes it of a data set with subsets. Lora-Manager takes the first one's `class_tokens` for the
    LoRA's words, so those with a trigger go first."""
    words, folders = facts.folder_triggers or {}, [(False, facts.dataset_dirs), (True, facts.class_dirs)]
    subsets = [
        {"image_dir": name, "num_repeats": repeats, "img_count": count, "is_reg": is_reg,
         "class_tokens": words.get(name) or (None if is_reg or words else facts.trigger or None)}
        for is_reg, found in folders for name, (repeats, count) in (found or {}).items()
    ]  # fmt: skip
    if not subsets:
        return trigger_datasets(facts.trigger)
    told = {"subsets": sorted(subsets, key=lambda each: not each["class_tokens"])}
    return [told | ({"resolution": list(facts.resolution)} if facts.resolution else {})]


def trigger_datasets(trigger: str) -> list[dict[str, Any]]:
    """`ss_datasets` that tells nothing but the trigger."""
    return [{"subsets": [{"class_tokens": trigger.strip()}]}] if trigger.strip() else []


def frequency_text(frequency: Mapping[str, Mapping[str, int]], trigger: str = "") -> str:
    """`ss_tag_frequency`, most frequent first. Readers go by counts and leave equals as they stand: so a trigger that
    all captions have stands before the other tags that all of them have."""
    if not frequency:
        frequency = trigger_frequency(trigger)
    places = {word: place for place, word in enumerate(_words(trigger))}
    ordered = {
        folder: dict(sorted(tags.items(), key=lambda tag: (-tag[1], places.get(tag[0], len(places)), tag[0])))
        for folder, tags in sorted(frequency.items())
    }
    return json.dumps(ordered, ensure_ascii=False) if ordered else ""


def _words(trigger: str) -> list[str]:
    return [word.strip() for word in trigger.split(",") if word.strip()]


def _dirs(found: Mapping[str, tuple[int, int]] | None) -> dict[str, dict[str, int]]:
    return {name: {"n_repeats": repeats, "img_count": count} for name, (repeats, count) in (found or {}).items()}


def _epochs(steps: int | None, facts: Facts, batches: int) -> int | None:
    return None if steps is None else ceil(steps * (facts.accumulation or 1) / batches)


def trigger_frequency(trigger: str) -> dict[str, dict[str, int]]:
    """Readers list the words of ss_tag_frequency as a LoRA's words; triggers alone, separated by commas, tell nothing
    else."""
    words = _words(trigger)
    return {"trigger": dict.fromkeys(words, 1)} if words else {}


def _network(facts: Facts, adapter: Adapter) -> dict[str, Any]:
    found = adapter.low_ranks()
    text = [layer for name, layer in found.items() if name.startswith(TEXT_PREFIX)]
    layers = [layer for name, layer in found.items() if not name.startswith(TEXT_PREFIX)] or text
    arguments = {
        "targets": list(facts.targets) if facts.targets else None,
        "text_rank": _common({layer.rank for layer in text}),
        **({"dora_wd": "True", "wd_on_output": "True"} if adapter.kinds()["DoRA"] else {}),  # as LyCORIS calls them
    }
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common({layer.rank for layer in layers}),
        "ss_network_alpha": _common({layer.alpha for layer in layers}),
        "ss_network_args": {name: value for name, value in arguments.items() if value},
    }


def _common(values: set[int] | set[float]) -> str:
    """`Dynamic` is what sd-scripts' resize_lora writes when layers differ."""
    return text_of(*values) if len(values) == 1 else "Dynamic" if values else ""


def _lineage(facts: Facts) -> dict[str, Any]:
    """Describe all parents together: licences that all apply, what they allow, and the authors of what is in it."""
    began = facts.continued_from
    inside = facts.merged_from or ((began,) if began else ())
    if not (parents := (*inside, *facts.learned_on)):
        return {lineage.MERGE: facts.made_by}
    rights = lineage.rights(parents)
    told, below = ([p.described() for p in each] for each in (facts.merged_from, facts.learned_on))
    return {
        lineage.LEARNED_ON: json.dumps(below, sort_keys=True, ensure_ascii=False) if below else None,
        lineage.PARENTS: json.dumps(told, sort_keys=True, ensure_ascii=False) if told else None,
        lineage.CONTINUED: began and began.described(),
        lineage.MERGE: facts.made_by,
        lineage.RIGHTS: rights.to_json() if rights.known else None,
        "modelspec.license": rights.licence,
        "modelspec.author": lineage.authors(inside),
    }


def text_of(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return str(value)
