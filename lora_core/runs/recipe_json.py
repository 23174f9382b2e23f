"""All that a run is repeated from, as the one JSON text that its LoRA carries in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..stored import as_dict, from_dict, keys_of, stored
from ..training.config import LoraConfig, OptimizerConfig, Recipe, TextConfig, TrainConfig, Validation
from ..training.layers import LayersConfig, Rule
from ..training.objective_config import ObjectiveConfig

_FORMAT = 1
_Config = TypeVar("_Config")


@stored("recipe dataset base software")
@dataclass(frozen=True)
class RecipeRecord:
    """All but the recipe are plain JSON values: what tells the data set apart (`fingerprint`, and for each of its sets
    how it was read and `pictures`, 16 hex digits each in their order), the model and its files, and the versions of
    what trained."""

    recipe: Recipe
    dataset: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        plain = {"format": _FORMAT, **as_dict(self)}
        if self.recipe.validation is None:
            del plain["recipe"]["validation"]
        return json.dumps(plain, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> RecipeRecord:
        """Read what `to_json` wrote. Raises ValueError for a format or a setting that this version does not know."""
        found = json.loads(text)
        if found.pop("format", None) != _FORMAT:
            raise ValueError(f"these settings have another format than {_FORMAT}; update LoRA Loom to read them")
        recipe = found["recipe"]
        options = recipe["lora"]["options"]
        options["rules"] = [_config(Rule, rule) for rule in options["rules"]]
        recipe["lora"]["options"] = _config(LayersConfig, options)
        for name, kind in (("optimizer", OptimizerConfig), ("objective", ObjectiveConfig)):
            recipe["train"][name] = _config(kind, recipe["train"][name])
        for part, kind in (("lora", LoraConfig), ("train", TrainConfig), ("text", TextConfig)):
            recipe[part] = recipe[part] and _config(kind, recipe[part])
        if "validation" in recipe:
            recipe["validation"] = _config(Validation, recipe["validation"])
        return _config(cls, {**found, "recipe": _config(Recipe, recipe)})


def _config(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    if unknown := values.keys() - set(keys_of(kind)):
        raise ValueError(
            f"these settings say {', '.join(sorted(unknown))}, which this version does not know; update LoRA Loom to "
            "read them"
        )
    return from_dict(kind, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
