"""The contract that goes into a header: what a person says, completed by what base, data set and run tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..files.lineage import CONTENT, PARENTS, rights_in
from ..files.metadata import SETTINGS
from ..files.nested import table_of
from ..files.permissions import Permissions, common
from ..files.words import trigger_words
from .contract import LONGEST, ORIGINS, Contract, Pictures, contract_of, read
from .derived import completed, derived


def known_of(metadata: Mapping[str, str]) -> Contract:
    """Return what a header tells beside its contract: base and its hash, trigger, author, licence, and of what was
    trained root, number and marks of the pictures."""
    told = {
        "base": {"name": metadata.get("modelspec.base_model"), "sha256": metadata.get("ss_new_sd_model_hash")},
        "trigger": ", ".join(trigger_words(metadata)), "author": metadata.get("modelspec.author"),
        "license": metadata.get("modelspec.license"),
    }  # fmt: skip
    dataset = table_of(metadata.get(SETTINGS, "")).get("dataset") if PARENTS not in metadata else None
    return read({**told, "data": dataset if isinstance(dataset, dict) else {}})


def contract_text(given: Contract | None, metadata: Mapping[str, str], parents: Sequence[Contract | None] = ()) -> str:
    """Return the text of a contract, "" for none: where nobody gives one and none of what the LoRA was made of has one.

    `metadata` is the header it goes into, whose own contract, of a node before, fills what `given` leaves open. Of
    parents' duties nothing is taken back. A test stands only while its adapter is the one that is saved.
    """
    own = contract_of(metadata)
    if given is None and own is None and not any(parents):
        return ""
    found = completed(completed(given or Contract(), own or Contract()), known_of(metadata))
    if parents:
        found = bound(found, derived(parents), rights_in(metadata).licence)
    tested = own.tested if own and own.tested and own.tested.content == metadata.get(CONTENT) else None
    return replace(found, tested=tested).to_text()


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
