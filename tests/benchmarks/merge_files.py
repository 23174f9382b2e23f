"""Whole LoRAs of FLUX.1's size: merged, resized, and shared out to one size; all of it by layer, none of it dense.

For comparison the same cut of one layer in forty through torch.svd_lowrank of the dense sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _measure import Variant, alternate, arguments, begin, plain, table
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.merge import EXACT, UNLIMITED, merge
from lora_loom.lora_core.merging.settings import MergeSettings
from lora_loom.lora_core.merging.truncation import Limits
from lora_loom.lora_core.stack.weighted import Weighted

DOUBLE = {"qkv": (9216, 3072), "proj": (3072, 3072), "mlp.0": (12288, 3072), "mlp.2": (3072, 12288)}
SINGLE = {"linear1": (21504, 3072), "linear2": (3072, 15360)}
EVERY = 40


def flux(seed: int, rank: int, scale: int) -> Adapter:
    """As many layers as FLUX.1 has in its blocks, `scale` times smaller."""
    shapes = {f"double.{i}.{side}.{n}": s for i in range(19) for side in ("img", "txt") for n, s in DOUBLE.items()}
    shapes |= {f"single.{i}.{n}": s for i in range(38) for n, s in SINGLE.items()}
    generator = torch.Generator().manual_seed(seed)
    decay = torch.logspace(0, -1.5, rank)

    def layer(out: int, columns: int) -> LowRank:
        down = torch.randn(rank, columns // scale, generator=generator)
        return LowRank(down, torch.randn(out // scale, rank, generator=generator) * decay / out, float(rank))

    return Adapter({f"diffusion_model.{name}": layer(*shape) for name, shape in shapes.items()})


def dense(parts: list[Weighted], rank: int) -> Callable[[], None]:
    names = list(parts[0].adapter.layers)[::EVERY]

    def step() -> None:
        for name in names:
            total = sum(part.adapter.layers[name].delta_weight() for part in parts)
            torch.svd_lowrank(total, q=min(rank + 10, *total.shape))

    return step


def main() -> None:
    options = begin(arguments(__doc__))
    scale, rank = (8, 8) if options.quick else (1, 16)
    parts = [Weighted(str(seed), flux(seed, rank, scale), 1.0 / (seed + 1), 1.0) for seed in range(4)]
    megabytes = 2e-6 * parts[0].adapter.num_parameters()
    steps = {
        "exact sum": lambda: merge(parts, EXACT, UNLIMITED),
        f"sum at rank {rank}": lambda: merge(parts, EXACT, Limits(rank=rank)),
        f"sum at {megabytes:.0f} MB": lambda: merge(parts, EXACT, Limits(megabytes=megabytes)),
        f"ties at rank {rank}": lambda: merge(parts, MergeSettings("ties"), Limits(rank=rank)),
        f"one resized to rank {rank // 2}": lambda: merge(parts[:1], EXACT, Limits(rank=rank // 2)),
        f"dense svd_lowrank of every {EVERY}th layer": dense(parts, rank),
    }
    variants: dict[str, Variant] = {name: plain(step) for name, step in steps.items()}
    errors = {name: getattr(step(), "error", None) for name, step in steps.items()}
    times = alternate(variants, min(options.rounds, 3), patience=60)
    rows = [
        (name, times.milliseconds(name), times.rounds(name), "" if error is None else f"{error:.2%}")
        for name, error in errors.items()
    ]
    table(f"4 LoRAs of rank {rank}, {len(parts[0].adapter.layers)} layers", ("", "ms", "rounds", "error"), rows)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
