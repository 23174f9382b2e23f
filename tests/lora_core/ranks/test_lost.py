"""A rank that waits in vain says who did not come, on which host and after which step."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from harness.ranks import on_ranks
from lora_loom.lora_core.ranks import lost
from lora_loom.lora_core.ranks.anew import begun_anew
from lora_loom.lora_core.ranks.group import here

HOST = socket.gethostname()
CURE = "start all ranks again, and the run goes on from where it was saved last"


def steps(group, count: int) -> None:
    for step in range(1, count + 1):
        group.sum_(torch.ones(3))
        lost.reached(step)


def waiting_for(what: str) -> str:
    """What the first rank says when another does not come to step 3."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)  # as at the start
    group = here()
    steps(group, 2)
    if group.rank == group.size - 1:
        return gone(what)
    try:
        group.agreed("here")
    except lost.LostError as error:
        lost.leave(error)
        return str(error)
    return ""


def gone(what: str) -> str:
    if what == "slow":
        time.sleep(3)
    elif what == "fails":
        lost.leave(ValueError("no picture"))
    return "gone"  # and the group is left


def sentences(tmp_path: Path, size: int, what: str) -> list[str]:
    (tmp_path / what).mkdir()
    return on_ranks(size, waiting_for, tmp_path / what, what)


def test_one_that_is_slow_or_fails_is_named(tmp_path):
    slow, _ = sentences(tmp_path, 2, "slow")
    assert slow.startswith(f"rank 1 on {HOST} (last step 2) has not come for 1 s; this rank has finished step 2; if")
    assert "--timeout" in slow and CURE in slow
    failed, same, _ = sentences(tmp_path, 3, "fails")
    assert failed.startswith(f"rank 2 on {HOST} (last step 2, said: no picture) has ended; this rank has finished")
    assert CURE in failed and "--timeout" not in failed
    assert same.startswith(f"rank 2 on {HOST} (last step 2, said: no picture) has ended; ")


def starts(again: int) -> list[str]:
    """What a rank reads of another in a store that each start shares anew, of ranks that come in another order."""
    store, rank, found = dist.distributed_c10d._get_default_store(), dist.get_rank(), []
    for number in range(again):
        time.sleep(0.1 * ((number + rank) % 3))
        own = begun_anew(store, rank, 3, 20)
        own.set(f"address {rank}", f"{number}")
        found += [own.get(f"address {other}").decode() for other in range(3)]
    return found


def test_addresses_of_an_earlier_start_are_not_found(tmp_path):
    (tmp_path / "starts").mkdir()
    for found in on_ranks(3, starts, tmp_path / "starts", 4):
        assert found == ["0"] * 3 + ["1"] * 3 + ["2"] * 3 + ["3"] * 3


def alone_in_it() -> str:
    try:
        begun_anew(dist.distributed_c10d._get_default_store(), dist.get_rank(), 3, 0.3)
    except TimeoutError as error:
        return str(error)
    return ""


def test_one_that_never_starts_is_named(tmp_path):
    (tmp_path / "late").mkdir()
    first, second = on_ranks(2, alone_in_it, tmp_path / "late")
    assert first.startswith("rank 2 did not start in time") and second == ""
