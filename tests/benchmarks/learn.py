"""Measures what is learned, what leaks and what it takes: Train LoRA beside ComfyUI's TrainLoraNode, on the demo base.

Every concept of `_concepts` is learned from 16 pictures at equal steps, batch and rank, by whole runs of either node on
the same pictures and captions in this process; rows named `same time` have as many steps as fit into the time of such a
run with the defaults of 0.1.0. Inputs that a row does not speak of are as the node has them, ours on auto. Nothing is
recomputed.

`loss` is that of the velocity on held-out pictures, at fixed noise and 8 levels spread evenly; `neutral` the same on
true pictures without anything new, over the base's. The rest is from pictures drawn with KSampler at guidance 3: of 12
held-out prompts the `overlap` with the true shape, texture, outline or part (intersection over union, where it fits
best), the `colour` error (CIE Lab) and the `error` against the true picture (0..255); `class` and `change`, how far
prompts of the class without the new word, and unrelated ones, move from the base's pictures (8 each, 0..255).

The base is a tiny flow model: ratios between rows carry over to other models better than any learning rate does.
Results are a line of JSON each, so that a bench goes on where it stopped and processes may share it: `--into`. With
`--joined` two concepts are learned in one LoRA (`_joined`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import _comfy  # noqa: F401  first: makes comfy importable
from _measure import arguments, begin, table
from benchmarks import _joined
from benchmarks._concepts import CONCEPTS, Concept
from benchmarks._exam import Exam, Neutral
from benchmarks._learners import Base, Learner, Task, load_base
from benchmarks._publish import STORED, publish
from benchmarks._results import DEFAULT, Cost, Result, Results, append
from benchmarks._rows import GROUPS
from benchmarks._tables import costs, goals, means, rows_of, with_best

WORDS = [concept.word for concept in CONCEPTS]


class Bench:
    """Learns, examines, and writes each result as it comes."""

    def __init__(self, into: Path, folder: Path, steps: int, batch: int, rank: int):
        self.into, self.steps = into, steps
        self.base: Base = load_base()
        self.neutral = Neutral.of(self.base)
        self.exam, self.task = cache(self._exam), cache(self._task)
        self.folder, self.batch, self.rank = folder, batch, rank

    def run(self, learner: Learner, concept: Concept, seed: int) -> None:
        """Nothing where the file has it."""
        known = Results.read([self.into])
        if (learner.name, concept.word, seed) in known.runs:
            return
        steps = self._steps(learner, known)
        if steps < 1:
            print(f"  {learner.name}: no time is left for a step", flush=True)
            return
        file = learner.learn(self.task(concept, steps), seed)
        result = Result(learner.name, concept.word, seed, steps, self.exam(concept).marks(file))
        append(self.into, result)
        marks = result.marks
        print(
            f"  {concept.word}, {learner.name}, seed {seed}: loss {marks.loss:.4f}, overlap {marks.overlap:.2f}, "
            f"error {marks.error:.1f}, class {marks.kin:.1f}, change {marks.change:.1f}", flush=True,
        )  # fmt: skip

    def refer(self, concept: Concept) -> None:
        """Examines the base and the true pictures, which the others are held against."""
        known = Results.read([self.into]).runs
        for name, marks in self.exam(concept).references().items():
            if (name, concept.word, 0) not in known:
                append(self.into, Result(name, concept.word, 0, 0, marks))

    def time(self, learner: Learner, concept: Concept, round: int) -> None:
        if (learner.name, round) in Results.read([self.into]).costs:
            return
        whole, fewer = self.task(concept, self.steps), self.steps // 4
        fresh, kept = learner.timed(whole, True), learner.timed(whole, False)
        short = learner.timed(self.task(concept, fewer), False)
        append(self.into, Cost(learner.name, round, self.steps, fewer, fresh, kept, short))
        print(f"  {learner.name}, round {round}: {fresh:.2f} s, {kept:.2f} s, {short:.2f} s", flush=True)

    def _steps(self, learner: Learner, known: Results) -> int:
        return known.fitting(learner.timed_as, learner.states) if learner.timed_as else self.steps

    def _exam(self, concept: Concept) -> Exam:
        return Exam(self.base, self.neutral, concept)

    def _task(self, concept: Concept, steps: int) -> Task:
        folder = self.folder / f"{concept.word}-{steps}"
        return Task.of(self.base, concept, folder, steps, self.batch, self.rank)


def runs(
    learners: Sequence[Learner], concepts: Sequence[Concept], seeds: int
) -> Iterator[tuple[Learner, Concept, int]]:
    """The first seed of everything first."""
    for seed in range(seeds):
        for concept in concepts:
            yield from ((one, concept, seed) for one in learners if seed < one.seeds)


def show(results: Results, concepts: Sequence[str]) -> None:
    """Prints a table for each concept, and that of their means."""
    results = with_best(results)
    for concept in concepts if len(concepts) > 1 else ():
        table(concept, *means(results, [concept]))
    table(f"mean of {len(concepts)} concept(s)", *means(results, concepts))
    if DEFAULT in rows_of(results, concepts):
        table("goals", ("", "wanted", "reached"), [goal[:3] for goal in goals(results, concepts)])


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--steps", type=int, default=200, help="of every run at equal steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step (%(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="of every LoRA (%(default)s)")
    parser.add_argument("--concepts", nargs="+", choices=WORDS, default=WORDS[:6], help="the new words to learn")
    parser.add_argument("--compare", nargs="+", choices=GROUPS, default=["main", "comfyui"], help="what with what")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="of those compared, by their names")
    parser.add_argument("--time", action="store_true", help="measure what rows cost, which `same time` goes by")
    parser.add_argument("--into", type=Path, metavar="FILE", help="where results are, and are written to")
    parser.add_argument("--from", type=Path, nargs="+", dest="stored", metavar="FILE", help="show these, run nothing")
    parser.add_argument("--write", action="store_true", help="write README, docs/figures.md and the picture from them")
    parser.add_argument("--joined", action="store_true", help="measure two concepts in one LoRA instead")
    options = begin(parser)
    if options.joined:
        return _joined.main(options)
    if options.write or options.stored:
        results = Results.read(options.stored or [STORED])
        show(results, results.concepts())
        return publish(results) if options.write else None
    learners = [one for name in options.compare for one in GROUPS[name] if not options.only or one.name in options.only]
    concepts = [one for one in CONCEPTS if one.word in options.concepts[: 1 if options.quick else None]]
    with tempfile.TemporaryDirectory() as folder:
        into = options.into or Path(folder, "results.jsonl")
        bench = Bench(into, Path(folder), options.steps, options.batch, options.rank)
        if options.time:
            timed = [one for one in learners if not one.timed_as]
            for round in range(options.rounds):
                turn = round % len(timed)
                for learner in (*timed[turn:], *timed[:turn]):
                    bench.time(learner, concepts[0], round)
            return table("what a run takes", *costs(Results.read([into])))
        for concept in concepts:
            bench.refer(concept)
        for learner, concept, seed in runs(learners, concepts, 1 if options.quick else options.rounds):
            bench.run(learner, concept, seed)
        show(Results.read([into]), [concept.word for concept in concepts])


if __name__ == "__main__":
    main()
