"""Says of the contracts of a stack, in one line per row at most, what a person has to know before making a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..files.rights import Rights, intersection
from .contract import Contract


@dataclass(frozen=True)
class Base:
    """A base model: its file's name, and its sha256 where that is known, else ""."""

    name: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Signed:
    """A row of a stack: its name, the larger of its strengths, its contract if it has one, and the rights to it."""

    name: str
    strength: float
    contract: Contract | None = None
    rights: Rights = Rights()


def lines(rows: Sequence[Signed], base: Base) -> list[str]:
    """Return one line for each row that there is something to say of, then what is true of all together."""
    told = [_line(row, rows[:number], base) for number, row in enumerate(rows)]
    return [*filter(None, told), *_together(rows), *_without(rows)]


def _line(row: Signed, before: Sequence[Signed], base: Base) -> str:
    if row.contract is None:
        return ""
    found = [*_base(row.contract, base), *_strength(row.contract, row.strength), *_rivals(row.contract, before)]
    return f"{row.name}: {'; '.join(found)}" if found else ""


def _base(contract: Contract, base: Base) -> list[str]:
    if contract.base_sha256 and base.sha256:
        differs = contract.base_sha256 != base.sha256
    else:
        differs = bool(contract.base and base.name) and contract.base.casefold() != base.name.casefold()
    made_for = contract.base or f"the model {contract.base_sha256[:10]}"
    return [f"made for {made_for}, used on {base.name or base.sha256[:10]}"] if differs else []


def _strength(contract: Contract, strength: float) -> list[str]:
    if contract.strength is None or abs(strength) <= abs(contract.strength) + 1e-9:
        return []
    return [f"strength {strength:g} is above the recommended {contract.strength:g}"]


def _rivals(contract: Contract, before: Sequence[Signed]) -> list[str]:
    """Say which rows before it own the same concept or trigger."""
    found = []
    for other in before:
        if other.contract is None:
            continue
        shared = _words(contract.trigger) & _words(other.contract.trigger)
        if contract.concept and contract.concept.casefold() == other.contract.concept.casefold():
            found.append(f"the same concept as {other.name} ({contract.concept}): lower one of them")
        elif shared:
            found.append(f"the same trigger as {other.name} ({min(shared)}): both answer to it")
    return found


def _words(trigger: str) -> set[str]:
    return {word.strip().casefold() for word in trigger.split(",") if word.strip()}


def _together(rows: Sequence[Signed]) -> list[str]:
    """Say what all rows together leave of the rights to a picture, and which row takes one away."""
    found = intersection(row.rights for row in rows)
    said = []
    if found.commercial is False:
        said.append(f"no commercial use ({_names(row for row in rows if row.rights.commercial is False)})")
    shares = [row for row in rows if row.rights.same_licence and row.rights.licences]
    if len({row.rights.licences for row in shares}) > 1:
        said.append(f"licences that exclude each other ({_names(shares)} ask for their own licence on what is made)")
    if found.credit:
        said.append("credit " + _names(row for row in rows if row.rights.credit))
    return [f"pictures of this stack: {', '.join(said)}"] if said else []


def _without(rows: Sequence[Signed]) -> list[str]:
    """Quiet where no row has one, as is still usual."""
    bare = [row for row in rows if row.contract is None]
    bare = bare if len(bare) < len(rows) else []
    return [f"no contract: {_names(bare)}"] if bare else []


def _names(rows: Iterable[Signed]) -> str:
    names = [row.name for row in rows]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
