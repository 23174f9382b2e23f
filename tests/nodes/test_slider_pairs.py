"""LoRA Slider on pairs of pictures: how they are found, what is told of bad ones, and a run in real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.calls import run_node
from harness.runs import cancelled, on_forward, read, train
from lora_loom.lora_core.data.task import LearnSliderPairs
from lora_loom.lora_core.training.config import Validation
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.slider import LoraSlider
from PIL import Image

pytestmark = pytest.mark.usefixtures("runs")
PROMPTS = {"more": "", "less": "", "subject": ""}
CHOICES = {"guidance": 2.0, "resolution": 64, "pictures": 4, "seed": 3}
UNUSED = {"model": None, "clip": None, "vae": None}


def side(folder: Path, shift: int, names: str = "abc", size: tuple[int, int] = (64, 64)) -> Any:
    """The same noise for each name, brighter by `shift`."""
    folder.mkdir()
    for name in names:
        noise = np.random.default_rng(ord(name)).integers(60, 190, (*size[::-1], 3))
        Image.fromarray((noise + shift).astype(np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a street {name}")
    return read(folder, "")


def slider(high: Any = None, low: Any = None, **changes: Any) -> Any:
    pictures = {"more_pictures": high, "less_pictures": low}
    return run_node(LoraSlider, **{**UNUSED, **PROMPTS, **CHOICES, **pictures, **changes})


@pytest.fixture
def pairs(tmp_path: Path) -> Any:
    return slider(side(tmp_path / "more", 40), side(tmp_path / "less", -40))[0]


def test_pairs_are_found_by_name(tmp_path: Path) -> None:
    data, report = slider(side(tmp_path / "more", 40, "abd"), side(tmp_path / "less", -40, "abcd"))
    assert data.task == LearnSliderPairs(2.0)
    assert [(Path(each.source).parent.name, each.caption) for each in data.examples] == [
        ("more", f"a street {name}") for name in "abd"
    ]
    assert all(float((each.pixels - each.partner.pixels).mean()) > 0.2 for each in data.examples)
    assert report.startswith("a slider that draws the pictures with more at 0.5 and those with less at -0.5\n3 pairs")
    assert "left out c.png: no picture with more has its name" in report


def test_what_cannot_be_a_slider_is_told(tmp_path: Path) -> None:
    more, less = side(tmp_path / "more", 40, "ab"), side(tmp_path / "less", -40, "ab")
    others, wide = side(tmp_path / "others", 0, "xy"), side(tmp_path / "wide", 0, "ab", (96, 48))
    for given, said in (
        ((more, None), "more_pictures is connected and less_pictures is not"),
        ((None, less), "less_pictures is connected and more_pictures is not"),
        ((more, others), "no pair of a picture with more and a picture with less .a.png, b.png: no picture with less"),
        ((more, wide), "it is 64 x 64 and its partner 80 x 48 after cropping"),
        ((more, more), "its partner is the same picture"),
    ):
        with pytest.raises(ValueError, match=said):
            slider(*given)
    with pytest.raises(ValueError, match="pictures and also prompts in more and subject; empty these"):
        slider(more, less, more="old", subject="a cat")
    with pytest.raises(ValueError, match="more has no prompt; .* or connect more_pictures and less_pictures"):
        slider()
    assert LoraSlider.validate_inputs(more="", less=" ") is True
    assert "less has no prompt" in LoraSlider.validate_inputs(more="old", less="")


def test_a_run_of_pairs(models, pairs: Any, runs: Path) -> None:
    trio, watched = models("wan_demo"), Validation(held_out=0.34, every=100, draws=2)
    shown = {"prompts": "", "negative": "", "every": 0, "seed": 1, "strength": 1.0, "width": 64, "height": 64}
    shown |= {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    with on_forward(trio) as sizes:
        previews = run_node(TrainingPreviews, **shown)[0]
        made = train(trio, pairs, batch_size=1, learning_rate=2e-3, validation=watched, previews=previews)
    assert sizes and set(sizes) <= {1, 2}
    assert "It moves the model's answer" in made.report or "The slider does not move" in made.report
    assert "No strength is suggested: the run learns from slider pictures" in made.report
    recipe = json.loads(made.adapter.metadata["lora_loom.settings"])
    assert recipe["dataset"]["task"] == {"name": "slider pictures", "guidance": 2.0}
    assert recipe["dataset"]["count"] == 6, "both sides are learned from"
    page = Image.open(next(runs.rglob("step_*.png")))
    assert page.width > 5 * 64, "a strip over strengths"


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(models, pairs: Any) -> None:
    trio = models("sd15")
    whole = train(trio, pairs, run_name="whole", batch_size=1)
    with cancelled(trio, 7):
        train(trio, pairs, run_name="cut", batch_size=1)
    again = train(trio, pairs, run_name="cut", batch_size=1)
    assert again.loss_map == whole.loss_map
    assert all(torch.equal(whole.lora_model[key], again.lora_model[key]) for key in whole.lora_model)
