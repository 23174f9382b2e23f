"""Measures what references are worth to an edit LoRA: held-out edits with their own references, with those of others,
and learned without any.

On a small FLUX.1 with random weights, as the demo base takes no references: pictures of one colour, which only the
reference tells. `loss` is that of the velocity of 8 held-out pictures at fixed noise, at three noise levels; a LoRA of
rank 16 on attention and MLP, 32 pictures to learn from, batches of 8, AdamW.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean, stdev

import _comfy  # noqa: F401  first: makes comfy importable
import tiny
import torch
from _measure import arguments, begin, table
from harness.edits import HELD, OTHERS, Edits
from harness.session import training_session
from lora_loom.lora_core.training.inject import attached

LEVELS = (0.5, 0.8, 0.95)


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
    options = arguments(__doc__, steps=300, seeds=3)
    begin(__doc__)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        trio = tiny.load("flux1", Path(folder))
        found: dict[str, list[list[float]]] = {}
        for seed in range(options.seeds):
            for references in (True, False):
                for name, losses in measured(trio, seed, options.steps, references).items():
                    found.setdefault(name, []).append(losses)
    rows = {"base": "base model", "none": "learned without references", "own": "own references"}
    rows["others"] = "those of other pictures"
    spread = [
        [rows[name], *(f"{mean(level):.2f} +- {stdev(level):.2f}" for level in zip(*found[name], strict=True))]
        for name in rows
    ]
    table(["held-out edits", *(f"noise {level}" for level in LEVELS)], spread)


if __name__ == "__main__":
    main()
