"""One rank of `dev.py bench scaling`: times compute, all-reduces and whole steps, alone and beside the other ranks.

A step is that of Train LoRA: the loss forward and backward on a share of the batch, one all-reduce of the flat
gradient, one update. The first rank prints what it measured.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import _comfy  # first: makes comfy importable
import tiny
import torch
import torch.distributed as dist
from _gloo import Watch, join
from harness.session import training_session
from lora_loom.lora_core.swap import swapped
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.pairs import grad_of
from lora_loom.lora_core.training.sample import Sample
from lora_loom.lora_core.training.state import TrainState
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.tasks import add_gradient
from lora_loom.lora_core.training.trainer import make_optimizer, train
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser

NETWORKS = {"one level": tiny.FAMILIES["sd15"], "two levels": _comfy.SD_TWO_LEVELS}
SIDE, BUCKETS, DRAWN = 8, 4, 2**20


class Worker:
    """A network in its training session, and this rank's part in steps of a group."""

    def __init__(self, network: str, rank: int):
        with torch.inference_mode():
            self.model = _comfy.build(NETWORKS[network], torch.float32)
        self.layers = select(self.model.model.diffusion_model, LoraConfig(rank, rank))
        self.factors = Factors(self.layers, rank, rank, torch.Generator().manual_seed(0), device=torch.device("cpu"))
        self.optimizer = make_optimizer(self.factors, TrainConfig())
        self.denoiser = ComfyDenoiser(self.model)
        self.grad = grad_of(self.factors.flat)
        text, self.latent = torch.randn(1, 77, 768), torch.randn(4, SIDE, SIDE)
        self.condition = self.denoiser.condition([[text, {}]], self.latent)
        self.done: Callable[[str], None] = lambda _: None

    def enter(self, undo: ExitStack) -> None:
        undo.enter_context(training_session(self.model, checkpointing=False))
        undo.enter_context(attached(self.factors.branches))
        for name, layer in self.layers.items():
            undo.callback(layer.register_full_backward_hook(lambda *_, name=name: self.done(name)).remove)

    def compute(self, share: int) -> None:
        if share:
            x0 = self.latent.expand(share, -1, -1, -1)
            sigma = self.denoiser.sigma(torch.full((share,), 0.5))
            config, conditions = TrainConfig(batch_size=share), [self.condition] * share
            add_gradient(config, self.factors, self.denoiser, x0, torch.randn_like(x0), sigma, conditions, [])

    def update(self) -> None:
        norm = float(self.grad.norm())
        self.grad.mul_(min(1.0, 1.0 / max(norm, 1e-9)))
        self.optimizer.step()
        self.grad.zero_()

    def step(self, share: int, group: Any, overlap: bool) -> None:
        parts = _Buckets(self, group) if overlap else None
        self.compute(share)
        if parts:
            parts.wait()
        else:
            dist.all_reduce(self.grad, group=group)
        self.update()

    def slices(self) -> list[tuple[set[str], torch.Tensor]]:
        """Return parts of the gradient, that which a backward pass finds first at the front, with their layers."""
        names = list(self.layers)
        cuts = [len(names) * i // BUCKETS for i in range(BUCKETS + 1)]
        first = [self.factors.matrices[names[cut], 0].storage_offset() for cut in cuts[:-1]] + [len(self.grad)]
        found = [
            (set(names[a:b]), self.grad[p:q]) for a, b, p, q in zip(cuts, cuts[1:], first, first[1:], strict=False)
        ]
        return found[::-1]


class _Buckets:
    """Sums each part of the gradient as soon as its layers have been passed; every rank in the same order."""

    def __init__(self, worker: Worker, group: Any):
        self.waiting, self.group, self.begun, self.when = worker.slices(), group, [], []
        worker.done = self.passed
        self.worker = worker

    def passed(self, name: str) -> None:
        for names, _ in self.waiting:
            names.discard(name)
        while self.waiting and not self.waiting[0][0]:
            self.begin()

    def begin(self) -> None:
        part = self.waiting.pop(0)[1]
        self.when.append(time.perf_counter())
        if self.group is not None:
            self.begun.append(dist.all_reduce(part, group=self.group, async_op=True))

    def wait(self) -> None:
        while self.waiting:
            self.begin()
        self.worker.done = lambda _: None
        for each in self.begun:
            each.wait()


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def ready(worker: Worker, share: int) -> list[float]:
    """Return when, as parts of the time that a pass takes, each bucket has its gradient."""
    parts, started = _Buckets(worker, None), time.perf_counter()
    worker.compute(share)
    parts.wait()
    whole = time.perf_counter() - started
    return [(when - started) / whole for when in parts.when]


def watched(work: Callable[[], list[float]], mine: bool) -> dict[str, Any]:
    """What `work` measures on this rank, the cores that this rank used for it, and those that other programs used; all
    ranks together, the work being that of those to whom it is `mine`."""
    dist.barrier()
    before, wall, cpu = Watch.begin(), time.perf_counter(), time.process_time()
    seconds = work() if mine else []
    used = (time.process_time() - cpu) / (time.perf_counter() - wall)
    dist.barrier()
    return {"seconds": seconds, "cores": used, "others": before.others()}


def measure(job: Any, worker: Worker) -> dict[str, Any]:
    rank, rounds = dist.get_rank(), job["rounds"]
    groups = {size: dist.new_group(list(range(size))) for size in job["sizes"]}
    first = rank == 0
    for _ in range(2):
        worker.compute(2)
        worker.update()
    found: dict[str, Any] = {"numbers": worker.factors.flat.numel(), "layers": len(worker.layers), "drawn": DRAWN}
    found["compute"] = {
        m: watched(lambda m=m: timed(lambda: worker.compute(m), rounds), first) for m in range(1, job["most"] + 1)
    }
    found["update"] = watched(lambda: timed(worker.update, rounds), first)
    found["draw"] = watched(lambda: timed(lambda: torch.randn(DRAWN), rounds), first)
    found["ready"] = [ready(worker, 1) for _ in range(5)]
    found["crowded"] = {size: watched(lambda: timed(lambda: worker.compute(1), rounds), rank < size) for size in groups}
    found["reduce"] = {
        size: {numbers: _reduced(numbers, group, rounds, rank < size) for numbers in job["numbers"]}
        for size, group in groups.items()
    }
    found["steps"] = [{"case": case, **_steps(worker, case, groups, rounds)} for case in job["cases"]]
    return found


def _reduced(numbers: int, group: Any, rounds: int, mine: bool) -> dict[str, Any]:
    data = torch.zeros(numbers)
    return watched(lambda: timed(lambda: dist.all_reduce(data, group=group), 2 * rounds)[2:], mine)


def _steps(worker: Worker, case: Any, groups: dict[int, Any], rounds: int) -> dict[str, Any]:
    shares: Sequence[int] = case["shares"]
    rank, group = dist.get_rank(), groups[len(shares)]
    mine = rank < len(shares)

    def work() -> list[float]:
        return timed(lambda: worker.step(shares[rank], group, case["overlap"]), rounds + 1)[1:]

    return watched(work, mine)


def trained(job: Any, worker: Worker) -> dict[str, Any]:
    """Train LoRA's own loop on all ranks of the group: seconds of its steps, and of the sum within, what it waits for
    other ranks included; bytes that are summed."""
    batch, rounds = job["batch"], job["rounds"]
    config = TrainConfig(steps=1_000_000, batch_size=batch, caption_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    batches = Batches([tuple(worker.latent.shape)] * 2 * batch, batch, 1, generator)
    state = TrainState(worker.factors, batches, generator, make_optimizer(worker.factors, config))
    samples = [Sample(worker.latent, worker.condition, None)] * 2 * batch
    steps, sums = train(config, state, worker.denoiser, samples), _Sums()
    with swapped([(vars(dist), "all_reduce", sums)]):
        next(steps)
        sums.seconds.clear()
        found = watched(lambda: timed(lambda: next(steps), rounds), True)
        of_steps = sums.seconds[: rounds if dist.get_world_size() > 1 else 0]
    return {**found, "sums": of_steps, "bytes": sums.bytes if of_steps else 0, "numbers": worker.factors.flat.numel()}


class _Sums:
    """Times all-reduces."""

    def __init__(self) -> None:
        self.own, self.seconds, self.bytes = dist.all_reduce, [], 0

    def __call__(self, tensor: torch.Tensor, *args: Any, **more: Any) -> Any:
        started = time.perf_counter()
        found = self.own(tensor, *args, **more)
        self.seconds.append(time.perf_counter() - started)
        self.bytes = max(self.bytes, tensor.nbytes)
        return found


def main() -> None:
    warnings.filterwarnings("ignore", message="Full backward hook")  # the first layer's input has no gradient
    job = join()
    with ExitStack() as undo:
        worker = Worker(job["network"], job["rank"])
        worker.enter(undo)
        found = trained(job, worker) if "batch" in job else measure(job, worker)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
