"""The processes that torchrun starts side by side: which one this is, its device, and what each of them runs.

Every rank executes the nodes that split their work, all in one order; then the first alone executes the outputs, with
what came of those nodes in the executor's cache. The others write nothing, and tell nothing but errors.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from graphlib import TopologicalSorter
from os import environ

from .document import Prompt
from .run import FailedError

SPLIT = ("LoraLoom_TrainLora", "LoraLoom_MergeLora", "LoraLoom_ExtractLora")  # classes that split their work
_WRITER = "LoraLoom_SaveLora"
_DEVICES = ("--cpu", "--cuda-device", "--default-device", "--directml", "--oneapi-device-selector")
_CACHES = ("--cache-classic", "--cache-ram", "--cache-lru", "--cache-none")
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # its name, by sys.platform


@dataclass(frozen=True)
class Rank:
    """One process of several, counted from 0; `local` among the `beside` of its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()}" if self.size > 1 else ""

    def flags(self, given: Sequence[str]) -> Iterator[str]:
        """ComfyUI's flags beside those that are given: a device of its own, and a cache that keeps what came of the
        nodes before. Raises ValueError where there are fewer devices than ranks."""
        if self.size > 1 and not _any(given, _CACHES):
            yield "--cache-classic"
        if self.size > 1 and not _any(given, _DEVICES) and (device := self._device()):
            yield from ("--cuda-device", device)
        if not self.first and not _any(given, ("--verbose",)):
            yield from ("--verbose", "ERROR")

    def _device(self) -> str:
        """Return the one of LOCAL_RANK; empty where the launcher has shown this process only one."""
        shown = [each for each in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
        if self.local >= len(shown) > 1:
            raise ValueError(f"{self.beside} ranks on this machine, and {len(shown)} devices; start as many ranks")
        return shown[self.local] if len(shown) > 1 else "" if shown else str(self.local)


def this() -> Rank:
    """Return what torchrun, or another launcher that sets its variables, says of this process; else the only one."""
    size = int(environ.get("WORLD_SIZE", 1))
    if size == 1:
        return Rank()
    local, beside = environ.get("LOCAL_RANK", 0), environ.get("LOCAL_WORLD_SIZE", 1)
    return Rank(int(environ.get("RANK", 0)), size, int(local), int(beside))


@contextmanager
def joined(rank: Rank, cuda: bool, seconds: float, prompt: Prompt) -> Iterator[None]:
    """Inside, `torch.distributed` is set up and all ranks have the same prompt; what one waits for longer than so many
    seconds is an error. Raises ValueError for other prompts. Alone, nothing is done."""
    if rank.size == 1:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from ..lora_core.ranks.anew import begun_anew
    from ..lora_core.ranks.lost import leave, meeting

    _stay_inside(rank)
    environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # or NCCL ends the process before it can say who is lost
    backend = "cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo"
    with _lost():
        found, number, size = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
        store = begun_anew(found, number, size, seconds)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timedelta(seconds=seconds))
    try:
        with _lost():
            _compare(rank, prompt)
        yield
        with _lost(), meeting():
            dist.barrier()
    except BaseException as error:
        leave(error)
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _lost() -> Iterator[None]:
    """torch's own words for a rank that does not answer are kept, as they name its address."""
    try:
        yield
    except (RuntimeError, TimeoutError) as error:
        raise FailedError(f"the ranks have lost each other: {error}") from error


def _stay_inside(rank: Rank) -> None:
    """Where all ranks are on this machine, gloo and NCCL listen to it alone, unless the launcher says otherwise."""
    if rank.beside == rank.size and sys.platform in _LOOPBACK:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environ.setdefault(name, _LOOPBACK[sys.platform])


def _compare(rank: Rank, prompt: Prompt) -> None:
    from ..lora_core.ranks.group import here

    told = here().agreed({"name": rank.name, "prompt": _digest(prompt)})
    if others := [each["name"] for each in told if each["prompt"] != told[0]["prompt"]]:
        raise ValueError(f"{', '.join(others)} got another workflow or other settings than {told[0]['name']}")


def split_nodes(prompt: Prompt, outputs: Sequence[str]) -> list[str]:
    """Return the nodes that split their work and that the outputs need, each after those that it needs itself; the same
    order for the same prompt. Raises ValueError for a circle, and where one needs a node that writes a file, which
    every rank would."""
    links = {key: _links(node) for key, node in prompt.items()}
    order, needed = TopologicalSorter(links).static_order(), _needed(links, outputs)
    found = [key for key in order if key in needed and prompt.get(key, {}).get("class_type") in SPLIT]
    before = _needed(links, found)
    if writers := sorted(key for key in before if prompt.get(key, {}).get("class_type") == _WRITER):
        raise ValueError(
            f"what several ranks work on needs what Save LoRA (node {', '.join(writers)}) writes, and each would write "
            "it; make two workflows of it, and run one after the other"
        )
    return found


def _needed(links: Mapping[str, Sequence[str]], nodes: Sequence[str]) -> set[str]:
    """The nodes, and all that they need."""
    needed, waiting = set(nodes), list(nodes)
    while waiting:
        more = set(links.get(waiting.pop(), ())) - needed
        needed |= more
        waiting += more
    return needed


def hush() -> None:
    """Let what other packs print go nowhere."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end


def _links(node: dict) -> list[str]:
    return [str(value[0]) for value in node["inputs"].values() if isinstance(value, list) and len(value) == 2]


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()


def _any(given: Sequence[str], flags: Sequence[str]) -> bool:
    return any(flag.partition("=")[0] in flags for flag in given)
