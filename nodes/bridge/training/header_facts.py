"""Collects the facts that describe a run in the header of its LoRA."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from typing import Any

import comfy.model_management
import torch
from comfyui_version import __version__ as comfyui_version

from ....lora_core.adapter import Adapter
from ....lora_core.data.buckets import PictureSize
from ....lora_core.data.dataset import Dataset, Example
from ....lora_core.data.pairs import all_pictures
from ....lora_core.data.root import contents
from ....lora_core.data.tags import sets_by_folder, tag_frequency
from ....lora_core.data.task import PICTURES
from ....lora_core.files.hashes import part_hash
from ....lora_core.files.metadata import Facts, build
from ....lora_core.quiet.sizes import MOST
from ....lora_core.runs.recipe_json import RecipeRecord
from ....lora_core.stored import as_dict
from ....lora_core.training.config import Recipe, fingerprint
from ....lora_core.trust.written import contract_text
from ....lora_core.version import VERSION
from ..host.model_files import file_name, files_of, known_hash
from ..host.progress import Progress
from ..model.denoiser import prediction_type
from ..model.names import family_of
from ..stack.carried import carried
from ..trust.ancestors import learned_on
from .order import Run, Sources


def run_facts(sources: Sources, recipe: Recipe, run: Run, progress: Progress, learned: Dataset | None = None) -> Facts:
    """Return all but the steps done. `learned` is the data set without the pictures that are held out: what is counted.

    The base model's file is hashed when that was not done before, unless its loader does not say which file it is.
    """
    model, dataset, config, optimizer = sources.model, sources.dataset, recipe.train, recipe.train.optimizer
    objective = config.objective
    learned = learned or dataset
    skipped, sets = sources.clip.layer_idx, sets_by_folder(learned)
    concept = {name: members for name, members in sets.items() if members[0].group.role == "concept"}
    family, path = family_of(model), next(iter(files_of(model)), "")
    there, start = os.path.isfile(path), sources.start
    begins = {"continue_from": start.described()} if start else {}
    base_hash = known_hash(path, progress) if there else ""
    loras, beside = carried(model, sources.clip), [*sources.assistants.files]
    settings = RecipeRecord(
        recipe,
        dataset=_data_set(dataset, sets_by_folder(dataset).values()) | contents(all_pictures(dataset)),
        base={
            "family": family.name, "sha256": base_hash, "dtype": str(model.model_dtype()),
            "patches": len(model.patches), "clip_layer": skipped, **begins,
            **({"loras": loras} if loras else {}), **({"assistants": beside} if beside else {}),
            "files": {
                part: [file_name(each) for each in files_of(getattr(sources, part))]
                for part in ("model", "clip", "vae", "prior_vae")
            },
        },
        software=_software(),
    )  # fmt: skip
    facts = Facts(
        title=run.name, architecture=family.architecture, base_version=family.base_version,
        base_name=file_name(path), base_hash=base_hash, base_part_hash=part_hash(path) if there else "",
        trigger=dataset.trigger, prediction_type=prediction_type(model),
        resolution=(dataset.resolution, dataset.resolution), max_steps=config.steps, batch_size=config.batch_size,
        accumulation=config.accumulation, learning_rate=config.learning_rate,
        text_learning_rate=recipe.text.learning_rate if recipe.text else None, optimizer=optimizer.described(),
        scheduler=optimizer.schedule, warmup=optimizer.warmup,
        max_grad_norm=optimizer.max_grad_norm, caption_dropout=config.caption_dropout,
        clip_skip=None if skipped is None else -skipped, seed=config.seed,
        targets=(recipe.lora.preset, *recipe.lora.include),
        num_images=_shown(learned, "concept"), num_class_images=_shown(learned, "class"),
        min_snr_gamma=objective.snr_gamma if objective.weighting == "min_snr" else None,
        debiased=objective.weighting == "debiased", loss=objective.loss if objective.loss != "mse" else "",
        noise_offset=objective.noise_offset or None, max_norm=recipe.lora.options.max_norm or None,
        buckets=_buckets(learned),
        tag_frequency={name: tag_frequency(members) for name, members in concept.items()},
        dataset_dirs={name: _counted(members) for name, members in concept.items()},
        class_dirs={name: _counted(members) for name, members in sets.items() if name not in concept},
        folder_triggers={name: members[0].group.trigger for name, members in sets.items() if members[0].group.trigger},
        settings=settings.to_json(), continued_from=start and start.parent, quiet=_quiet(recipe, run),
        learned_on=tuple(learned_on(model)), assistants=sources.assistants.files,
    )  # fmt: skip
    return replace(facts, contract=_contract(run, facts))


def _contract(run: Run, facts: Facts) -> str:
    return contract_text(run.contract, build(facts, Adapter({})))


def _quiet(recipe: Recipe, run: Run) -> dict[str, Any] | None:
    """Return what quiet directions are made from."""
    if not recipe.train.quiet:
        return None
    prompts = fingerprint(list(recipe.neutral))
    return {"mu": recipe.train.quiet, "pairs": MOST, "prompts": prompts, "coverage": run.coverage}


def _software() -> dict[str, str]:
    """Return what the bytes of a LoRA depend on beside the recipe: pictures are scaled by Pillow and numpy, layers are
    computed by torch and kitchen, texts are split into tokens by transformers. What is not installed is left out."""
    packages = ("torch", "numpy", "pillow", "comfy-kitchen", "transformers")
    return {
        "lora_loom": VERSION, "comfyui": comfyui_version, "device": comfy.model_management.get_torch_device().type,
        **{name: version for name in packages if (version := _version(name))},
        "torch": torch.__version__,
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _buckets(dataset: Dataset) -> dict[PictureSize, float]:
    """Return how many pictures of each size a pass over the data shows."""
    found: defaultdict[PictureSize, float] = defaultdict(int)
    for example in dataset.examples:
        found[example.size] += example.group.times
    return dict(sorted(found.items()))


def _shown(dataset: Dataset, role: str) -> int:
    return round(sum(example.group.times for example in dataset.examples if example.group.role == role))


def _counted(members: list[Example]) -> tuple[int, int]:
    return members[0].group.repeats, len(members)


def _data_set(dataset: Dataset, sets: Iterable[list[Example]]) -> dict[str, Any]:
    return {
        "fingerprint": dataset.fingerprint(),
        "resolutions": list(dataset.resolutions),
        **({"task": {"name": dataset.task.name} | as_dict(dataset.task)} if dataset.task != PICTURES else {}),
        **({"keep_apart": True} if dataset.apart else {}),
        "sets": [
            {
                "pictures": " ".join(example.digest[:16] for example in members),
                "trigger": members[0].group.trigger,
                "repeats": members[0].group.repeats,
                "bucket_step": members[0].group.step,
                "options": as_dict(members[0].group.options),
                **({"references": held} if (held := sum(len(each.references) for each in members)) else {}),
            }
            for members in sets
        ],
    }
