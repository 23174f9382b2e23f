"""The contract of a LoRA, header key `lora_loom.contract`: what it is, what may be done with it, and where it is from.

One JSON table, described in docs/contract.md. Every field may be left out, and none is made up. What a stranger wrote
is read as far as it can be: a field of another type is as good as left out, texts are cut, nothing is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ..files.lineage import CONTRACT
from ..files.nested import table_of
from ..files.permissions import Permissions, permissions_of

VERSION = 1
KINDS = ("style", "character", "object", "concept", "edit")
ORIGINS = ("own work", "licensed", "public domain", "with consent")
LARGEST = 2**16  # characters of a contract that is read
LONGEST, LONGEST_WORDS = 240, 2_000  # characters of a name, and of a description
STRONGEST = 20.0
_MOST = 16  # marks of pictures, and groups of prompts
_HASH = re.compile(r"[0-9a-f]{64}")
_DAY = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]+")
_AIR = re.compile(
    r"urn:air:[a-z0-9_.+-]{1,40}:[a-z0-9_-]{1,40}:[a-z0-9_-]{1,40}:[A-Za-z0-9_./%-]{1,200}(?:@[A-Za-z0-9_.-]{1,100})?"
    r"(?::[A-Za-z0-9_-]{1,40})?(?:\.[a-z0-9]{1,20})?"
)


@dataclass(frozen=True)
class Pictures:
    """Describes the data set: `root` is a Merkle root over what was learned from (`lora_core/data/root.py`), 64 hex
    digits, `count` the number of pictures, and `reserved` how many of them say by which mark that they are not to be
    learned from."""

    root: str = ""
    count: int | None = None
    reserved: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        return _told({"root": self.root, "pictures": self.count, "reserved": dict(self.reserved)})


@dataclass(frozen=True)
class Outcome:
    """Tells what LoRA Report measured, and of what: `content` is the sha256 of the adapter (`content_hash`).

    `leakage` is, by group of prompts, the change of latents over that with the trigger; `near` of `samples` are as
    near to a training picture as copies, None where no data set was compared.
    """

    date: str
    seed: int
    seeds: int
    content: str
    leakage: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = None
    near: int | None = None
    strength: float = 1.0

    def table(self) -> dict[str, Any]:
        found = {
            "date": self.date, "seed": str(self.seed), "seeds": self.seeds, "content": self.content,
            "leakage": dict(self.leakage), "samples": self.samples, "near": self.near, "strength": self.strength,
        }  # fmt: skip
        return _told(found)


@dataclass(frozen=True)
class Contract:
    """None and what is empty is not said. `strength` is the recommended one, `air` Civitai's URN of the model.

    Raises ValueError for a value that the format has no room for.
    """

    concept: str = ""
    kind: str = ""
    trigger: str = ""
    changes: str = ""
    leaves_alone: str = ""
    base: str = ""
    base_sha256: str = ""
    strength: float | None = None
    licence: str = ""
    permissions: Permissions = Permissions()
    air: str = ""
    author: str = ""
    contact: str = ""
    origins: tuple[str, ...] = ()
    real_person: bool | None = None
    living_artist: bool | None = None
    pictures: Pictures = Pictures()
    tested: Outcome | None = None

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if unknown := sorted(set(self.origins) - set(ORIGINS)):
            raise ValueError(f"the source of pictures is {', '.join(unknown)}; choose among {', '.join(ORIGINS)}")
        if self.base_sha256 and not _HASH.fullmatch(self.base_sha256):
            raise ValueError(f"base_sha256 is {self.base_sha256[:80]!r}; write the 64 hex digits of the file's sha256")
        if self.strength is not None and not 0 < abs(self.strength) <= STRONGEST:
            raise ValueError(f"the recommended strength is {self.strength:g}; write a number up to {STRONGEST:g}")
        if self.air and not is_air(self.air):
            raise ValueError(
                f"air is {self.air[:80]!r}; copy it from Civitai, such as urn:air:sdxl:lora:civitai:123456@789012"
            )
        for name in ("concept", "trigger", "changes", "leaves_alone", "base", "licence", "author", "contact"):
            longest = LONGEST_WORDS if name in ("changes", "leaves_alone") else LONGEST
            if len(text := getattr(self, name)) > longest:
                raise ValueError(f"{name} has {len(text)} characters; shorten it to {longest}")

    def __bool__(self) -> bool:
        """Return whether anything is said."""
        return self != Contract()

    def table(self) -> dict[str, Any]:
        """Return the contract as JSON values by the names of the format; what is not said is not in it."""
        found = {
            "concept": self.concept, "kind": self.kind, "trigger": self.trigger, "changes": self.changes,
            "leaves_alone": self.leaves_alone, "base": _told({"name": self.base, "sha256": self.base_sha256}),
            "strength": self.strength, "license": self.licence, "permissions": self.permissions.table(),
            "air": self.air, "author": self.author, "contact": self.contact,
            "shows": _told({"real_person": self.real_person, "living_artist": self.living_artist}),
            "data": _told({"from": list(self.origins), **self.pictures.table()}),
            "tested": self.tested.table() if self.tested else None,
        }  # fmt: skip
        return {"version": VERSION, **_told(found)}

    def to_text(self) -> str:
        """Return the canonical text: keys sorted, no spaces, characters beyond ASCII as they are."""
        return json.dumps(self.table(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def is_air(text: str) -> bool:
    """Return whether a text is an AIR, urn:air:{ecosystem}:{type}:{source}:{id}@{version}, as Civitai writes it."""
    return bool(_AIR.fullmatch(text))


def contract_of(metadata: Mapping[str, str]) -> Contract | None:
    """Return the contract in a header; None when there is none, or nothing in it can be read."""
    text = metadata.get(CONTRACT, "")
    return read(table_of(text)) or None if text and len(text) <= LARGEST else None


def read(table: Mapping[str, Any]) -> Contract:
    """Return what a table as `Contract.table` gives it says."""
    base, shows, data = (_inner(table, name) for name in ("base", "shows", "data"))
    strength, air, kind = _number(table.get("strength")), _line(table.get("air")), _line(table.get("kind"))
    origins = [each for each in data["from"][:_MOST] if isinstance(each, str)] if _has_list(data, "from") else []
    return Contract(
        concept=_line(table.get("concept")), kind=kind if kind in KINDS else "", trigger=_line(table.get("trigger")),
        changes=_words(table.get("changes")), leaves_alone=_words(table.get("leaves_alone")),
        base=_line(base.get("name")), base_sha256=_digest(base.get("sha256")),
        strength=strength if strength and abs(strength) <= STRONGEST else None,
        licence=_line(table.get("license")), permissions=permissions_of(table.get("permissions")),
        air=air if is_air(air) else "", author=_line(table.get("author")), contact=_line(table.get("contact")),
        origins=tuple(each for each in ORIGINS if each in origins), real_person=_bit(shows.get("real_person")),
        living_artist=_bit(shows.get("living_artist")), pictures=_pictures(data), tested=_tested(table.get("tested")),
    )  # fmt: skip


def _pictures(data: Mapping[str, Any]) -> Pictures:
    marks = _inner(data, "reserved").items()
    reserved = {_line(mark): count for mark, count in list(marks)[:_MOST] if _line(mark) and _is_count(count) and count}
    count = data.get("pictures")
    return Pictures(_digest(data.get("root")), count if _is_count(count) else None, reserved)


def _tested(told: Any) -> Outcome | None:
    """None for a test without a day, or of nobody knows what."""
    if not isinstance(told, Mapping):
        return None
    day, content = _line(told.get("date")), _digest(told.get("content"))
    seed, seeds, samples, near = (_count(told.get(name)) for name in ("seed", "seeds", "samples", "near"))
    if not (_DAY.fullmatch(day) and content) or seed is None or seeds is None:
        return None
    leakage = {
        _line(group): ratio
        for group, value in list(_inner(told, "leakage").items())[:_MOST]
        if _line(group) and (ratio := _number(value)) is not None and ratio >= 0
    }
    strength = _number(told.get("strength"))
    return Outcome(
        day, seed, seeds, content, leakage, samples=samples, near=near, strength=1.0 if strength is None else strength
    )


def _told(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None and value not in ("", {}, [])}


def _inner(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = table.get(name)
    return found if isinstance(found, Mapping) else {}


def _has_list(table: Mapping[str, Any], name: str) -> bool:
    return isinstance(table.get(name), list)


def on_one_line(text: str) -> str:
    """Return a text without line breaks and characters that would turn what stands around it."""
    return " ".join(_CONTROL.sub(" ", text).split())


def _line(value: Any, longest: int = LONGEST) -> str:
    return on_one_line(value[: 2 * longest])[:longest].strip() if isinstance(value, str) else ""


def _words(value: Any) -> str:
    return _line(value, LONGEST_WORDS)


def _digest(value: Any) -> str:
    text = value.lower().removeprefix("0x") if isinstance(value, str) and len(value) < 80 else ""
    return text if _HASH.fullmatch(text) else ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9:
        return None
    return float(value) if isfinite(value) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64


def _count(value: Any) -> int | None:
    """A seed is written as text: what reads JSON may have no numbers of 64 bits."""
    digits = isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit()
    found: Any = int(value) if digits else value
    return found if _is_count(found) else None


def _bit(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
