"""Measures what is learned, and how fast: Train LoRA against both modes of ComfyUI's TrainLoraNode, on the demo base.

Every concept of `_concepts` is learned from 16 pictures at equal steps, batch and rank, several seeds each, by whole
runs of either node on the same pictures and captions in this process. `default` is every other input as the node has
it, ours on auto, `tuned` the highest learning rate of `--compare rates` whose loss is within 3 % of the trainer's
lowest. Nothing is recomputed on either side.

`loss` is that of the velocity on held-out pictures, at fixed noise and 16 levels spread evenly. The rest is from 12
held-out prompts drawn with KSampler: `overlap` with the true shape, texture or outline (intersection over union, where
it fits best), `colour` error (CIE Lab), `error` against the true picture (0..255). `learned` is the share of the base's
error that is gone, of what the VAE can show; `change` is that of 8 unrelated prompts (0..255). The base is a tiny flow
model: ratios between trainers carry over to other models better than any learning rate does.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import mean

import _comfy  # noqa: F401  first: makes comfy importable
from _measure import Spread, arguments, begin, table
from benchmarks._concepts import CONCEPTS
from benchmarks._exam import BASE, DECODED, Exam, Marks
from benchmarks._learners import Learner, Task, load_base, native, ours
from lora_loom.lora_core.training.config import OptimizerConfig

WORDS = [concept.word for concept in CONCEPTS]
BYPASS = {"bypass_mode": True}
TUNED, NATIVE_TUNED = {"learning_rate": 4e-3}, {"learning_rate": 1e-3}
LEARNERS = (
    Learner("ours, default", ours),
    Learner("native, default", native),
    Learner("native, tuned", native, NATIVE_TUNED),
    Learner("bypass, default", native, BYPASS),
    Learner("bypass, tuned", native, BYPASS | NATIVE_TUNED),
)
RATES = tuple(
    Learner(f"{name}, {rate:g}", run, {"learning_rate": rate})
    for name, run, lowest in (("ours", ours, 1e-3), ("native", native, 2.5e-4))
    for rate in (lowest * 2**i for i in range(6))
)
SETTINGS = {
    "tuned": {},
    "uniform timesteps": {"timesteps": "uniform"},
    "logit-normal timesteps": {"timesteps": "logit_normal"},
    "shift 8": {"shift": 8.0, "timesteps": "shifted"},
    "min-SNR": {"weighting": "min_snr"},
    "attention": {"targets": "attention"},
    "all-linear": {"targets": "all-linear"},
    "alpha 4": {"alpha": 4.0},
    "alpha 16": {"alpha": 16.0},
    "rank 32": {"rank": 32},
    "constant rate": {"lr_schedule": "constant"},
    "warm-up": {"warmup": 20},
    "caption dropout": {"caption_dropout": 0.1},
    "preservation": {"preservation": 1.0},
    "EMA": {"optimizer": OptimizerConfig(ema_decay=0.98)},
    "Prodigy": {"optimizer": OptimizerConfig("prodigy"), "learning_rate": 0.0},
}
GROUPS = {
    "trainers": LEARNERS,
    "rates": RATES,
    "settings": tuple(Learner(f"ours, {name}", ours, TUNED | choice) for name, choice in SETTINGS.items()),
}
RATIOS = [("ours, default", f"{mode}, {rate}") for rate in ("default", "tuned") for mode in ("native", "bypass")]


@dataclass(frozen=True)
class Result:
    """One run. `learned` is 0 for the base and 1 for true pictures through the VAE."""

    marks: Marks
    learned: float
    seconds: float = nan


COLUMNS: dict[str, Callable[[Result], float]] = {
    "loss": lambda result: result.marks.loss,
    "overlap": lambda result: result.marks.overlap,
    "colour": lambda result: result.marks.colour,
    "error": lambda result: result.marks.error,
    "learned": lambda result: result.learned,
    "change": lambda result: result.marks.change,
    "s": lambda result: result.seconds,
    "learned / min": lambda result: 60 * result.learned / result.seconds,
}
Row = list[list[Result]]  # of one learner or reference, by concept and then seed


def examine(exam: Exam, task: Task, learners: Sequence[Learner], seeds: int) -> dict[str, list[Result]]:
    """Every learner once per seed, in an order that rotates, by name; before them what they are to be held against."""
    references = exam.references()
    start, end = (references[name].error for name in (BASE, DECODED))

    def result(marks: Marks, *seconds: float) -> Result:
        return Result(marks, (start - marks.error) / (start - end), *seconds)

    found = {name: [result(marks)] for name, marks in references.items()} | {one.name: [] for one in learners}
    for seed in range(seeds):
        turn = seed % len(learners)
        for learner in (*learners[turn:], *learners[:turn]):
            file, seconds = learner.learn(task, seed)
            found[learner.name].append(result(exam.marks(file), seconds))
            last = found[learner.name][-1]
            print(f"  {learner.name}, seed {seed}: loss {last.marks.loss:.4f}, learned {last.learned:.2f}", flush=True)
    return found


def show(title: str, rows: Mapping[str, Row]) -> None:
    """One line per row: over its seeds, the mean of the concepts."""
    cells = ([_cell(_values(row, column)) for column in COLUMNS.values()] for row in rows.values())
    table(title, ("", *COLUMNS), [(name, *line) for name, line in zip(rows, cells, strict=True)])


def ratios(rows: Mapping[str, Row]) -> None:
    """Ours divided by ComfyUI's, within each seed, of the means over concepts."""
    lines = []
    for mine, other in RATIOS:
        pairs = [zip(_values(rows[mine], c), _values(rows[other], c), strict=True) for c in COLUMNS.values()]
        lines.append((f"{mine} / {other}", *(_cell([a / b for a, b in pair]) for pair in pairs)))
    table("ratios", ("", *COLUMNS), lines)


def _values(row: Row, column: Callable[[Result], float]) -> list[float]:
    """By seed, the mean over concepts."""
    return [mean(column(result) for result in results) for results in zip(*row, strict=True)]


def _cell(values: list[float]) -> str:
    return "" if isnan(values[0]) else str(Spread.of(values))


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--steps", type=int, default=200, help="of every run (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step (%(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="of every LoRA (%(default)s)")
    parser.add_argument("--concepts", nargs="+", choices=WORDS, default=WORDS[:4], help="the new words to learn")
    parser.add_argument("--compare", choices=GROUPS, default="trainers", help="what with what (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="of those compared, by the ends of their names"
    )
    options = begin(parser)
    learners = [one for one in GROUPS[options.compare] if not options.only or one.name.endswith(tuple(options.only))]
    words, seeds = (WORDS[:1], 1) if options.quick else (options.concepts, options.rounds)
    base, rows = load_base(), defaultdict(list)
    print(f"{options.steps} steps of batch {options.batch}, rank {options.rank}, {seeds} seed(s)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for concept in (one for one in CONCEPTS if one.word in words):
            task = Task.of(base, concept, Path(folder, concept.word), options.steps, options.batch, options.rank)
            found = examine(Exam(base, concept), task, learners, seeds)
            show(str(concept), {name: [results] for name, results in found.items()})
            for name, results in found.items():
                rows[name].append(results)
    show(f"mean of {len(words)} concepts", rows)
    if options.compare == "trainers" and not options.only:
        ratios(rows)


if __name__ == "__main__":
    main()
