"""TIES and DARE on k LoRAs of one layer: in the core they have in common, against PEFT's ways.

PEFT's `ties_svd` and `dare_ties_svd` build every dense correction and the SVD of the result; `ties` and `dare_linear`
work on the factors, whose products are something else than the LoRAs. `kept` is the cosine between the merge and the
exact sum, which is what the LoRAs do together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, plain, table
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.merge import merge
from lora_loom.lora_core.merging.settings import MergeSettings
from lora_loom.lora_core.merging.truncation import Limits
from lora_loom.lora_core.stack.weighted import Weighted
from merge import Peft, random_loras

CASES = [
    ((768, 768), 2, 16), ((768, 768), 4, 32), ((768, 768), 8, 128), ((1280, 1280), 2, 16), ((1280, 1280), 4, 32),
    ((1280, 1280), 8, 128), ((3072, 3072), 2, 16), ((3072, 3072), 4, 32), ((3072, 3072), 8, 128),
    ((3072, 12288), 4, 32), ((3072, 12288), 8, 128),
]  # fmt: skip
QUICK = 1
MOST_DENSE = 1280 * 1280  # PEFT's SVDs of larger layers take a minute and more each
DENSITY = 0.5


def ours(loras: Sequence[LowRank], method: str) -> Callable[[], LowRank]:
    parts = [Weighted("", Adapter({"w": lora}), 1.0, 1.0) for lora in loras]
    settings, limits = MergeSettings(method, DENSITY), Limits(rank=loras[0].rank)
    return lambda: merge(parts, settings, limits).layers["w"]


def compare(shape: tuple[int, int], count: int, rank: int, rounds: int, full: bool) -> None:
    loras = random_loras(*shape, count, rank)
    model, total = Peft(loras, rank), LowRank.concat(loras)
    variants: dict[str, Variant] = {f"ours {name}": plain(ours(loras, name)) for name in ("ties", "dare", "tsv")}
    dense = ("ties_svd", "dare_ties_svd") if shape[0] * shape[1] <= MOST_DENSE or full else ()
    for name in (*dense, "ties", "dare_linear"):
        variants[f"peft {name}"] = model.sessions(name, density=DENSITY)
    facts = {}
    for name, variant in variants.items():
        with variant() as step:
            merged, held = peak(step)
            facts[name] = (mebibytes(held), f"{merged.inner(total) / (merged.norm() * total.norm()):.2f}")
    times = alternate(variants, rounds)
    first = next(iter(variants))
    rows = [(n, times.milliseconds(n), times.rounds(n), times.ratio(n, first), *facts[n]) for n in variants]
    header = ("", "ms", "rounds", "time / ours ties", "MiB", "kept")
    table(f"{shape[0]} x {shape[1]}: {count} LoRAs of rank {rank} -> rank {rank}", header, rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", help="of one layer, such as 1280x1280")
    parser.add_argument("--full", action="store_true", help="dense SVDs of every size")
    options = begin(parser)
    for shape, count, rank in CASES[: QUICK if options.quick else None]:
        if options.shape in (None, "{}x{}".format(*shape)):
            compare(shape, count, rank, options.rounds, options.full)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
