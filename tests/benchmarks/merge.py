"""Merging k LoRAs of one layer into rank q: the factors alone, against the dense matrix and its SVD.

`kohya` is the method of sd-scripts' networks/svd_merge_lora.py: the dense sum, a full-matrices SVD, and factors
clamped at their 0.99 quantile. `svd_lowrank` is the randomised SVD of the same sum. `peft` is its
add_weighted_adapter("svd"): the same dense SVD without the clamp.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import peft
import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, plain, table
from lora_loom.lora_core.low_rank import LowRank
from torch import nn

SHAPES = {  # (out, in) of layers
    "SD 1.5": [(320, 320), (768, 768), (1280, 1280)],
    "SDXL": [(1280, 2048)],
    "FLUX.1": [(3072, 3072), (3072, 12288)],
}
COUNTS, RANKS = (2, 4, 8), (16, 32, 128)
QUICK = ((320, 320), (768, 768), (1280, 2048))
MOST_DENSE = 3072 * 3072  # a full-matrices SVD of more elements takes over a minute
OURS, KOHYA, RANDOM, PEFT = "ours", "kohya: dense SVD", "dense svd_lowrank", "peft svd"


def random_loras(out: int, columns: int, count: int, rank: int) -> list[LowRank]:
    """Decaying spectra and partly shared subspaces, as LoRAs of one base model have; strength 1 / (index + 1)."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -1.5, rank)
    shared_down, shared_up = (torch.randn(shape, generator=generator) for shape in ((rank, columns), (out, rank)))
    loras = []
    for index in range(count):
        down = torch.randn(rank, columns, generator=generator) + 0.5 * shared_down
        up = torch.randn(out, rank, generator=generator) * decay + 0.5 * shared_up
        loras.append(LowRank(down, up / out, rank / (index + 1)))
    return loras


def dense_sum(loras: Sequence[LowRank]) -> torch.Tensor:
    total = torch.zeros(loras[0].shape)
    for lora in loras:
        total += lora.scaling * (lora.lora_B @ lora.lora_A)
    return total


def kohya(loras: Sequence[LowRank], rank: int) -> LowRank:
    left, sigma, right = torch.linalg.svd(dense_sum(loras))
    up, down = left[:, :rank] * sigma[:rank], right[:rank]
    high = float(torch.cat([up.flatten(), down.flatten()]).quantile(0.99))
    return LowRank(down.clamp(-high, high), up.clamp(-high, high), rank)


def randomised(loras: Sequence[LowRank], rank: int) -> LowRank:
    left, sigma, right = torch.svd_lowrank(dense_sum(loras), q=min(rank + 10, *loras[0].shape))
    return LowRank(right[:, :rank].T, left[:, :rank] * sigma[:rank], rank)


class Peft:
    """A peft model of one linear layer that holds all LoRAs; a merge is deleted before the next, outside the timing."""

    def __init__(self, loras: Sequence[LowRank], rank: int):
        out, columns = loras[0].shape
        self.rank, self.names = rank, [f"lora_{index}" for index in range(len(loras))]
        config = peft.LoraConfig(r=loras[0].rank, lora_alpha=loras[0].rank, target_modules=["layer"])
        self.model = peft.PeftModel(nn.ModuleDict({"layer": nn.Linear(columns, out, bias=False)}), config, "lora_0")
        self.layer = self.model.base_model.model["layer"]
        self.weights = [lora.scaling for lora in loras]
        for name, lora in zip(self.names, loras, strict=True):
            if name not in self.layer.lora_A:
                self.model.add_adapter(name, config)
            self.layer.lora_A[name].weight.data = lora.lora_A
            self.layer.lora_B[name].weight.data = lora.lora_B

    def merge(self, method: str, options: dict) -> LowRank:
        if method.endswith("svd"):
            options = {**options, "svd_rank": self.rank}
        self.model.add_weighted_adapter(self.names, self.weights, "merged", method, **options)
        factors = (self.layer.lora_A["merged"].weight.data, self.layer.lora_B["merged"].weight.data)
        return LowRank(*factors, self.layer.scaling["merged"] * self.rank)

    def sessions(self, method: str, **options) -> Variant:
        @contextmanager
        def session() -> Iterator:
            yield lambda: self.merge(method, options)
            self.model.delete_adapter("merged")

        return session


def optimum(loras: Sequence[LowRank], rank: int) -> LowRank:
    """The best correction of that rank, fp64, by two QR factorisations and the SVD of the core between them."""
    up = torch.cat([lora.lora_B.double() * lora.scaling for lora in loras], 1)
    down = torch.cat([lora.lora_A.double() for lora in loras])
    (q, r), (p, s) = torch.linalg.qr(up), torch.linalg.qr(down.T)
    left, sigma, right = torch.linalg.svd(r @ s.T)
    return LowRank((p @ right[:rank].T).T, q @ left[:, :rank] * sigma[:rank], rank)


def compare(family: str, shape: tuple[int, int], count: int, rank: int, rounds: int, full: bool) -> None:
    """`rank` is that of every LoRA and that of the merge."""
    loras = random_loras(*shape, count, rank)
    variants: dict[str, Variant] = {OURS: plain(lambda: LowRank.concat(loras).truncate(rank))}
    variants[RANDOM] = plain(lambda: randomised(loras, rank))
    if shape[0] * shape[1] <= MOST_DENSE or full:
        variants[KOHYA] = plain(lambda: kohya(loras, rank))
        variants[PEFT] = Peft(loras, rank).sessions("svd")
    best, exact = optimum(loras, rank), LowRank.concat([lora.to(torch.float64) for lora in loras])
    facts = {}
    for name, variant in variants.items():
        with variant() as step:
            merged, held = peak(step)
        distance = f"{merged.distance(best) / best.norm():.1e}"
        facts[name] = (mebibytes(held), distance, f"{merged.distance(exact) / best.distance(exact) - 1:+.1e}")
    times = alternate(variants, rounds)
    rows = [(n, times.milliseconds(n), times.rounds(n), times.ratio(n, OURS), *facts[n]) for n in variants]
    header = ("", "ms", "rounds", "time / ours", "MiB", "distance to optimum", "error over the least")
    table(f"{family} {shape[0]} x {shape[1]}: {count} LoRAs of rank {rank} -> rank {rank}", header, rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", help="of one layer, such as 1280x1280")
    parser.add_argument("--full", action="store_true", help="every count with every rank, and SVDs over a minute long")
    options = begin(parser)
    cells = list(itertools.product(COUNTS, RANKS)) if options.full else list(zip(COUNTS, RANKS, strict=True))
    cases = [(family, shape, cell) for family, shapes in SHAPES.items() for shape in shapes for cell in cells]
    if options.quick:
        cases = [case for case in cases if case[1] in QUICK and case[2] == cells[0]]
    for family, shape, (count, rank) in (case for case in cases if options.shape in (None, "{}x{}".format(*case[1]))):
        compare(family, shape, count, rank, options.rounds, options.full)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
