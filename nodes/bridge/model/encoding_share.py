"""Encodings that several ranks make together: each makes its share of what none has kept, and all get all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
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
    missing, made = list(makers), {}

    def value_of(index: int) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return had[index] if index in had else kept(make(index, contents[index]))

    for index in range(len(contents)):
        if index in makers and index not in made:
            turn = {each: makers[each] for each in missing[: _ROUND * group.size]}
            del missing[: len(turn)]
            made = _told(turn, value_of, group)
            for each in made.keys() - had.keys():
                encodings.keep(contents[each], made[each])
        yield made[index] if index in made else had[index]


def _told(turn: Mapping[int, int], value_of: Callable[[int], Any], group: Group) -> dict[int, Any]:
    """Return the values of a turn by their numbers, each from the rank that is to tell it."""
    own = [[index for index, rank in turn.items() if rank == each] for each in range(group.size)]
    parts = on_every(lambda: [value_of(index) for index in own[group.rank]])
    return dict(zip(chain(*own), chain(*parts), strict=True))


def _makers(total: int, had: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return which rank tells each value that not all of them have: the first that has it, or else by turns."""
    turns, makers, known = count(), {}, [set(own) for own in had]
    for index in range(total):
        owners = [rank for rank, own in enumerate(known) if index in own]
        if len(owners) < len(had):
            makers[index] = owners[0] if owners else next(turns) % len(had)
    return makers
