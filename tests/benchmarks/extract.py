"""A LoRA out of the difference of two weights, against what ComfyUI's own LoraSave does (a full SVD, clamped)."""

from __future__ import annotations

import _comfy  # noqa: F401  real ComfyUI, before its modules
import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, plain, table
from comfy_extras.nodes_lora_extract import extract_lora
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.extraction import extract

CASES = [(768, 768, 32), (1280, 1280, 32), (1280, 5120, 64), (3072, 3072, 64)]


def difference(out: int, columns: int) -> torch.Tensor:
    """Singular values as fine-tuned checkpoints have: strong ones, then a long tail."""
    generator = torch.Generator().manual_seed(0)
    short = min(out, columns, 256)
    decay = torch.arange(1, short + 1) ** -0.7
    up, down = (torch.randn(shape, generator=generator) for shape in ((out, short), (short, columns)))
    return (up * decay @ down + 0.3 * torch.randn(out, columns, generator=generator)) / columns


def native(whole: torch.Tensor, rank: int) -> LowRank:
    up, down = extract_lora(whole, rank)
    return LowRank(down, up, float(rank))


def compare(out: int, columns: int, rank: int, rounds: int) -> None:
    whole = difference(out, columns)
    norm = float(whole.double().norm())
    variants: dict[str, Variant] = {
        "ours": plain(lambda: extract(whole.clone(), rank, 1.0, "w").low_rank),
        "ComfyUI LoraSave": plain(lambda: native(whole, rank)),
    }
    facts = {}
    for name, variant in variants.items():
        with variant() as step:
            made, held = peak(step)
            facts[name] = (mebibytes(held), f"{float((whole - made.delta_weight()).double().norm()) / norm:.4f}")
    times = alternate(variants, rounds)
    rows = [(n, times.milliseconds(n), times.rounds(n), times.ratio(n, "ours"), *facts[n]) for n in variants]
    table(f"{out} x {columns} -> rank {rank}", ("", "ms", "rounds", "time / ours", "MiB", "relative error"), rows)


def main() -> None:
    options = begin(arguments(__doc__))
    for case in CASES[: 2 if options.quick else None]:
        compare(*case, options.rounds)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
