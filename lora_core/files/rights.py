"""Tells what licences allow, and what is left when their works are merged. A courtesy to authors, no legal advice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..stored import as_dict, stored

_CREATIVE_COMMONS = re.compile(
    r"(?:^(?=by(?:$|[- ](?:nc|nd|sa|\d)))|\bcc[- ]|creativecommons\.org/licenses/)by((?:[- ](?:nc|nd|sa))*)\b"
)
_IN_WORDS = {  # of Creative Commons, which has letters for them
    re.compile(r"(?:creative commons )?attribution"): "by",
    re.compile(r"non[- ]?commercial"): "nc",
    re.compile(r"no[- ]?deriv(?:ative|ate)?s?(?: works)?"): "nd",
    re.compile(r"share[- ]?alike"): "sa",
}
_KNOWN = {  # commercial use, derived works, credit, the same licence again
    re.compile(r"cc[- ]?0|public[ -]?domain|unlicense|wtfpl"): (True, True, False, False),
    re.compile(r"all rights reserved|proprietary"): (False, False, True, None),
    re.compile(r"non[- ]?commercial|research[- ]only"): (False, True, True, True),
    re.compile(r"no[- ]?deriv|no[- ]?merg"): (None, False, None, None),
    re.compile(r"fair[- ]ai"): (True, True, False, True),
    re.compile(r"\b[al]?gpl\b|gnu"): (True, True, True, True),
    re.compile(r"\bmit\b|apache|bsd|\bisc\b"): (True, True, True, False),
    re.compile(r"open[- ]?rail"): (True, True, False, True),
}
UNKNOWN = "LicenseRef-unknown"


@stored("licences commercial derivatives credit same_licence")
@dataclass(frozen=True)
class Rights:
    """None is unknown. `licences` are all that apply, each once, as their authors spell them."""

    licences: tuple[str, ...] = ()
    commercial: bool | None = None
    derivatives: bool | None = None
    credit: bool | None = None
    same_licence: bool | None = None

    @property
    def licence(self) -> str:
        """Return an SPDX expression: all of them apply. Empty when none is known."""
        known = [f"({text})" if " OR " in text else text for text in self.licences if text != UNKNOWN]
        return " AND ".join([*known, *({UNKNOWN} & set(self.licences))]) if known else ""

    @property
    def known(self) -> bool:
        """Return whether anything is."""
        return bool(self.licence) or any(
            bit is not None for bit in (self.commercial, self.derivatives, self.credit, self.same_licence)
        )

    def to_json(self) -> str:
        words, bits = {True: "yes", False: "no", None: "unknown"}, as_dict(self)
        del bits["licences"]
        return json.dumps({key: words[bit] for key, bit in bits.items()}, sort_keys=True)


def rights_of(licence: str) -> Rights:
    """Return the rights to one work, by the name of its licence or an expression of several that apply ("A AND B")."""
    text = licence.strip().strip("()")
    if " AND " in text:
        return intersection(map(rights_of, text.split(" AND ")))
    if text in ("", UNKNOWN):
        return Rights((UNKNOWN,))
    low = text.casefold().replace("_", "-")
    letters = low
    for words, letter in _IN_WORDS.items():
        letters = words.sub(letter, letters)
    if found := _CREATIVE_COMMONS.search(letters):
        terms = found[1]
        return Rights((text,), "nc" not in terms, "nd" not in terms, True, "sa" in terms)
    return replace(
        intersection(Rights((), *bits) for pattern, bits in _KNOWN.items() if pattern.search(low)), licences=(text,)
    )


def intersection(works: Iterable[Rights]) -> Rights:
    """Return what one may still do with all works in one: a right that one of them withholds is gone, a duty that one
    of them has stays, and one that nothing is known of makes the answer unknown where no other settles it."""
    works = list(works)
    licences = tuple(dict.fromkeys(text for work in works for text in work.licences))
    return Rights(
        licences, _all(work.commercial for work in works), _all(work.derivatives for work in works),
        _any(work.credit for work in works), _any(work.same_licence for work in works),
    )  # fmt: skip


def _all(values: Iterable[bool | None]) -> bool | None:
    values = set(values)
    return False if False in values else None if None in values or not values else True


def _any(values: Iterable[bool | None]) -> bool | None:
    opposite = _all(None if value is None else not value for value in values)
    return None if opposite is None else not opposite
