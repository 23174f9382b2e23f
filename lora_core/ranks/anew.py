"""A part of a store that belongs to one start of the ranks.

torchrun keeps its store when it starts ranks again, and in it the addresses at which they could be reached before. A
rank that is quicker than another would take an old address for the new one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import uuid4

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_LOOK = 0.02  # seconds


def begun_anew(store: Store, rank: int, size: int, seconds: float) -> Store:
    """Return the part that the ranks of this start share, when all have come; all of them call it.

    Each greets with a word of its own. The first names the part and answers with the words that it has heard, until
    each of the others has found its own among them: old words cannot be meant. Raises TimeoutError after so many
    seconds.
    """
    word, end = uuid4().hex, time.monotonic() + seconds
    store.set(f"lora_loom/greeting {rank}", word)
    name = _named(store, size, word, end) if rank == 0 else _heard(store, rank, word, end)
    return dist.PrefixStore(name, store)  # pyright: ignore[reportPrivateImportUsage]  # as torch's own page has it


def _named(store: Store, size: int, name: str, end: float) -> str:
    others = range(1, size)
    greetings, agreed = ([f"lora_loom/{what} {rank}" for rank in others] for what in ("greeting", f"{name} heard by"))
    while not all(store.check([key]) for key in agreed):
        words = [_text(store, key) for key in greetings]
        store.set("lora_loom/answer", json.dumps({"name": name, "words": ["", *words]}))
        _wait(end, lambda: _missing([rank for rank, key in zip(others, agreed, strict=True) if not store.check([key])]))
    return name


def _heard(store: Store, rank: int, word: str, end: float) -> str:
    while True:
        answer = json.loads(_text(store, "lora_loom/answer") or "{}")
        if answer and answer["words"][rank : rank + 1] == [word]:
            store.set(f"lora_loom/{answer['name']} heard by {rank}", "")
            return answer["name"]
        _wait(end, lambda: _missing([0]))


def _text(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(end: float, missing: Callable[[], str]) -> None:
    if time.monotonic() > end:
        raise TimeoutError(missing())
    time.sleep(_LOOK)


def _missing(ranks: list[int]) -> str:
    named = " and ".join(f"rank {rank}" for rank in ranks)
    return f"{named} did not start in time; see what it has said, or give --timeout more seconds"
