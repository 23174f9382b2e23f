"""Health and repair on the demo base: faults are put into LoRAs that are known, and what LoRA Health makes of them is
examined as in `dev.py bench learn`, beside the LoRAs as they were.

Every concept is learned from 16 pictures in 200 steps with the defaults of 0.1.0, which leak. Faults: three layers that
are 16 times as loud, a direction of 3 times the weight's strongest one in three layers, NaN in three layers, and all
layers 30 times as loud, as when alpha is lost. `blocks turned down` is the sound LoRA with the strengths that LoRA
Health proposes by its training pictures. `distance` is that from the LoRA as it was, over its norm. Results are a line
of JSON each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import _comfy  # noqa: F401  first: makes comfy importable
import torch
from _measure import arguments, begin, table
from benchmarks import _part
from benchmarks._concepts import CONCEPTS, Concept
from benchmarks._exam import Exam, Neutral
from benchmarks._health import lines, page
from benchmarks._learners import Base, Task, load_base, ours
from benchmarks._results import BASE
from benchmarks._rows import AS_IN_0_1_0
from harness.calls import run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.analysis.repair import Moved
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.host.node_outputs import as_lora_model
from lora_loom.nodes.bridge.model.base_figures import Base as Weights
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.health import LoraHealth

SOUND, BLOCKS, REPAIRED = "as it was", "blocks turned down", ", repaired"
LOUD, DIRECTION, BROKEN, WHOLE = "three loud layers", "a direction in three layers", "NaN in three layers", "alpha lost"
HIT = 3  # layers
NAMED = [concept for concept in CONCEPTS if concept.word in ("heart", "navy", "lined")]
Change = Callable[[str, LowRank], LowRank]


class Ward:
    """Learns, breaks, repairs and examines, and writes each result as it comes."""

    def __init__(self, into: Path, folder: Path, steps: int):
        self.into, self.folder, self.steps = into, folder, steps
        self.base: Base = load_base()
        self.neutral = Neutral.of(self.base)

    def run(self, concept: Concept, seed: int) -> None:
        exam = Exam(self.base, self.neutral, concept)
        task = Task.of(self.base, concept, self.folder / f"{concept.word}-{seed}", self.steps, 1, 8)
        lora = formats.decode(ours(task, seed, AS_IN_0_1_0))
        sound = names_of(self.base.model).resolve(lora, "it").adapter
        self._note(exam, BASE, concept, seed, None)
        self._note(exam, SOUND, concept, seed, sound)
        for fault, bad in self._faults(sound, seed).items():
            if fault != BROKEN:
                self._note(exam, fault, concept, seed, bad, sound)
            self._note(exam, fault + REPAIRED, concept, seed, self._healed(bad), sound)
        turned = self._healed(sound, "faults and blocks", clip=self.base.clip, vae=self.base.vae, dataset=task.dataset)
        self._note(exam, BLOCKS, concept, seed, turned, sound)

    def _faults(self, sound: Adapter, seed: int) -> dict[str, Adapter]:
        names = list(sound.layers)
        hit = {names[at] for at in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:HIT]}
        tops = {name: norms[1] for name, norms in Weights(self.base.model).norms(sound.layers).items()}

        def direction(name: str, layer: LowRank) -> LowRank:
            draw = torch.Generator().manual_seed(seed)
            down = torch.randn(1, layer.lora_A.shape[1], generator=draw)
            up = torch.randn(len(layer.lora_B), 1, generator=draw)
            return LowRank.concat([layer, LowRank(down, up * 3 * tops[name] / (down.norm() * up.norm()), 1.0)])

        def holed(name: str, layer: LowRank) -> LowRank:
            return LowRank(layer.lora_A * float("nan"), layer.lora_B, layer.alpha, layer.kernel)

        def changed(change: Change, taken: set[str]) -> Adapter:
            return Adapter({n: change(n, layer) if n in taken else layer for n, layer in sound.layers.items()})

        return {
            LOUD: changed(lambda _, layer: layer.scaled(16), hit),
            DIRECTION: changed(direction, hit),
            BROKEN: changed(holed, hit),
            WHOLE: changed(lambda _, layer: layer.scaled(30), set(names)),
        }

    def _healed(self, bad: Adapter, repair: str = "faults", **given: object) -> Adapter:
        schema = LoraHealth.GET_SCHEMA().inputs
        inputs = {each.id: each.default for each in schema if getattr(each, "default", None) is not None}
        drawn = dict(width=96, height=96, cfg=3.0, repair=repair, model=self.base.model, adapter=bad)
        return run_node(LoraHealth, **(inputs | drawn | given))[0]

    def _note(
        self, exam: Exam, row: str, concept: Concept, seed: int, adapter: Adapter | None, sound: Adapter | None = None
    ) -> None:  # fmt: skip
        marks = exam.references()[BASE] if adapter is None else exam.marks(as_lora_model(adapter))
        apart = Moved.between(sound.layers, adapter.layers, ()).distance if adapter is not None and sound else 0.0
        found = {name: round(value, 4) for name, value in {**asdict(marks), "distance": apart}.items()}
        _part.add(self.into, {"row": row, "concept": concept.word, "seed": seed, **found})
        print(f"  {concept.word}, seed {seed}, {row}: {found}", flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--steps", type=int, default=200, help="of every run (%(default)s)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="where results are written to")
    parser.add_argument("--write", action="store_true", help="write docs/figures.md from what is stored")
    options = begin(parser)
    if options.write:
        return _part.publish(page())
    with tempfile.TemporaryDirectory() as folder:
        into = options.into or Path(folder, "results.jsonl")
        ward = Ward(into, Path(folder), options.steps)
        for seed in range(1 if options.quick else options.rounds):
            for concept in NAMED[: 1 if options.quick else None]:
                ward.run(concept, seed)
        table("mean of the concepts", *lines(into))


if __name__ == "__main__":
    main()
