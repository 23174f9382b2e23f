"""Encodings that several ranks make together: each makes its share of what none has kept, and all get all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import comfy.model_management

from ....lora_core.ranks.group import Group
from ..host.ranks import on_every
from .encoding_cache import Encodings, kept

Make = Callable[[int, Any], Any]  # of a content, told its number
_ROUND = 8  # values of a rank that are sent at once; after each round they are kept, and a cancel is heeded


def encoded(encodings: Encodings, contents: Iterable[Any], make: Make, group: Group) -> Iterator[Any]:
    """Yield what `make` makes of each content, in their order; from the disk what was made before.

    Of several ranks the first alone keeps anything on disk. Raises ComfyUI's interrupt when one of them is cancelled.
    """
    if group.size > 1:
        yield from _shared(encodings, list(contents), make, group)
        return
    for index, content in enumerate(contents):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield encodings.of(content, lambda index=index, content=content: make(index, content))


def _shared(encodings: Encodings, contents: Sequence[Any], make: Make, group: Group) -> Iterator[Any]:
    had = {index: value for index, content in enumerate(contents) if (value := encodings.find(content)) is not None}
    makers = _makers(len(contents), group.agreed(list(had)))
    missing = list(makers)

    def value(index: int) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return had[index] if index in had else kept(make(index, contents[index]))

    made: dict[int, Any] = {}
    for index in range(len(contents)):
        if index in makers and index not in made:
            turn = missing[missing.index(index) :][: _ROUND * group.size]
            own = [[each for each in turn if makers[each] == rank] for rank in range(group.size)]
            parts = on_every(lambda own=own: [value(each) for each in own[group.rank]])
            made = {each: value for of, part in zip(own, parts, strict=True) for each, value in zip(of, part, strict=True)}
            for each in made.keys() - had.keys():
                encodings.keep(contents[each], made[each])
        yield made[index] if index in made else had[index]


def _makers(total: int, had: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return which rank tells each value that not all of them have: the first that has it, or else by turns."""
    turns, makers, known = count(), {}, [set(own) for own in had]
    for index in range(total):
        owners = [rank for rank, own in enumerate(known) if index in own]
        if len(owners) < len(had):
            makers[index] = owners[0] if owners else next(turns) % len(had)
    return makers
