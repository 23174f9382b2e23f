"""Adds to a LoRA's header what its maker tells, and leaves out what is not to be given away with the file."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from .metadata import QUIET, SETTINGS, frequency_text, text_of, trigger_datasets
from .nested import table_of

_PRIVATE = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets")


@dataclass(frozen=True)
class Label:
    """`thumbnail` is a JPEG. `redact` leaves out what would tell of the pictures and captions; see `redacted`."""

    author: str = ""
    license: str = ""
    description: str = ""
    usage_hint: str = ""
    tags: str = ""
    thumbnail: bytes = b""
    redact: bool = False


def labelled(metadata: Mapping[str, str], label: Label) -> dict[str, str]:
    """The header text with the label's, which goes before what was there; what the label leaves empty stays.

    The preview has two homes: ModelSpec's data URL, and `ssmd_cover_images`, which A1111, Forge and ComfyUI show.
    """
    picture = b64encode(label.thumbnail).decode()
    added = {
        "modelspec.author": label.author.strip(),
        "modelspec.license": label.license.strip(),
        "modelspec.description": label.description.strip(),
        "modelspec.usage_hint": label.usage_hint.strip(),
        "modelspec.tags": ", ".join(tag.strip() for tag in label.tags.split(",") if tag.strip()),
        "modelspec.thumbnail": picture and f"data:image/jpeg;base64,{picture}",
        "ssmd_cover_images": picture and json.dumps([picture]),
    }
    kept = redacted(metadata) if label.redact else dict(metadata)
    return kept | {key: value for key, value in added.items() if value}


def redacted(metadata: Mapping[str, str]) -> dict[str, str]:
    """Without tags of captions and neutral prompts (but for the trigger, which is there to be used), the name of the
    folder, and every hash made of a picture or caption. How many pictures there were, and of which sizes, stays."""
    kept = {key: value for key, value in metadata.items() if key not in _PRIVATE}
    if trigger := kept.get("modelspec.trigger_phrase"):
        kept["ss_tag_frequency"] = frequency_text({}, trigger)
        kept["ss_datasets"] = text_of(trigger_datasets(trigger))
    if SETTINGS in kept:
        kept[SETTINGS] = _without_prompts(_without(kept[SETTINGS], "pictures", "fingerprint", "root"))
    if QUIET in kept:
        kept[QUIET] = text_of({name: each for name, each in table_of(kept[QUIET]).items() if name != "prompts"})
    return kept


def without_picture_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    return {**metadata, SETTINGS: _without(metadata[SETTINGS], "pictures")} if SETTINGS in metadata else dict(metadata)


def _without_prompts(settings: str) -> str:
    """Take neutral prompts out, among which are words of captions."""
    found = table_of(settings, int)
    recipe = found.get("recipe")
    if isinstance(recipe, dict):
        recipe.pop("neutral", None)
    return text_of(found)


def _without(settings: str, *names: str) -> str:
    """Take `names` out of the data set in the text `settings`, and out of each of its sets. Of what is no settings at
    all nothing is left."""
    found = table_of(settings, int)
    dataset = found.get("dataset")
    sets = dataset.get("sets") if isinstance(dataset, dict) else None
    for part in (dataset, *(sets if isinstance(sets, list) else ())):
        if isinstance(part, dict):
            for name in names:
                part.pop(name, None)
    return text_of(found)
