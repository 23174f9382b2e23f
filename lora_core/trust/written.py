"""The contract that goes into a header: what a person says, completed by what base, data set and run tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..files.label import Label
from ..files.lineage import CONTENT, CONTRACT, PARENTS, made_of, rights_in
from ..files.metadata import SETTINGS
from ..files.nested import table_of
from ..files.permissions import Permissions, common
from ..files.rights import intersection, rights_of
from ..files.words import trigger_words
from .contract import LONGEST, ORIGINS, Contract, Pictures, contract_of, read
from .derived import completed, derived

_FILLED = {
    "base": "base", "base_sha256": "base_sha256", "trigger": "trigger", "licence": "license", "author": "author",
    "permissions": "permissions", "contact": "contact", "origins": "source of the pictures", "pictures": "data set",
    "real_person": "real person", "living_artist": "living artist", "tested": "test",
}  # fmt: skip


def known_of(metadata: Mapping[str, str]) -> Contract:
    """Return what a header tells beside its contract: base and its hash, trigger, author, licence, and of what was
    trained root, number and marks of the pictures."""
    told = {
        "base": {"name": metadata.get("modelspec.base_model"), "sha256": metadata.get("ss_new_sd_model_hash")},
        "trigger": ", ".join(trigger_words(metadata)), "author": metadata.get("modelspec.author"),
        "license": metadata.get("modelspec.license"),
    }  # fmt: skip
    dataset = table_of(metadata.get(SETTINGS, "")).get("dataset") if PARENTS not in metadata else None
    dataset = dataset if isinstance(dataset, dict) else {}
    data = {"root": dataset.get("root"), "pictures": dataset.get("count"), "reserved": dataset.get("reserved")}
    return read({**told, "data": data})


def contract_text(given: Contract | None, metadata: Mapping[str, str], private: bool = False) -> str:
    """Return the text of a contract, "" for none: where nobody gives one, and neither the header nor any file that the
    LoRA was made of has one.

    `metadata` is the header it goes into, whose own contract, of a node before, fills what `given` leaves open. Of
    parents' duties nothing is taken back. A test stands only while its adapter is the one that is saved. When
    `private` the root of the data set is left out.
    """
    own = contract_of(metadata)
    parents = [_contract_in(each) for each in made_of(metadata)]
    if given is None and own is None and not any(parents):
        return ""
    found = completed(completed(given or Contract(), own or Contract()), known_of(metadata))
    if parents:
        licence = intersection([rights_of(found.licence), rights_in(metadata)]).licence
        found = bound(completed(found, derived(parents)), derived(parents), licence)
    tested = own.tested if own and own.tested and own.tested.content == metadata.get(CONTENT) else None
    pictures = replace(found.pictures, root="") if private else found.pictures
    return replace(found, tested=tested, pictures=pictures).to_text()


def with_contract(metadata: Mapping[str, str], given: Contract | None, label: Label) -> dict[str, str]:
    """Return the header that is saved: with the contract, and with what that says and the header did not under the
    names that other programs read. What the label says goes before."""
    own = Contract(licence=label.license.strip()[:LONGEST], author=label.author.strip()[:LONGEST])
    said = completed(own, given) if given else own if own and CONTRACT in metadata else None
    text = contract_text(said, metadata, label.redact)
    if not text:
        return dict(metadata)
    found = read(table_of(text))
    told = {"modelspec.license": found.licence, "modelspec.author": found.author}
    told |= {"modelspec.trigger_phrase": found.trigger}
    return {**{key: value for key, value in told.items() if value}, **metadata, CONTRACT: text}


def in_words(metadata: Mapping[str, str], given: Contract | None) -> list[str]:
    """Return a line on the contract of a header that is saved, which says what was filled in; none without one."""
    if not (found := contract_of(metadata)):
        return []
    nothing, said = Contract(), given or Contract()
    filled = [
        word for name, word in _FILLED.items()
        if getattr(found, name) != getattr(nothing, name) == getattr(said, name)
    ]  # fmt: skip
    return [f"contract written; filled in: {', '.join(filled)}" if filled else "contract written"]


def _contract_in(parent: Any) -> Contract | None:
    table = parent.get("contract") if isinstance(parent, Mapping) else None
    return read(table) or None if isinstance(table, Mapping) else None


def bound(contract: Contract, parents: Contract, licence: str = "") -> Contract:
    """Return a contract under what its parents' leave: their no is a no, and what warns of them warns of it. `licence`
    is an expression of all that apply."""
    marks = {**parents.pictures.reserved, **contract.pictures.reserved}
    return replace(
        contract, licence=licence if 0 < len(licence) <= LONGEST else contract.licence,
        permissions=_stricter(contract.permissions, parents.permissions),
        origins=tuple(each for each in ORIGINS if each in contract.origins + parents.origins),
        real_person=parents.real_person or contract.real_person,
        living_artist=parents.living_artist or contract.living_artist,
        pictures=Pictures(contract.pictures.root, contract.pictures.count, marks),
    )  # fmt: skip


def _stricter(own: Permissions, parents: Permissions) -> Permissions:
    """A no of either; else what one's own say."""
    both = common([own, parents])
    answers = {name: getattr(both, name) for name in vars(both) if getattr(both, name) in (False, ())}
    if own.commercial is not None and parents.commercial is not None:
        answers["commercial"] = both.commercial
    return replace(own, **answers)
