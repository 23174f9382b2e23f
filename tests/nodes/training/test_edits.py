"""Runs of edits: learned with their references, resumed exactly, and judged on held-out pictures, whose references
count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import run_node
from harness.runs import cancelled, kept, train
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.validation import TrainingValidation
from torch import Tensor

pytestmark = pytest.mark.usefixtures("runs")
CHOICES = {"folder": "", "trigger": "ohwx", "resolution": 64, "repeats": 1, "bucket_step": 16}


def colours(count: int, seed: int = 0) -> Tensor:
    """Pictures of one colour each, (count, 64, 64, 3)."""
    drawn = torch.rand(count, 1, 1, 3, generator=torch.Generator().manual_seed(seed))
    return drawn.expand(count, 64, 64, 3).contiguous()


def edits(count: int = 12, swapped: bool = False, **changes: Any) -> Any:
    """A LORA_DATASET of edits: the colour of the reference, turned around. Swapped, each has another's."""
    references = colours(count)
    shown = references.roll(1, 0) if swapped else references
    return run_node(LoraDataset, **{**CHOICES, "images": 1 - references, "references": shown, **changes})[0]


@pytest.mark.parametrize("family", ["flux2", "qwen_image"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(models, runs: Path, family: str) -> None:
    trio, data = models(family), edits(4, flip=True)
    choices = {"steps": 4, "previews": run_node(TrainingPreviews, **PREVIEWS)[0], "preservation": 0.5, "preserve": "cat"}
    whole = train(trio, data, run_name="whole", **choices)
    with cancelled(trio, forward=9):
        train(trio, data, run_name="cut", **choices)
    again = train(trio, data, run_name="cut", **choices)
    assert again.loss_map == whole.loss_map and len(whole.loss_map["loss"]) == 4
    assert all(torch.equal(value, whole.lora_model[name]) for name, value in again.lora_model.items())
    plain = train(trio, edits(4, use_references=False, references=None), run_name="plain", steps=4)
    assert plain.loss_map != whole.loss_map
