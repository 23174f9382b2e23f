"""LoRA Slider: pictures that the base draws once, prompts that are apart, and a run that moves both ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from harness.calls import run_node
from harness.runs import cancelled, kept, on_forward, train
from lora_loom.lora_core.data.slider import Texts, slider_of
from lora_loom.nodes.slider import LoraSlider
from lora_loom.nodes.validation import TrainingValidation

pytestmark = pytest.mark.usefixtures("runs")
PROMPTS = {"more": "red", "less": "blue", "neutral": "a {} circle on white\na star on white"}
WATCHED = {
    "held_out": 0.0, "every": 100, "draws": 2, "patience": 4, "early_stop": False, "keep": "last", "seed": 0,
}  # fmt: skip
CHOICES = {"guidance": 2.0, "resolution": 64, "pictures": 4, "seed": 3, "steps": 3}


def slider(trio: Any, **changes: Any) -> Any:
    models = {"model": trio.model, "clip": trio.clip, "vae": trio.vae}
    return run_node(LoraSlider, **{**models, **PROMPTS, **CHOICES, **changes})


def test_the_base_draws_once(models):
    trio = models("wan_demo")
    with on_forward(trio) as forwards:
        data, report = slider(trio)
        assert len(forwards) >= 4 * CHOICES["steps"]
    with on_forward(trio) as forwards:
        again = slider(trio)[0]
        assert not forwards, "they are kept on disk"
        other = slider(trio, pictures=6)[0]
        assert len(forwards) == CHOICES["steps"] * 2, "four of the six pictures are those of before"
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    assert data.fingerprint() != slider(trio, guidance=3.0)[0].fingerprint()
    assert [example.caption for example in data.examples] == ["a circle on white", "a star on white"] * 2
    assert data.task == slider_of(["a {} circle on white", "a star on white"], ["red"], ["blue"], 2.0)
    assert "a red circle on white  <->  a blue circle on white" in report
    assert all(example.pixels.shape == (64, 64, 3) for example in data.examples)
    assert len({example.digest for example in data.examples}) == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"more": "Red ", "less": "red"}, "'a Red circle on white' and 'a red circle on white' are the same"),
        ({"more": "red\ngreen\npink", "less": "blue\nblack"}, "more has 3 prompts and less has 2"),
        ({"less": ""}, "less has no prompt"),
        ({"less": "red"}, "more and less are both 'red'"),
        ({"vae": None}, "vae is empty"),
        ({"resolution": 68}, "is not a multiple of"),
    ],
)
def test_what_cannot_be_a_slider_is_told_before_anything_is_drawn(models, changes: dict, sentence: str):
    trio = models("wan_demo")
    with on_forward(trio) as forwards, pytest.raises(ValueError, match=sentence):
        slider(trio, **changes)
    assert not forwards


def test_texts():
    choice = slider_of(["an {} cat", "a dog"], ["old", "dark"], ["young"], 1.0)
    assert choice.neutral == ("an cat", "a dog")
    assert list(choice.texts("an cat")) == [
        Texts("an cat", "an old cat", "an young cat"), Texts("an cat", "an dark cat", "an young cat"),
    ]  # fmt: skip
    assert list(choice.texts("a dog"))[1] == Texts("a dog", "a dog, dark", "a dog, young")
    assert list(slider_of([], ["old"], ["young"], 1.0).texts("")) == [Texts("", "old", "young")]


run = partial(train, learning_rate=2e-3, rank=4, alpha=4.0, batch_size=1, run_name="slider")


def test_a_run_moves_both_ways_and_says_so(models):
    trio = models("wan_demo")
    watched = run_node(TrainingValidation, **WATCHED)[0]
    report = run(trio, slider(trio, pictures=2)[0], steps=40, lr_schedule="constant", validation=watched).report
    assert "% symmetric" in report


def test_a_run_resumes_exactly(models, runs):
    trio = models("sd15")
    data = slider(trio, **{"more": "cat", "less": "dog", "neutral": ""})[0]
    whole = run(trio, data)
    first = kept(runs)
    with cancelled(trio, 12):
        run(trio, data, run_name="again")
    again = run(trio, data, run_name="again")
    assert first and all(torch.equal(whole.lora_model[key], again.lora_model[key]) for key in whole.lora_model)


def test_previews_are_strips_over_strengths(models, runs):
    trio = models("wan_demo")
    data = slider(trio, pictures=2, neutral="a {} star on white")[0]
    sampling = {"width": 64, "height": 64, "steps": 2, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
    shown = {"prompts": "", "negative": "", "every": 0, "seed": 11, "strength": 1.0, **sampling}
    found = run(trio, data, lr_schedule="constant", learning_rate=0.02, previews=run_node(TrainingPreviews, **shown)[0])
    sheet = np.asarray(Image.open(next(runs.rglob("step_000004.png"))).convert("RGB"))
    assert np.abs(found.sheet[0].numpy() * 255 - sheet).max() < 0.6
    tiles = [sheet[-(64 + 8 + 22) :][:60, 8 + i * 72 : 8 + i * 72 + 64].astype(int) for i in range(5)]
    assert sheet.shape[1] == 8 + 5 * 72 and all(np.abs(a - b).max() > 2 for a, b in pairwise(tiles))
    model = nodes.LoraLoader().load_lora(trio.model, trio.clip, "x", 1, 1) if False else None
    assert model is None
