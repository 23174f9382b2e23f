"""Writes and reads what the header of a LoRA made of others tells about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..stored import as_dict, stored
from .nested import table_of, value_of
from .permissions import Permissions, permissions_of, rights_to
from .rights import Rights, intersection
from .signatures import is_hash_of_the_file, is_signature, signatures
from .words import trigger_words, unique

PARENTS, MERGE, RIGHTS = "lora_loom.parents", "lora_loom.merge", "lora_loom.rights"
CONTINUED, LEARNED_ON = "lora_loom.continued_from", "lora_loom.learned_on"
CONTENT = "lora_loom.content_hash"
CONTRACT = "lora_loom.contract"

_OF_THE_FILE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", PARENTS, MERGE,
                CONTENT, CONTRACT)  # fmt: skip
_OF_THE_NETWORK = ("ss_network_module", "ss_network_args", "ss_network_dim", "ss_network_alpha")
_OF_PICTURES = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info", "ss_datasets")
_LONG = 300  # characters of a header's text that is not repeated for a parent
_SIGNED = 16  # signatures of a parent that are noted
_LONG_CONTRACT = 2**13  # characters of a parent's that is repeated
_MOST_ANCESTORS = 10_000


@stored(
    "name sha256 strength text_strength author license trigger base parents blocks hash_of header signatures contract"
)
@dataclass(frozen=True)
class Parent:
    """`sha256` is that of the data section of its file where `hash_of` is empty; `adapter` is what was in memory, which
    Save LoRA notes as `lora_loom.content_hash` of the file it writes, `file` a whole file. `parents` are its own.
    `header` is what else its header said in short texts, but of pictures and folders; `signatures` are the sha256 of
    those it carried, by their keys: what is made of it cannot carry them. `contract` is the table of its own, as its
    author wrote it.
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
    contract: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, metadata: Mapping[str, str], strength: float, text_strength: float, sha256: str,
        hash_of: str = "",
    ) -> Parent:  # fmt: skip
        contract = _contract(metadata)
        return cls(
            name, sha256, strength,
            None if text_strength == strength else text_strength,
            metadata.get("modelspec.author", "") or _text(contract, "author"),
            _text(contract, "license") or metadata.get("modelspec.license", ""),
            ", ".join(trigger_words(metadata)), metadata.get("modelspec.base_model", ""),
            made_of(metadata), hash_of=hash_of, header=_header(metadata),
            signatures=dict(list(signatures(metadata).items())[:_SIGNED]), contract=contract,
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        return {name: value for name, value in as_dict(self).items() if value not in ("", None, (), [], {})}


def parents_of(metadata: Mapping[str, str]) -> list[Any]:
    """Return the parents that a header tells of; none when it tells of none, or nothing that can be read."""
    found = value_of(metadata.get(PARENTS, "[]"))
    return found if isinstance(found, list) else []


def ancestors(metadata: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield all that a header says it was made of, went on from, or was learned on, and their parents, as `described`,
    nearest first; a header of a stranger may tell of thousands, of which the first are enough."""
    level, count = made_of(metadata), 0
    while level and count < _MOST_ANCESTORS:
        level = [each for each in level if isinstance(each, dict)][: _MOST_ANCESTORS - count]
        yield from level
        count += len(level)
        level = [one for each in level if isinstance(each.get("parents"), list) for one in each["parents"]]


def made_of(metadata: Mapping[str, str]) -> list[Any]:
    """Return the parents, what was gone on from, and what was learned on."""
    began, learned = table_of(metadata.get(CONTINUED, "")), value_of(metadata.get(LEARNED_ON, "[]"))
    return [*parents_of(metadata), *([began] if began else []), *(learned if isinstance(learned, list) else [])]


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
    """Return what all parents and what they were made of allow, by licences and permissions: a new label on a merge
    takes back nothing."""
    return intersection(
        each
        for parent in parents
        for each in (rights_to(parent.license, _permissions(parent.contract)), *_rights_of(parent.parents))
    )


def rights_in(metadata: Mapping[str, str]) -> Rights:
    """Return what a header's own licence and contract, and those of all it was made of, allow."""
    own = Parent.of("", metadata, 1.0, 1.0, "")
    return intersection([rights_to(own.license, _permissions(own.contract)), *_rights_of(ancestors(metadata), False)])


def _rights_of(parents: Iterable[Any], deep: bool = True) -> Iterator[Rights]:
    """Yield the rights to parents as `described`, where a licence or permissions are written down, and when `deep` to
    theirs."""
    left = [*parents]
    while left:
        each = left.pop(0)
        if isinstance(each, dict):
            text, permissions = each.get("license"), _permissions(each.get("contract"))
            if isinstance(text, str) or permissions.table():
                yield rights_to(text if isinstance(text, str) else "", permissions)
            left += each["parents"] if deep and isinstance(each.get("parents"), list) else []


def _permissions(contract: Any) -> Permissions:
    return permissions_of(contract.get("permissions") if isinstance(contract, Mapping) else None)


def _contract(metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(CONTRACT, "")
    return table_of(text) if text and len(text) <= _LONG_CONTRACT else {}


def _text(table: Mapping[str, Any], name: str) -> str:
    found = table.get(name)
    return found[:_LONG] if isinstance(found, str) else ""


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
