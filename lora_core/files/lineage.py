"""Writes and reads what the header of a LoRA made of others tells about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..stored import as_dict, stored
from .nested import table_of, value_of
from .rights import Rights, intersection, rights_of
from .signatures import is_hash_of_the_file, is_signature, signatures
from .words import trigger_words, unique

PARENTS, MERGE, RIGHTS = "lora_loom.parents", "lora_loom.merge", "lora_loom.rights"
CONTINUED = "lora_loom.continued_from"
CONTENT = "lora_loom.content_hash"
CONTRACT = "lora_loom.contract"

_OF_THE_FILE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", PARENTS, MERGE,
                CONTENT)  # fmt: skip
_OF_THE_NETWORK = ("ss_network_module", "ss_network_args", "ss_network_dim", "ss_network_alpha")
_OF_PICTURES = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info", "ss_datasets")
_LONG = 300  # characters of a header's text that is not repeated for a parent
_SIGNED = 16  # signatures of a parent that are noted


@stored("name sha256 strength text_strength author license trigger base parents blocks hash_of header signatures")
@dataclass(frozen=True)
class Parent:
    """`sha256` is that of the data section of its file where `hash_of` is empty; `adapter` is what was in memory, which
    Save LoRA notes as `lora_loom.content_hash` of the file it writes, `file` a whole file. `parents` are its own.
    `header` is what else its header said in short texts, but of pictures and folders; `signatures` are the sha256 of
    those it carried, by their keys: what is made of it cannot carry them.
    """

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
    hash_of: str = ""
    header: Mapping[str, str] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, metadata: Mapping[str, str], strength: float, text_strength: float, sha256: str,
        hash_of: str = "",
    ) -> Parent:  # fmt: skip
        return cls(
            name, sha256, strength,
            None if text_strength == strength else text_strength,
            metadata.get("modelspec.author", ""), metadata.get("modelspec.license", ""),
            ", ".join(trigger_words(metadata)), metadata.get("modelspec.base_model", ""),
            parents_of(metadata), hash_of=hash_of, header=_header(metadata),
            signatures=dict(list(signatures(metadata).items())[:_SIGNED]),
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        return {name: value for name, value in as_dict(self).items() if value not in ("", None, (), [], {})}


def parents_of(metadata: Mapping[str, str]) -> list[Any]:
    """Return the parents that a header tells of; none when it tells of none, or nothing that can be read."""
    found = value_of(metadata.get(PARENTS, "[]"))
    return found if isinstance(found, list) else []


def inherited(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a header that stays true of a LoRA that is made of this one alone."""
    return {
        key: value for key, value in metadata.items()
        if not (key in (*_OF_THE_FILE, *_OF_THE_NETWORK) or is_signature(key, value) or is_hash_of_the_file(key))
    }  # fmt: skip


def losses(error: float, errors: Mapping[str, float]) -> dict[str, Any]:
    """Relative errors of the whole and of layers for the file: to two digits, and only where there are any."""
    short = {name: float(f"{value:.1e}") for name, value in errors.items() if value}
    return {"error": float(f"{error:.1e}"), **({"errors": short} if short else {})}


def without_headers(parents: Any) -> list[Any]:
    """Parents as `described`, and theirs, without what their headers said; none of what is no list."""
    return [
        {key: without_headers(value) if key == "parents" else value for key, value in each.items() if key != "header"}
        for each in (parents if isinstance(parents, list) else ())
        if isinstance(each, dict)
    ]


def younger(parents: Iterable[Any] | None, generations: int) -> list[Any]:
    """Parents as `without_headers` gives them, with so many generations. None are those too deep to be read."""
    if generations == 1:
        return [{key: value for key, value in each.items() if key != "parents"} for each in parents or ()]
    return [
        {key: younger(value, generations - 1) if key == "parents" else value for key, value in each.items()}
        for each in parents or ()
    ]


def _header(metadata: Mapping[str, str]) -> dict[str, str]:
    told = ("modelspec.author", "modelspec.license", "modelspec.trigger_phrase", "modelspec.base_model", *_OF_PICTURES)
    return {
        key: value for key, value in metadata.items()
        if key.startswith(("ss_", "modelspec.")) and key not in (*told, *_OF_THE_FILE) and len(value) <= _LONG
        and not is_signature(key, value)
    }  # fmt: skip


def rights(parents: Iterable[Parent]) -> Rights:
    """Return what all parents and what they were made of allow: a new label on a merge takes back nothing."""
    licences = (text for parent in parents for text in (parent.license, *_licences_of(parent.parents)))
    return intersection(map(rights_of, licences))


def _licences_of(parents: Iterable[Any]) -> Iterator[str]:
    """Yield the licences of parents as `described` and of theirs, where one is written down."""
    left = [*parents]
    while left:
        each = left.pop(0)
        if isinstance(each, dict):
            if isinstance(text := each.get("license"), str):
                yield text
            left += each["parents"] if isinstance(each.get("parents"), list) else []


def triggers(parents: Iterable[Parent]) -> str:
    return ", ".join(unique(word for parent in parents for word in parent.trigger.split(",")))


def authors(parents: Iterable[Parent]) -> str:
    return ", ".join(unique(name for parent in parents for name in parent.author.split(",")))


def tags(metadata: Iterable[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency` of all of them together, counts of folders of the same name added up."""
    total: dict[str, Counter] = {}
    for each in metadata:
        for folder, counts in table_of(each.get("ss_tag_frequency", "{}")).items():
            numbers = counts.items() if isinstance(counts, dict) else ()
            total.setdefault(folder, Counter()).update({tag: n for tag, n in numbers if isinstance(n, int)})
    return {folder: dict(counts) for folder, counts in total.items()}
