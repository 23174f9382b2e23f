"""Makes one step of what the ranks have found of it: one sum over all of them, of the gradient and what is told of it.

The sum holds, behind the flat gradient, each picture's loss at its place in the step, each micro-batch's change of what
is preserved, how many ranks have failed, and how many were asked to stop: so all ranks go on from equal numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..ranks.group import Group
from .config import TrainConfig
from .pairs import grad_of
from .steps import MicroBatch

_FAILED, _ASKED = -2, -1  # places behind all else


def check(group: Group, config: TrainConfig, option: Callable[[int], str] = lambda _: "") -> None:
    """Raise ValueError where some ranks would never have a picture. `option` names where a `batch_size` is set."""
    pictures = config.batch_size * config.accumulation
    if pictures < group.size:
        least = -(-group.size // config.accumulation)
        raise ValueError(
            f"a step has {pictures} pictures (batch_size {config.batch_size} x accumulation {config.accumulation}), "
            f"which do not go round among {group.size} ranks; set batch_size to {least} or more{option(least)}, or "
            f"start {pictures} ranks"
        )


def reduced(
    group: Group, flat: Tensor, config: TrainConfig, work: Callable[[], list[MicroBatch]],
    asked: Callable[[], bool] = bool,
) -> tuple[list[MicroBatch], bool]:  # fmt: skip
    """Return the micro-batches whole, and whether any rank was asked to stop; the gradient of `flat` is that of all.

    The work adds this rank's share to the gradient, whole or not at all. When it raises on a rank, that goes on there,
    and all others raise ElsewhereError.
    """
    if group.size == 1:
        return work(), False
    tail = flat.new_zeros(config.batch_size * config.accumulation + config.accumulation + 2)
    try:
        parts = work()
    except BaseException as error:  # none waits for a rank that does not come
        tail[_FAILED] = 1
        _sum(group, flat, tail)
        group.every(partial(_fail, error))
        raise
    _put(tail, config, parts)
    tail[_ASKED] = asked()
    _sum(group, flat, tail)
    failed, stop = tail[_FAILED:].tolist()
    if failed:
        group.every(bool)
    return _whole(tail, config, parts), bool(stop)


def _sum(group: Group, flat: Tensor, tail: Tensor) -> None:
    grad = grad_of(flat)
    found = group.sum_(torch.cat([grad, tail])).split([len(grad), len(tail)])
    grad.copy_(found[0])
    tail.copy_(found[1])


def _put(tail: Tensor, config: TrainConfig, parts: Sequence[MicroBatch]) -> None:
    """Put what this rank has found at its places."""
    for number, part in enumerate(parts):
        at, count = number * config.batch_size + part.first, len(part.losses)
        tail[at : at + count] = part.losses
        if part.change is not None:
            tail[_changes(config) + number] = part.change * count / len(part.indices)


def _whole(tail: Tensor, config: TrainConfig, parts: Sequence[MicroBatch]) -> list[MicroBatch]:
    changes = tail[_changes(config) :]
    pieces = [tail[number * config.batch_size :][: len(part.indices)] for number, part in enumerate(parts)]
    return [
        replace(part, losses=losses, change=None if part.change is None else change)
        for part, losses, change in zip(parts, pieces, changes, strict=False)
    ]


def _changes(config: TrainConfig) -> int:
    return config.batch_size * config.accumulation


def _fail(error: BaseException) -> None:
    raise error
