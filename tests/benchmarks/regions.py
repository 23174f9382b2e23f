"""Measures a mask for each LoRA: how much two LoRAs draw into each other, and what masks cost, on the demo base.

Two concepts at a time are learned by Train LoRA as in `learn` (16 pictures, 200 steps of batch 1, rank 8), one LoRA
each. Prompts that call both are drawn with one LoRA on the left half and the other on the right. `bleeding` is the mean
difference of each half from the picture that has its LoRA alone, from the same noise (0..255), over 12 prompts and
both orders; `both, everywhere` is what a stack without masks comes to. Hooks are ComfyUI's own: Create Hook LoRA and
Cond Pair Set Props with a mask. `against hooks` is the largest difference of their pictures from those of masks.

Times are of a step of KSampler at guidance 3, and memory is what a sampling holds beyond what was there.
`--keep` stores the figures, and `--write` puts what is stored into docs/figures.md.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import _comfy  # first: makes comfy importable
import comfy.hooks
import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, table
from benchmarks import _part
from benchmarks._concepts import CONCEPTS, PX, Concept
from benchmarks._exam import GUIDANCE, STEPS, texts
from benchmarks._learners import Base, Task, load_base, ours
from benchmarks._publish import markdown
from comfy_extras.nodes_hooks import CreateHookLora
from demo import shapes
from harness.calls import encode, run_node
from lora_loom.nodes.load_stack import LoadLoraStack
from safetensors.torch import save_file
from torch import Tensor

import nodes

STORED = Path(__file__).parent / "results" / "regions.json"
PAIRS = (("heart", "lined"), ("target", "navy"))  # a shape and a texture, an object and a colour
TRAINED, RANK, PROMPTS = 200, 8, 12
ALONE, BOTH, MASKS, HOOKS, BARE = "one alone", "both, everywhere", "a mask for each", "hooks of ComfyUI", "no LoRA"
Drawn = Callable[[], Tensor]


def halves(px: int) -> tuple[Tensor, Tensor]:
    """Masks of the left and of the right, (1, px, px)."""
    left = (torch.arange(px) < px // 2).float().expand(1, px, px)
    return left, 1 - left


def stacked(model: Any, rows: Mapping[str, int], px: int) -> Any:
    """The MODEL with files, each with the number of its mask, 0 for none."""
    text = "\n".join(f"<lora:{name}:1{f':mask={mask}' if mask else ''}>" for name, mask in rows.items())
    masks = {f"mask{number}": mask for number, mask in enumerate(halves(px), 1)}
    return run_node(LoadLoraStack, model=model, rows=text, masks=masks)[0]


def hooked(pair: Sequence[list], names: Sequence[str], px: int) -> list[list]:
    """Positive and negative with a LoRA on each half."""
    found: list[list] = [[], []]
    for name, mask in zip(names, halves(px), strict=True):
        (hooks,) = CreateHookLora().create_hook(f"{name}.safetensors", 1.0, 0.0)
        new = comfy.hooks.set_conds_props([*pair], 1.0, "default", mask=mask, hooks=hooks)
        found = [[*before, *added] for before, added in zip(found, new, strict=True)]
    return found


@torch.inference_mode()
def latents(model: Any, pair: Sequence[list], blank: dict[str, Tensor], steps: int = STEPS) -> Tensor:
    return nodes.KSampler().sample(model, 5, steps, GUIDANCE, "euler", "simple", *pair, blank)[0]["samples"]


class Pair:
    """Two concepts, and prompts that call both."""

    def __init__(self, base: Base, one: Concept, other: Concept):
        self.base, self.concepts = base, (one, other)
        scenes = one.scenes(PROMPTS, f"with {other.word}")
        captions = [shapes.caption(replace(scene, **{other.place: other.word})) for scene in scenes]
        self.pair = [[texts(base, captions), {}]], encode(base.clip, "")
        self.blank = nodes.EmptyLatentImage().generate(PX, PX, PROMPTS)[0]

    def bleeding(self, names: tuple[str, str]) -> dict[str, float]:
        """By how the LoRAs are put on, for both orders of the two halves."""
        rounds = [self._round(order) for order in (names, names[::-1])]
        return {name: mean(each[name] for each in rounds) for name in rounds[0]}

    def _round(self, names: tuple[str, str]) -> dict[str, float]:
        model = self.base.model
        alone = [self._pictures(stacked(model, {name: 0}, PX), self.pair) for name in names]
        ways = {
            BOTH: self._pictures(stacked(model, dict.fromkeys(names, 0), PX), self.pair),
            MASKS: self._pictures(stacked(model, dict(zip(names, (1, 2), strict=True)), PX), self.pair),
            HOOKS: self._pictures(model, hooked(self.pair, names, PX)),
            BARE: self._pictures(model, self.pair),
        }
        wanted = torch.cat([alone[0][..., : PX // 2], alone[1][..., PX // 2 :]], dim=-1)
        found = {name: float(255 * (pictures - wanted).abs().mean()) for name, pictures in ways.items()}
        return found | {"against hooks": float(255 * (ways[MASKS] - ways[HOOKS]).abs().max())}

    @torch.inference_mode()
    def _pictures(self, model: Any, pair: Sequence[list]) -> Tensor:
        drawn = latents(model, pair, self.blank)
        return nodes.VAEDecode().decode(self.base.vae, {"samples": drawn})[0].movedim(-1, 1)


def learned(base: Base, word: str, seed: int, folder: Path) -> str:
    """The name of a LoRA's file in the loras folder."""
    concept, name = next(each for each in CONCEPTS if each.word == word), f"{word}_{seed}"
    task = Task.of(base, concept, folder / name, TRAINED, 1, RANK)
    save_file(ours(task, seed, {}), _comfy.LORAS / f"{name}.safetensors")
    return name


def bleeding(pairs: Sequence[tuple[str, str]], seeds: int) -> list[dict[str, Any]]:
    base, found = load_base(), []
    by_word = {concept.word: concept for concept in CONCEPTS}
    with tempfile.TemporaryDirectory() as folder:
        for words in pairs:
            pair = Pair(base, *(by_word[word] for word in words))
            for seed in range(seeds):
                one, other = (learned(base, word, seed, Path(folder)) for word in words)
                found.append({"pair": list(words), "seed": seed, "bleeding": pair.bleeding((one, other))})
                print(f"  {words}, seed {seed}: {found[-1]['bleeding']}", flush=True)
    return found


# -- what it costs -----------------------------------------------------------------------------------------------------


def cost(rounds: int, steps: int = 2, px: int = 256) -> dict[str, dict[str, Any]]:
    """Of a UNet of SD 1.5's with two of its four levels, in fp32, and LoRAs of rank 16."""
    model = _comfy.build(_comfy.SD_TWO_LEVELS, torch.float32)
    names = [Path(name).stem for name in _comfy.write_loras(model, 2, 16)[0]]
    generator = torch.Generator().manual_seed(0)
    pair = [[[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2)]
    blank = nodes.EmptyLatentImage().generate(px, px, 1)[0]
    ways = {
        BARE: lambda: (model, pair),
        BOTH: lambda: (stacked(model, dict.fromkeys(names, 0), px), pair),
        MASKS: lambda: (stacked(model, dict(zip(names, (1, 2), strict=True)), px), pair),
        HOOKS: lambda: (model, hooked(pair, names, px)),
    }

    def sampling(way: Callable[[], tuple[Any, Any]]) -> Variant:
        @contextmanager
        def session() -> Any:
            patched, texts_ = way()
            latents(patched, texts_, blank, 1)  # loads it
            yield lambda: latents(patched, texts_, blank, steps)

        return session

    variants, held = {name: sampling(way) for name, way in ways.items()}, {}
    for name, variant in variants.items():
        with variant() as step:
            held[name] = peak(step)[1]
    times = alternate(variants, rounds, patience=120.0)
    return {
        name: {"ms": times.milliseconds(name).median / steps, "ratio": str(times.ratio(name, BARE)), "held": held[name]}
        for name in variants
    }


# -- figures -----------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" [{min(values):.2f}..{max(values):.2f}]" if len(values) > 1 else "")


def tables(found: dict[str, Any]) -> tuple[tuple[str, Sequence[str], list[list[str]]], ...]:
    pairs = list(dict.fromkeys(" and ".join(each["pair"]) for each in found["bleeding"]))
    rows = [
        [way, *(spread([each["bleeding"][way] for each in found["bleeding"] if " and ".join(each["pair"]) == pair])
                for pair in pairs)]
        for way in (BARE, BOTH, MASKS, HOOKS)
    ]  # fmt: skip
    costs = [[way, f"{each['ms']:.0f}", each["ratio"], mebibytes(each["held"])] for way, each in found["cost"].items()]
    return (
        ("bleeding, 0..255", ("", *pairs), rows),
        ("a step", ("", "ms", "time / no LoRA", "MiB"), costs),
    )


def write(found: dict[str, Any]) -> None:
    seeds = 1 + max(each["seed"] for each in found["bleeding"])
    apart = max(each["bleeding"]["against hooks"] for each in found["bleeding"])
    drawn = "One seed." if seeds == 1 else f"The mean of {seeds} seeds, with the least and the most."
    said = f"{drawn} Pictures of masks and of hooks differ by {apart:.2g} of 255 at most."
    parts = [said, *(markdown(header, rows) for _, header, rows in tables(found))]
    _part.publish(_part.page("regions", "regions", "\n\n".join(parts)))


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--seeds", type=int, default=2, help="of each pair (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="store the figures")
    parser.add_argument("--write", action="store_true", help="write what is stored into docs/figures.md")
    options = begin(parser)
    random.seed(0)
    if options.write:
        return write(json.loads(STORED.read_text("utf-8")))
    pairs, seeds = PAIRS[: 1 if options.quick else None], 1 if options.quick else options.seeds
    found = {"bleeding": bleeding(pairs, seeds), "cost": cost(options.rounds)}
    for each in tables(found):
        table(*each)
    if options.keep:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
