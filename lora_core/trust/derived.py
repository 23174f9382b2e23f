"""The contract of a LoRA that is made of others, and the rights to it.

What a contract claims of the file it is in, of its effect or of its tests, is not true of another file and is left
out: concept, kind, trigger, scope, recommended strength, AIR, data set root, tests. What warns or binds stays true of
all that is made of it: licence, permissions, author, contact, where pictures are from, who is shown, marks of pictures
that are not to be learned from. The base stays where all have the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..files.permissions import common
from ..files.words import unique
from .contract import LONGEST, ORIGINS, Contract, Pictures


def derived(parents: Sequence[Contract | None]) -> Contract:
    """Return what stays true of a LoRA that is made of these; None is a parent without a contract."""
    own = [each or Contract() for each in parents]
    marks: Counter[str] = Counter()
    for each in own:
        marks.update(each.pictures.reserved)
    shown = [[getattr(each, name) for each in own] for name in ("real_person", "living_artist")]
    base = {(each.base, each.base_sha256) for each in own}
    name, digest = base.pop() if len(base) == 1 else ("", "")
    return Contract(
        base=name, base_sha256=digest, permissions=common(each.permissions for each in own),
        author=_joined(each.author for each in own), contact=_joined(each.contact for each in own),
        origins=tuple(origin for origin in ORIGINS if any(origin in each.origins for each in own)),
        real_person=_any(shown[0]), living_artist=_any(shown[1]), pictures=Pictures(reserved=dict(marks)),
    )  # fmt: skip


def completed(given: Contract, known: Contract) -> Contract:
    """Return what a person says, completed by what is known where they said nothing."""
    empty = Contract()
    missing = [name for name in vars(empty) if getattr(given, name) == getattr(empty, name)]
    return replace(given, **{name: getattr(known, name) for name in missing})


def _joined(texts: Iterable[str]) -> str:
    """All of them, as many as there is room for."""
    found = ""
    for text in unique(text for text in texts):
        longer = f"{found}, {text}" if found else text
        if len(longer) > LONGEST:
            break
        found = longer
    return found


def _any(answers: Sequence[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers or not answers else False
