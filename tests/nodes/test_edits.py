"""Runs of edits: learned with their references, resumed exactly, and judged on held-out pictures, whose references
count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode, run_node
from harness.runs import cancelled, train
from harness.session import training_session
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.previews import TrainingPreviews
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
    trio, draw = models("flux1"), torch.Generator().manual_seed(0)
    ((text, values),) = encode(trio.clip, "x", guidance=1.0)
    shape = tiny.latent_shape(trio.model)
    colours = 2 * torch.randn(40, shape[1], 1, 1, generator=draw).expand(40, *shape[1:])
    learned, held = range(32), range(32, 40)
    with training_session(trio.model, checkpointing=False) as patcher:
        denoiser = ComfyDenoiser(patcher)

        def edit(latent: Tensor) -> Any:
            shown = {**values, "reference_latents": [patcher.model.process_latent_out(latent[None])]}
            return denoiser.condition([[text[:, :8].clone(), shown]], latent)

        conditions = [edit(latent) for latent in colours]
        layers = select(patcher.model.diffusion_model, LoraConfig(16, 16.0, "attention+mlp"), PREFIX)
        factors = Factors(layers, 16, 16.0, torch.Generator().manual_seed(1), device=denoiser.device)
        optimizer = torch.optim.AdamW([factors.flat], lr=1e-2, weight_decay=0)

        def loss(rows: list[int], shown: list[Any], u: Tensor, draw: torch.Generator) -> Tensor:
            x0, sigma = colours[rows], denoiser.sigma(u)
            return objective.loss(denoiser, x0, torch.randn(x0.shape, generator=draw), sigma, shown, ObjectiveConfig())

        @torch.no_grad()
        def looked(shown: list[Any]) -> float:
            levels = torch.full((len(held),), 0.9)
            return float(loss(list(held), shown, levels, torch.Generator().manual_seed(5)))

        own, other = [conditions[i] for i in held], [conditions[i] for i in (*held[1:], held[0])]
        with attached(factors.branches):
            before = looked(own)
            for _ in range(60):
                rows = torch.randperm(len(learned), generator=draw)[:8].tolist()
                factors.flat.grad.zero_()
                loss(rows, [conditions[i] for i in rows], torch.rand(8, generator=draw), draw).backward()
                factors.carry_back()
                optimizer.step()
            assert looked(own) < 0.8 * before, "held-out edits are learned"
            assert looked(other) > 1.25 * looked(own), "and another's reference loses"
