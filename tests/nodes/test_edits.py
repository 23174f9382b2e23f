"""Runs of edits: learned with their references, resumed exactly, and judged on held-out pictures, whose references
count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode, run_node
from harness.edits import OTHERS, Edits
from harness.runs import cancelled, train
from harness.session import training_session
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.plan import Measures
from lora_loom.nodes.bridge.session.memory_plan import Planner
from lora_loom.nodes.bridge.session.rehearsal import Job
from lora_loom.nodes.bridge.session.session import trainable
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.previews import TrainingPreviews
from node_helpers import conditioning_set_values
from torch import Tensor

pytestmark = pytest.mark.usefixtures("runs")
PREVIEWS = {field.id: field.default for field in TrainingPreviews.GET_SCHEMA().inputs}
PREVIEWS |= {"every": 0, "width": 64, "height": 64, "steps": 1, "cfg": 1.0}
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


@pytest.mark.parametrize("family", ["krea2", "qwen_image"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(models, runs: Path, family: str) -> None:
    trio, data = models(family), edits(4, flip=True)
    shown = run_node(TrainingPreviews, **PREVIEWS)[0]
    choices = {"steps": 4, "previews": shown, "preservation": 0.5, "preserve": "cat"}
    whole = train(trio, data, run_name="whole", **choices)
    with cancelled(trio, forward=9):
        train(trio, data, run_name="cut", **choices)
    again = train(trio, data, run_name="cut", **choices)
    assert again.loss_map == whole.loss_map and len(whole.loss_map["loss"]) == 4
    assert all(torch.equal(value, whole.lora_model[name]) for name, value in again.lora_model.items())
    plain = train(trio, edits(4, use_references=False, references=None), run_name="plain", steps=4)
    assert plain.loss_map != whole.loss_map


@pytest.mark.parametrize("family", ["krea2"])
def test_previews_show_the_references(models, runs: Path, family: str) -> None:
    sheets = {}
    for name, data in (("own", edits(4)), ("other", edits(4, swapped=True)), ("none", edits(4, references=None))):
        shown = run_node(TrainingPreviews, **PREVIEWS)[0]
        sheets[name] = train(models(family), data, run_name=name, steps=1, previews=shown).sheet
    assert sheets["own"].shape[2] > sheets["none"].shape[2], "the reference is beside"
    left = slice(0, 60)
    assert not torch.equal(sheets["own"][:, :, left], sheets["other"][:, :, left]), "the base drew from it"


def test_held_out_edits_are_learned_and_swapped_references_lose(models) -> None:
    """By the loss on held-out colours, most of whose answer is in the reference alone, at much noise."""
    trio = models("flux1")
    with training_session(trio.model, checkpointing=False) as patcher:
        problem = Edits(patcher, trio.clip)
        with attached(problem.factors.branches):
            before = problem.looked()
            for _ in range(60):
                problem.step()
            own = problem.looked()
            assert own < 0.8 * before, "held-out edits are learned"
            assert problem.looked(OTHERS) > 1.25 * own, "and another's reference loses"


def test_the_memory_that_is_foreseen_counts_references(models) -> None:
    """Of a reference as large as the picture, a step's activations are more by about its tokens."""
    trio = models("krea2")
    latent = tiny.latent_shape(trio.model, tall=4)
    plain = encode(trio.clip, "x")
    shown = conditioning_set_values(plain, {"reference_latents": [torch.zeros(latent)] * 2})
    shown = conditioning_set_values(shown, {"reference_latents_method": "index"})
    config = TrainConfig(steps=1, learning_rate=1e-3, batch_size=2)
    with trainable(trio.model) as patcher:
        planner = Planner(patcher, None)
        jobs = [Job(LoraConfig(4, 4.0, "attention"), config, latent[1:], text, 64) for text in (plain, shown)]
        without, beside = (planner.trace(job, Measures(False)).peak for job in jobs)
    assert 2 * without < beside < 4 * without
