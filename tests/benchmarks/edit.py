"""Measures what references are worth to an edit LoRA, on held-out edits.

On a small FLUX.1 with random weights, as the demo base takes no references: pictures of one colour, which only the
reference tells. `loss` is that of the velocity of 8 held-out pictures at fixed noise, at three noise levels; a LoRA of
rank 16 on attention and MLP, 32 pictures to learn from, batches of 8, AdamW.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import _comfy  # noqa: F401  first: makes comfy importable
import tiny
from _measure import arguments, begin, table
from harness.edits import HELD, OTHERS, Edits
from harness.session import training_session
from lora_loom.lora_core.training.inject import attached

LEVELS = (0.5, 0.8, 0.95)
ROWS = {
    "base": "base model", "none": "learned without references", "own": "learned with references",
    "others": "the same, given those of other pictures",
}  # fmt: skip


def measured(trio: tiny.Loaded, seed: int, steps: int, references: bool) -> dict[str, list[float]]:
    """Losses by level: of the base, and of the LoRA with own references and with those of others."""
    with training_session(trio.model, checkpointing=False) as patcher:
        problem = Edits(patcher, trio.clip, seed, references)
        with attached(problem.factors.branches):
            base = [problem.looked(u=u) for u in LEVELS]
            for _ in range(steps):
                problem.step()
            own, others = ([problem.looked(shown, u) for u in LEVELS] for shown in (HELD, OTHERS))
    return {"base": base, "own": own, "others": others} if references else {"none": own}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of data and LoRA (%(default)s)")
    options = begin(parser)
    steps, seeds = (20, 2) if options.quick else (options.steps, options.seeds)
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trio = tiny.load("flux1", Path(folder))
        for seed, references in product(range(seeds), (True, False)):
            for name, losses in measured(trio, seed, steps, references).items():
                found.setdefault(name, []).append(losses)
    rows = [
        [row, *(f"{mean(level):.2f} +- {stdev(level):.2f}" for level in zip(*found[name], strict=True))]
        for name, row in ROWS.items()
    ]
    title = f"loss of held-out edits after {steps} steps, mean and deviation of {seeds} seeds"
    table(title, ["", *(f"noise {level}" for level in LEVELS)], rows)


if __name__ == "__main__":
    main()
