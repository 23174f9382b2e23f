"""Train LoRA on pairs of LoRA Preference Pairs, in real models: the loss, the run, and what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.calls import encode, run_node
from harness.problem import Problem
from harness.runs import cancelled, kept, on_forward, read, train
from harness.session import training_session
from lora_loom.lora_core.data.task import LearnPreference
from lora_loom.lora_core.training.config import TrainConfig, Validation
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.preference import Preference
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.preference_pairs import PreferencePairs
from PIL import Image

SHAPES = ((80, 80), (64, 64), (96, 48), (100, 50))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return paired(tmp_path_factory.mktemp("pairs"))


def paired(folder: Path, beta: float = 2000.0) -> Any:
    rng, sets = np.random.default_rng(0), []
    for name in ("liked", "disliked"):
        (folder / name).mkdir(parents=True)
        for index, (width, height) in enumerate(SHAPES):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
        sets.append(read(folder / name, "sks"))
    return run_node(PreferencePairs, liked=sets[0], disliked=sets[1], beta=beta)[0]


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_loss_is_that_of_forwards_of_one_picture_each(models, family: str) -> None:
    """Of a model that predicts noise and a flow model, with the LoRA on and off."""
    trio, beta = models(family), 400.0
    task = Preference(LearnPreference(beta))
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), training_session(trio.model, False) as patcher:
        problem = Problem.of_model(patcher, conditioning)
        denoiser, noise, sigma = problem.denoiser, problem.noise, problem.sigma
        both = torch.stack([problem.x0, problem.x0.roll(1, -1)], 1)
        with attached(problem.factors.branches):
            given = TrainConfig(), problem.factors, denoiser, both, noise, sigma, problem.conditions
            found = task.losses(*given)
            errors = torch.empty(2, 2, 2)
            for which in range(2):
                with problem.factors.silence():
                    errors[0, which] = _errors(denoiser, both[:, which], noise, sigma, problem.conditions)
                errors[1, which] = _errors(denoiser, both[:, which], noise, sigma, problem.conditions)
    (base_w, base_l), (own_w, own_l) = errors
    wanted = -torch.log(torch.sigmoid(-beta / 2 * ((own_w - base_w) - (own_l - base_l)).double()))
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=1e-3, atol=1e-6)
    assert float((wanted.detach() - math.log(2)).abs().max()) > 0.01


def _errors(denoiser: ComfyDenoiser, x0: Any, noise: Any, sigma: Any, conditions: Any) -> torch.Tensor:
    """Of the noise or of the velocity, from ComfyUI's estimate of the picture, one by one."""
    found = []
    for row in range(len(x0)):
        one = slice(row, row + 1)
        level = sigma[one]
        x_t = denoiser.noised(x0[one], noise[one], level)
        estimate = denoiser.denoised(x_t, level, conditions[row : row + 1])
        flow = hasattr(denoiser.sampling, "shift")
        scale = level.view(-1, *(1 for _ in x0.shape[1:]))
        told, true = (x_t - estimate) / scale, noise[one] - x0[one] if flow else noise[one]
        found.append((told - true).square().mean().cpu())
    return torch.stack(found)


def test_a_run_of_pairs(models, pairs: Any, runs: Path) -> None:
    trio = models("sd15")
    watch = Validation(held_out=0.25, every=2, draws=2)
    with on_forward(trio) as sizes:
        made = train(trio, pairs, validation=watch, batch_size=1)
    assert set(sizes[:-4]) == {2} and sizes[-4:] == [1] * 4, "pairs in each forward, and last the liked pictures alone"
    assert made.loss_map["loss"][0] == pytest.approx(math.log(2), rel=1e-4)
    assert "Win rate: the LoRA prefers the liked picture of " in made.report and "of 1 pairs, " in made.report
    assert "No strength is suggested: the run learns from preference pairs" in made.report
    recipe = json.loads(made.adapter.metadata["lora_loom.settings"])
    assert recipe["dataset"]["task"] == {"name": "preference pairs", "beta": 2000.0}
    assert recipe["dataset"]["count"] == 2 * len(SHAPES), "what is disliked is learned from, too"
    whole = kept(runs)
    again = train(trio, pairs, validation=watch, batch_size=1)
    assert again.report == made.report and kept(runs) == whole, "finished before"


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(models, pairs: Any, runs: Path, tmp_path: Path) -> None:
    trio = models("flux1")
    whole = train(trio, pairs, run_name="whole", batch_size=1)
    with cancelled(trio, 6):
        train(trio, pairs, run_name="cut", batch_size=1)
    gone_on = train(trio, pairs, run_name="cut", batch_size=1)
    assert gone_on.loss_map == whole.loss_map
    for name, layer in whole.adapter.layers.items():
        assert torch.equal(layer.lora_B, gone_on.adapter.layers[name].lora_B)
    other = train(trio, paired(tmp_path, beta=100.0), run_name="cut", batch_size=1)
    assert other.loss_map != whole.loss_map, "another beta is another run"
