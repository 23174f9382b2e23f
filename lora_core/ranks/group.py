"""The ranks of a run: processes that torchrun, or whoever set up `torch.distributed`, has started side by side.

They exchange tensors and JSON alone. All ranks make the same calls in the same order; each call waits for all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from .exchange import packed, spread, unpacked

Made = TypeVar("Made")


class ElsewhereError(RuntimeError):
    """Says which other ranks failed, on which hosts, and with what words; `kinds` are the names of their errors."""

    def __init__(self, text: str, kinds: Sequence[str] = ()):
        super().__init__(text)
        self.kinds = frozenset(kinds)


@dataclass(frozen=True)
class Group:
    """One rank among `size`, counted from 0. Alone, every call does what its words say at once, and nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Return whether this is the rank that writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of so many things are this rank's: one after the other, as many as others have or one more."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Put the sum over all ranks in the place of each rank's tensor, the same bytes on all of them."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def every(self, work: Callable[[], Made]) -> list[Made]:
        """Return what the work gives on each rank, by rank: values of `lora_core.trees`, tensors on the CPU.

        When it raises on a rank, that goes on there, and all others raise ElsewhereError with its words.
        """
        if self.size == 1:
            return [work()]
        try:
            own = packed({"made": work()})
        except BaseException as error:  # none waits for a rank that does not come
            spread(packed({"failed": said(error), "host": socket.gethostname()}))
            raise
        found = [unpacked(data) for data in spread(own)]
        raise_failed(found)
        return [each["made"] for each in found]

    def agreed(self, value: Any) -> list[Any]:
        """Return the JSON of every rank, by rank."""
        return self.every(lambda: value)

    def shared(self, make: Callable[[], Made]) -> Made:
        """Return what the first rank makes, to all; on the others `make` is not called."""
        return self.every(make if self.first else _nothing)[0]  # pyright: ignore[reportReturnType]  # of rank 0

    def gathered(self, count: int, make: Callable[[range], list[Made]]) -> list[Made]:
        """Return so many values in order, of which each rank makes those of its share."""
        parts = self.every(lambda: make(self.share(count)))
        return [each for part in parts for each in part]


ALONE = Group()


def here() -> Group:
    """Return the group of this process: ALONE where torch.distributed has not been set up, or for one rank.

    It carries what lies in RAM and, where tensors on a GPU are summed, what lies there: "cpu:gloo,cuda:nccl" does both.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Group(dist.get_rank(), dist.get_world_size())


def said(error: BaseException) -> str:
    """Return an error in words that stand alone."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def raise_failed(found: Sequence[dict[str, Any]]) -> None:
    """Raise ElsewhereError when any rank says that it failed."""
    failed = {rank: own for rank, own in enumerate(found) if "failed" in own}
    if failed:
        told = "; ".join(f"rank {rank} ({own['host']}): {own['failed']}" for rank, own in failed.items())
        kinds = [own["failed"].partition(":")[0] for own in failed.values()]
        raise ElsewhereError(f"another rank could not go on. {told}", kinds)


def _nothing() -> None:
    return None
