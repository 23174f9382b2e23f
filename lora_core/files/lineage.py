"""What a LoRA made of others tells about them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .rights import Rights, intersection, rights_of
from .words import trigger_words, unique

PARENTS, MERGE, RIGHTS = "lora_loom.parents", "lora_loom.merge", "lora_loom.rights"
CONTINUED = "lora_loom.continued_from"


@dataclass(frozen=True)
class Parent:
    """`sha256` is that of the data section of its file, `unknown` when it never was one; `parents` are its own."""

    name: str
    sha256: str
    strength: float
    text_strength: float | None = None
    author: str = ""
    license: str = ""
    trigger: str = ""
    base: str = ""
    parents: Sequence[Any] = ()
    blocks: str = ""

    @classmethod
    def of(
        cls, name: str, metadata: Mapping[str, str], strength: float, text_strength: float, sha256: str = ""
    ) -> Parent:
        return cls(
            name, sha256 or metadata.get("sshs_model_hash", "unknown"), strength,
            None if text_strength == strength else text_strength,
            metadata.get("modelspec.author", ""), metadata.get("modelspec.license", ""),
            ", ".join(trigger_words(metadata)), metadata.get("modelspec.base_model", ""),
            parents_of(metadata),
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in ("", None, (), [])}


def parents_of(metadata: Mapping[str, str]) -> list[Any]:
    """The parents that a header tells of; none when it tells of none, or nothing that can be read."""
    try:
        found = json.loads(metadata.get(PARENTS, "[]"))
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def rights(parents: Iterable[Parent]) -> Rights:
    return intersection(rights_of(parent.license) for parent in parents)


def triggers(parents: Iterable[Parent]) -> str:
    return ", ".join(unique(word for parent in parents for word in parent.trigger.split(",")))


def authors(parents: Iterable[Parent]) -> str:
    return ", ".join(unique(name for parent in parents for name in parent.author.split(",")))


def tags(metadata: Iterable[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency` of all of them together, counts of folders of the same name added up."""
    total: dict[str, Counter] = {}
    for each in metadata:
        for folder, counts in _folders(each.get("ss_tag_frequency", "{}")).items():
            numbers = counts.items() if isinstance(counts, dict) else ()
            total.setdefault(folder, Counter()).update({tag: n for tag, n in numbers if isinstance(n, int)})
    return {folder: dict(counts) for folder, counts in total.items()}


def _folders(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
