"""Work that the ranks of a torchrun do side by side, where a cancel of one is a cancel of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_management
from comfy.model_management import InterruptProcessingException

from ....lora_core.ranks.group import ElsewhereError, here

Made = TypeVar("Made")


def on_every(work: Callable[[], Made]) -> list[Made]:
    """As `Group.every`; where one rank is cancelled inside, ComfyUI's interrupt is raised on all."""
    with cancelled_together():
        return here().every(work)


def on_all(work: Callable[[], Made]) -> Made:
    """Return what the work, in which no rank waits for another, makes here, when all have come to its end; nothing is
    sent but what failed."""
    made: list[Made] = []
    on_every(lambda: made.append(work()))
    return made[0]


@contextmanager
def cancelled_together() -> Iterator[None]:
    """Inside, a rank that others wait for and that is cancelled raises ComfyUI's interrupt on all of them."""
    try:
        yield
    except ElsewhereError as error:
        if InterruptProcessingException.__name__ in error.kinds:
            raise InterruptProcessingException from error
        raise


def by_first(make: Callable[[], Made]) -> Made:
    """Return on all ranks what the first makes, a value of `lora_core.trees`, while the others wait."""
    first: Callable[[], Any] = make if here().first else _nothing
    return on_every(first)[0]


@contextmanager
def put_off() -> Iterator[None]:
    """With several ranks, a cancel inside waits until all of them heed it, at the next step."""
    try:
        yield
    except InterruptProcessingException:
        if here().size == 1:
            raise
        comfy.model_management.interrupt_current_processing()


def _nothing() -> None:
    return None
