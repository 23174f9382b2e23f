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
PREVIEWS = {field.id: field.default for field in TrainingPreviews.GET_SCHEMA().inputs}
PREVIEWS |= {"every": 0, "width": 64, "height": 64, "steps": 1, "cfg": 1.0}
VALIDATION = {field.id: field.default for field in TrainingValidation.GET_SCHEMA().inputs}
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


@pytest.mark.parametrize("family", ["flux2"])
def test_previews_show_the_references(models, runs: Path, family: str) -> None:
    sheets = {}
    for name, data in (("own", edits(4)), ("other", edits(4, swapped=True)), ("none", edits(4, references=None))):
        shown = run_node(TrainingPreviews, **PREVIEWS)[0]
        sheets[name] = train(models(family), data, run_name=name, steps=1, previews=shown).sheet
    assert sheets["own"].shape[2] > sheets["none"].shape[2], "the reference is beside"
    left = slice(0, 60)
    assert not torch.equal(sheets["own"][:, :, left], sheets["other"][:, :, left]), "the base drew from it"


def test_held_out_edits_are_learned_and_swapped_references_lose(models, runs: Path) -> None:
    """By the loss on held-out colours, whose answer is in the reference alone."""
    choices = {"steps": 150, "rank": 8, "alpha": 8.0, "learning_rate": 3e-3, "targets": "attention+mlp", "batch_size": 4}
    judged = run_node(TrainingValidation, **{**VALIDATION, "every": 150, "held_out": 0.25, "draws": 4})[0]
    ends = {}
    for name, data in (("own", edits(24)), ("swapped", edits(24, swapped=True))):
        out = train(models("flux2"), data, run_name=name, validation=judged, **choices)
        ends[name] = out.report
        print(out.report)
    assert False
