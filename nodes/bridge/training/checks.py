"""Checks a run before its first step: text that does not fit is refused, what is unwise is said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod
from typing import Any

from ....lora_core.data.concepts import overlap, triggers
from ....lora_core.data.dataset import Dataset
from ....lora_core.data.task import PICTURES
from ....lora_core.families.distilled import few_step_mark
from ....lora_core.families.table import Family
from ....lora_core.training.objective_config import ObjectiveConfig
from ....lora_core.training.presets import preset_of
from ..host.model_files import file_name, files_of
from ..host.wires import Clip, Conditioning, Model, Vae
from ..model.names import family_of

_CURE = "connect the text encoders that belong to the model"
_FAR = 2  # times larger or smaller


def check_connected(clip: Clip, vae: Vae) -> None:
    """Raises ValueError for what a checkpoint without a text encoder or VAE gives in their place."""
    for name, value in (("clip", clip), ("vae", vae)):
        if value is None:
            raise ValueError(
                f"{name} is empty: the file that it was loaded from does not contain it; load the {name} of this "
                "model from its own file"
            )


def check_conditioning(model: Model, conditioning: Conditioning) -> None:
    """Raises ValueError when CONDITIONING is not what this MODEL's network takes, by the widths of both."""
    family, (text, options) = family_of(model), conditioning[0]
    if family.text.tokens:
        _check_width("text", text, _width(model, family.text.tokens), family.name)
    if family.text.pooled:
        wanted = _width(model, (family.text.pooled,)) - family.text.beside
        _check_width("a pooled output", options.get("pooled_output"), wanted, family.name)
    for name in family.text.also:
        if options.get(name) is None:
            raise ValueError(f"this CLIP gives no {name}, which {family.name} needs; {_CURE}")


def check_objective(objective: ObjectiveConfig, prediction: str) -> None:
    """Raises ValueError for a loss that means nothing for what the network predicts (`prediction_type`)."""
    if objective.noise_offset and prediction == "flow":
        raise ValueError(
            f"noise_offset is {objective.noise_offset:g} but this is a flow model, which learns dark and bright "
            "pictures without it; set noise_offset to 0"
        )
    if objective.weighting == "cosmap" and prediction != "flow":
        raise ValueError(
            "weighting cosmap works only with flow models, and this is not one; choose none, min_snr or debiased"
        )


def check_task(dataset: Dataset, family: Family) -> None:
    """Raises ValueError for a family that learns from single pictures alone."""
    if family.prior and dataset.task != PICTURES:
        raise ValueError(
            f"{family.name} is conditioned on {family.prior.what} of each picture, so it cannot learn from "
            f"{dataset.task.name}; train the model that makes {family.prior.what}"
        )


def check_triggers(clip: Clip, dataset: Dataset) -> None:
    """Raises ValueError where concepts are to be kept apart and two triggers are the same to the text encoder."""
    if dataset.apart and (said := _alike(clip, triggers(dataset))):
        raise ValueError(f"{said}; choose another trigger, or switch off keep_apart in Combine LoRA Datasets")


def _alike(clip: Clip, words: Sequence[str]) -> str:
    tokens = [_tokens(clip, word) for word in words]
    for (one, first), (other, second) in combinations(zip(words, tokens, strict=True), 2):
        if first == second:
            return f"the triggers {one} and {other} are the same tokens to this text encoder"
    return ""


def _tokens(clip: Clip, text: str) -> list[Any]:
    """The tokens that text encoders read, without weights."""
    return [[[token[0] for token in part] for part in parts] for parts in clip.tokenize(text).values()]


def warnings(model: Model, dataset: Dataset, assistants: Sequence[str] = ()) -> list[str]:
    """Return a sentence for everything about the model and the data set that is allowed and probably not meant; for a
    model of few steps, what its assistants must be."""
    told = _few_steps(model, assistants), _resolution(model, dataset), _overlap(dataset)
    return [text for text in told if text]


def _check_width(what: str, value: Any, wanted: int, family: str) -> None:
    if value is None:
        raise ValueError(f"this CLIP gives no pooled output, but {family} needs one of {wanted} values; {_CURE}")
    if wanted > 0 and value.shape[-1] != wanted:
        raise ValueError(
            f"wrong text encoder: this CLIP gives {what} of width {value.shape[-1]}, but {family} needs {wanted}; "
            f"{_CURE}"
        )


def _width(model: Model, layers: tuple[str, ...]) -> int:
    """The product of what the first layers of these names read; 0 when the network lacks one."""
    modules = {f".{name}": module for name, module in model.model.diffusion_model.named_modules()}
    found = ([m for name, m in modules.items() if name.endswith(f".{layer}")] for layer in layers)
    return prod(getattr(first[0], "in_features", 0) if first else 0 for first in found)


def _few_steps(model: Model, assistants: Sequence[str]) -> str:
    name, config_class = file_name(next(iter(files_of(model)), "")), type(model.model.model_config).__name__
    mark, family = few_step_mark(name, config_class), family_of(model)
    if not mark:
        return ""
    base = preset_of(family.preset_name).base or "the model it was distilled from"
    if assistants:
        return (
            f"{name or config_class} seems to be distilled for few steps ('{mark}'), which only an assistant made for "
            f"it keeps: if {' or '.join(assistants)} is not, train on {base} and use the LoRA with the fast model"
        )
    return (
        f"warning: {name or config_class} seems to be distilled for few steps ('{mark}'), which training destroys: "
        f"train on {base} and use the LoRA with the fast model"
    )


def _resolution(model: Model, dataset: Dataset) -> str:
    family, side = family_of(model), dataset.resolution
    usual = preset_of(family.preset_name).resolution
    if usual / _FAR < side < usual * _FAR:
        return ""
    effect = "fine detail will be missing" if side < usual else "the model may repeat objects in pictures that large"
    return (
        f"warning: the data set has {side} px, but {family.name} is made for {usual} px: {effect}; "
        f"set resolution in LoRA Dataset nearer to {usual}"
    )


def _overlap(dataset: Dataset) -> str:
    said = overlap(triggers(dataset))
    return f"warning: {said}; choose triggers that share no word" if said else ""
