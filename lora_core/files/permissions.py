"""Civitai's four questions to the author of a model, under the names that its API and side files of other programs
have: allowNoCredit, allowCommercialUse, allowDerivatives and allowDifferentLicense."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .rights import Rights, rights_of

_COMMERCE = {"Image": "sell pictures", "Rent": "run it as a service", "Sell": "sell it"}
USES = ("Image", "RentCivit", "Rent", "Sell")
_LONGEST = 240


@dataclass(frozen=True)
class Permissions:
    """None is a question without an answer; `commercial` are the allowed uses among USES, none for no commercial
    use."""

    no_credit: bool | None = None
    commercial: tuple[str, ...] | None = None
    derivatives: bool | None = None
    different_licence: bool | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.commercial or ()) - set(USES)):
            raise ValueError(f"commercial use {', '.join(unknown)} is unknown; Civitai knows {', '.join(USES)}")

    def table(self) -> dict[str, Any]:
        """Return the answers by Civitai's names."""
        answers = {
            "allowNoCredit": self.no_credit,
            "allowCommercialUse": None if self.commercial is None else list(self.commercial),
            "allowDerivatives": self.derivatives, "allowDifferentLicense": self.different_licence,
        }  # fmt: skip
        return {key: answer for key, answer in answers.items() if answer is not None}

    def rights(self) -> Rights:
        """Return what they come to; licences are not among them."""
        sells = None if self.commercial is None else bool(self.commercial)
        credit, same = (None if each is None else not each for each in (self.no_credit, self.different_licence))
        return Rights((), sells, self.derivatives, credit, same)

    def in_words(self) -> str:
        """Return the answers in a few words; "" when there is none."""
        credit, merges, same = self.no_credit, self.derivatives, self.different_licence
        told = [
            "credit the author" if credit is False else "no credit needed" if credit is True else "",
            self._commerce(),
            "no merges" if merges is False else "merges allowed" if merges is True else "",
            "merges under the same permissions" if same is False and merges is not False else "",
        ]
        return ", ".join(filter(None, told))

    def _commerce(self) -> str:
        if self.commercial is None:
            return ""
        allowed = [words for name, words in _COMMERCE.items() if any(use.startswith(name) for use in self.commercial)]
        return f"you may {', '.join(allowed)}" if allowed else "no commercial use"


def rights_to(licence: str, permissions: Permissions) -> Rights:
    """Return the rights to one work by both: a no of either is a no, and where one says nothing the other settles
    it."""
    return settled(rights_of(licence), permissions.rights())


def settled(own: Rights, answers: Rights) -> Rights:
    """Return what is left of the rights to one work under what is said of it elsewhere."""
    return Rights(
        own.licences, _right(own.commercial, answers.commercial), _right(own.derivatives, answers.derivatives),
        _duty(own.credit, answers.credit), _duty(own.same_licence, answers.same_licence),
    )  # fmt: skip


def _right(one: bool | None, other: bool | None) -> bool | None:
    return False if False in (one, other) else other if one is None else one


def _duty(one: bool | None, other: bool | None) -> bool | None:
    return True if True in (one, other) else other if one is None else one


def permissions_of(table: Any) -> Permissions:
    """Return the answers in a table of a stranger; whatever is no answer is none."""
    if not isinstance(table, Mapping):
        return Permissions()
    credit, merges, licence = (
        answer if isinstance(answer := table.get(f"allow{name}"), bool) else None
        for name in ("NoCredit", "Derivatives", "DifferentLicense")
    )
    return Permissions(credit, _uses(table.get("allowCommercialUse")), merges, licence)


def common(works: Iterable[Permissions]) -> Permissions:
    """Return what may be said of all of them together: a no of one is a no; a yes needs the yes of all."""
    works = list(works)
    return Permissions(
        _all(work.no_credit for work in works), _common_uses(works), _all(work.derivatives for work in works),
        _all(work.different_licence for work in works),
    )  # fmt: skip


def _common_uses(works: Sequence[Permissions]) -> tuple[str, ...] | None:
    answered = [work.commercial for work in works if work.commercial is not None]
    uses = tuple(use for use in USES if answered and all(use in each for each in answered))
    return uses if answered and (not uses or len(answered) == len(works)) else None


def _all(answers: Iterable[bool | None]) -> bool | None:
    given = set(answers)
    return False if False in given else None if None in given or not given else True


def _uses(value: Any) -> tuple[str, ...] | None:
    """A list, or a text of one word or of several in braces."""
    if isinstance(value, list):
        value = " ".join(each for each in value[:8] if isinstance(each, str))
    if not isinstance(value, str):
        return None
    return tuple(use for use in USES if re.search(rf"\b{use}\b", value[:_LONGEST]))
