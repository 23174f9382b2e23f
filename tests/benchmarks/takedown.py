"""Measures how surely a listed LoRA is recognised by its sketch in what was made of it, and how often another is.

Really trained: five concepts learned on the demo base from three seeds each, 15 LoRAs of one base, those of one seed
with the same start. Each in turn is the listed one, at weights 1, 0.5 and 0.3 in a merge with one of another concept at
1, which then is cut, saved in another format or type, or loses layers. `recognised` is the share with at least the
threshold's similarity, `lowest` and `median` are of similarities.

False alarms: each trained LoRA, and each sum of two, against the listed ones it has nothing of; and
10,000 pairs of random LoRAs of the demo's shapes, with few strong layers and directions. `again` is no false alarm and
no derivative: the same pictures learned once more from another seed. `--keep` stores the figures, which a test holds
the threshold against.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import _comfy
import _real
import torch
from _measure import arguments, begin, table
from benchmarks._concepts import CONCEPTS
from benchmarks._learners import Base, Task, load_base, ours
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.trust.sketches import LENGTH, THRESHOLD, likeness, sketch
from lora_loom.nodes.bridge.model.names import names_of
from torch import Tensor

STORED = Path(__file__).with_suffix(".json")
WEIGHTS = (1.0, 0.5, 0.3)
RANK, STEPS = 8, 150
PAIRS = 10_000
Change = Callable[[Adapter], Adapter]


def trained(base: Base, seeds: int, concepts: int) -> dict[tuple[str, int], Adapter]:
    """LoRAs by concept and seed, in the model's names."""
    found, table_ = {}, names_of(base.model)
    with tempfile.TemporaryDirectory() as folder:
        for concept in CONCEPTS[:concepts]:
            task = Task.of(base, concept, Path(folder, concept.word), STEPS, 1, RANK)
            for seed in range(seeds):
                learned = formats.decode(ours(task, seed, {}))
                found[concept.word, seed] = table_.resolve(learned, concept.word).adapter
                print(f"  {concept.word}, seed {seed}: norm {learned.norm():.1f}", flush=True)
    return found


def changes(base: Base) -> dict[str, Change]:
    """What is done to a merge of rank 16 before it is looked at."""
    names = names_of(base.model)

    def cut(rank: int) -> Change:
        return lambda merge: merge.map(lambda layer: layer.truncate(rank))

    def half(merge: Adapter) -> Adapter:
        return Adapter(dict(list(merge.layers.items())[::2]))

    def attention(merge: Adapter) -> Adapter:
        return Adapter({name: layer for name, layer in merge.layers.items() if "attn" in name})

    def saved(style: formats.Style, dtype: torch.dtype) -> Change:
        def change(merge: Adapter) -> Adapter:
            tensors = formats.encode(merge, style, names.file_names(style, list(merge.layers)), dtype)
            return names.resolve(formats.decode(tensors), style).adapter

        return change

    everything = [cut(8), attention, saved("kohya", torch.bfloat16)]
    return {
        "merged": lambda merge: merge,
        "cut to rank 8": cut(8),
        "cut to rank 4": cut(4),
        "every second layer": half,
        "attention only": attention,
        "kohya, fp16": saved("kohya", torch.float16),
        "diffusers, bf16": saved("peft", torch.bfloat16),
        "cut to 8, attention, kohya, bf16": lambda merge: _chained(merge, everything),
    }


def _chained(merge: Adapter, steps: Sequence[Change]) -> Adapter:
    for step in steps:
        merge = step(merge)
    return merge


def mixed(listed: Adapter, weight: float, other: Adapter) -> Adapter:
    return Adapter({n: LowRank.concat([listed.layers[n].scaled(weight), other.layers[n]]) for n in other.layers})


def detection(loras: Mapping[tuple[str, int], Adapter], done: Mapping[str, Change]) -> dict[str, dict[str, Any]]:
    """Figures of each change at each weight; each LoRA is merged with one of every other concept."""
    sketches, found = {key: sketch(each) for key, each in loras.items()}, {}
    pairs = [(x, y) for x, y in itertools.permutations(loras, 2) if x[0] != y[0] and y[1] == (x[1] + 1) % 3]
    for name, change in done.items():
        for weight in WEIGHTS:
            made = ((sketch(change(mixed(loras[x], weight, loras[y]))), sketches[x]) for x, y in pairs)
            found[f"{name} at {weight:g}"] = figures([likeness(*each).similarity for each in made])
    return found


def alarms(loras: Mapping[tuple[str, int], Adapter]) -> dict[str, dict[str, Any]]:
    sketches = {key: sketch(each) for key, each in loras.items()}
    singles = [
        likeness(sketches[x], sketches[y]).similarity
        for x, y in itertools.combinations(loras, 2) if x[0] != y[0]
    ]  # fmt: skip
    sums = [
        likeness(sketches[x] + sketches[y], sketches[z]).similarity
        for x, y in itertools.combinations(loras, 2) for z in loras if z[0] not in (x[0], y[0])
    ]  # fmt: skip
    again = [
        likeness(sketches[x], sketches[y]).similarity
        for x, y in itertools.combinations(loras, 2) if x[0] == y[0]
    ]  # fmt: skip
    shapes = {name: layer.shape for name, layer in next(iter(loras.values())).layers.items()}
    return {
        "trained, other concepts": figures(singles),
        "sums of two, other concepts": figures(sums),
        "random": figures(list(random_pairs(shapes, PAIRS))),
        "again": figures(again),
    }


def random_pairs(shapes: Mapping[str, tuple[int, ...]], count: int) -> Iterator[float]:
    many = next(n for n in itertools.count(2) if n * (n - 1) // 2 >= count)
    sketches = [sketch(random_lora(shapes, seed)) for seed in range(many)]
    for x, y in itertools.islice(itertools.combinations(sketches, 2), count):
        yield likeness(x, y).similarity


def random_lora(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Adapter:
    """Strengths of layers differ as e to a normal number does, and those of directions halve from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    halves: Tensor = 0.5 ** torch.arange(RANK)
    layers = {}
    for name, (rows, columns) in shapes.items():
        size = float(torch.randn((), generator=generator).exp())
        down = torch.randn(RANK, columns, generator=generator) * size
        layers[name] = LowRank(down, torch.randn(rows, RANK, generator=generator) * halves, float(RANK))
    return Adapter(layers)


def figures(values: Sequence[float]) -> dict[str, Any]:
    return {
        "pairs": len(values),
        "recognised": round(sum(value >= THRESHOLD for value in values) / len(values), 4),
        "lowest": round(min(values), 3),
        "median": round(median(values), 3),
        "highest": round(max(values), 3),
    }


def show(title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    first = next(iter(found.values()))
    table(title, ("", *first), [(name, *each.values()) for name, each in found.items()])


def cost() -> dict[str, Any]:
    """Seconds that the sketch of a file takes whose layers are those of SDXL, from factors in fp16."""
    model = _comfy.build(_real.SDXL, weights=False)
    adapter = _comfy.random_adapter(model, 32).map(lambda layer: layer.to(torch.float16))
    started = time.perf_counter()
    sketch(adapter)
    return {"layers": len(adapter.layers), "seconds": round(time.perf_counter() - started, 2)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--keep", action="store_true", help=f"store the figures in {STORED.name}")
    options = begin(parser)
    base = load_base()
    loras = trained(base, *((3, 5) if not options.quick else (3, 2)))
    found = {"threshold": THRESHOLD, "length": LENGTH, "cost": cost()}
    print(f"a sketch of {found['cost']['layers']} layers of SDXL takes {found['cost']['seconds']} s", flush=True)
    found |= {"detection": detection(loras, changes(base)), "alarms": alarms(loras)}
    show("recognised in what is made of it", found["detection"])
    show("false alarms, and the same pictures again", found["alarms"])
    if options.keep:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
