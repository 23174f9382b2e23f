"""LoRA Slider: pictures that the base draws once, prompts that are apart, pairs, and runs that move both ways."""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_extras.nodes_train import LoraModelLoader
from harness.calls import encode, run_node
from harness.runs import STEPS, cancelled, kept, on_forward, read, train
from lora_loom.lora_core.data.slider import Texts, slider_of
from lora_loom.lora_core.data.task import LearnSliderPairs
from lora_loom.lora_core.drawing.sheet import SheetRow, sheet
from lora_loom.lora_core.training.config import Validation
from lora_loom.lora_core.training.slider_strip import where
from lora_loom.nodes.bridge.host.node_outputs import as_picture
from lora_loom.nodes.layers import LoraLayers
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.slider import LoraSlider
from lora_loom.nodes.validation import TrainingValidation
from PIL import Image

import nodes

pytestmark = pytest.mark.usefixtures("runs")
PROMPTS = {"more": "red", "less": "blue", "subject": "a {} circle on white\na star on white"}
WATCHED = {
    "held_out": 0.0, "every": 100, "draws": 2, "patience": 4, "early_stop": False, "keep": "last", "seed": 0,
}  # fmt: skip
LAYERS = {
    "scaling": "alpha / rank", "lora_plus_ratio": 1.0, "rank_dropout": 0.1, "layer_dropout": 0.0, "max_norm": 0.0,
    "per_layer": "", "dora": True,
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
    data = slider(trio, **{"more": "cat", "less": "dog", "subject": ""})[0]
    whole = run(trio, data)
    first = kept(runs)
    with cancelled(trio, 12):
        run(trio, data, run_name="again")
    again = run(trio, data, run_name="again")
    assert first and all(torch.equal(whole.lora_model[key], again.lora_model[key]) for key in whole.lora_model)


@pytest.mark.parametrize("learns", ["prompts", "pairs"])
def test_prompts_are_preserved_beside_it(models, learns: str, pairs: Any, runs: Path):
    """With DoRA and text encoders, exactly resumed."""
    trio = models("sd15")
    data = slider(trio, **{"more": "cat", "less": "dog", "subject": ""})[0] if learns == "prompts" else pairs
    asked = {"preserve": "a house, a yellow cross", "preservation": 1.0, "text_rank": 2}
    asked["layers"] = run_node(LoraLayers, **LAYERS)[0]
    whole = run(trio, data, **asked)
    kept = json.loads(next(runs.rglob("run.json")).read_text("utf-8"))
    assert "a house" in json.dumps(kept)
    plain = run(trio, data, **{**asked, "preserve": "", "preservation": 0.0}, run_name="plain")
    with cancelled(trio, 15):
        run(trio, data, **asked, run_name="again")
    again = run(trio, data, **asked, run_name="again")
    for key, value in whole.lora_model.items():
        assert torch.equal(value, again.lora_model[key])
    assert any(not torch.equal(value, plain.lora_model[key]) for key, value in whole.lora_model.items())


def test_previews_are_strips_over_strengths(models, runs):
    trio = models("wan_demo")
    data = slider(trio, pictures=2, subject="a {} star on white")[0]
    sampling = {"width": 64, "height": 64, "steps": 2, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
    shown = {"prompts": "", "negative": "", "every": 0, "seed": 11, "strength": 1.0, **sampling}
    found = run(trio, data, lr_schedule="constant", learning_rate=0.02, previews=run_node(TrainingPreviews, **shown)[0])
    strengths, drawn = (-2.0, -1.0, 0.0, 1.0, 2.0), []
    for strength in strengths:
        model = trio.model
        if strength:
            (model,) = run_node(LoraModelLoader, model=model, lora=found.lora_model, strength_model=strength)
        latent = sampled_by(trio, model, "a star on white", sampling)
        drawn.append(as_picture(latent))
    wanted = np.asarray(
        sheet([SheetRow("a star on white", drawn, [f"{each:g}" for each in strengths])], f"step {STEPS} of {STEPS}")
    )
    page = np.asarray(Image.open(next(runs.rglob(f"step_{STEPS:06d}.png"))).convert("RGB"))
    assert page.shape == wanted.shape and np.abs(page.astype(int) - wanted).max() <= 3
    assert np.abs(found.sheet[0].numpy() * 255 - page).max() < 0.6
    assert where([[each] for each in drawn])[:40] in found.report
    assert all(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() > 2 for a, b in pairwise(drawn))


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ((0, 10, 20, 30, 40), "all the way from -2 to 2: 25 % of the change .* 50 % .* (25 % below 0), 25 % above 1"),
        ((38, 38, 78, 120, 118), "hardly change beyond -1 and 1: 0 % .* 98 % .* (48 % below 0), 2 % .* half the guid"),
        ((0, 50, 55, 60, 110), "most beyond -1 and 1: 45 % .* Raise the guidance"),
        ((5, 5, 5, 5, 5), ""),
    ],
)
def test_where_pictures_change(places: tuple[int, ...], said: str):
    columns = [[Image.new("RGB", (4, 4), (place,) * 3), Image.new("RGB", (4, 4))] for place in places]
    assert re.search(re.sub(r"([()])", r"\\\1", said), where(columns)) if said else not where(columns)


def test_where_pictures_change_is_told_in_strengths_of_the_previews():
    columns = [[Image.new("L", (4, 4), place)] for place in (38, 38, 78, 120, 118)]
    assert where(columns, 0.5).startswith(
        "Pictures hardly change beyond -0.5 and 0.5: 0 % of the change lies below -0.5"
    )


@torch.inference_mode()
def sampled_by(trio: Any, model: Any, prompt: str, sampling: dict[str, Any]) -> torch.Tensor:
    """Return what KSampler and VAE Decode make of it."""
    (latent,) = nodes.EmptyLatentImage().generate(sampling["width"], sampling["height"])
    settings = [sampling[name] for name in ("steps", "cfg", "sampler_name", "scheduler")]
    (samples,) = nodes.common_ksampler(model, 11, *settings, encode(trio.clip, prompt), encode(trio.clip, ""), latent)
    return nodes.VAEDecode().decode(trio.vae, samples)[0].reshape(-1, 64, 64, 3)


UNUSED = {"model": None, "clip": None, "vae": None, "more": "", "less": "", "subject": ""}


def side(folder: Path, shift: int, names: str = "abc", size: tuple[int, int] = (64, 64)) -> Any:
    """The same noise for each name, brighter by `shift`."""
    folder.mkdir()
    for name in names:
        noise = np.random.default_rng(ord(name)).integers(60, 190, (*size[::-1], 3))
        Image.fromarray((noise + shift).astype(np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a street {name}")
    return read(folder, "")


def of_pictures(high: Any = None, low: Any = None, **changes: Any) -> Any:
    pictures = {"more_pictures": high, "less_pictures": low}
    return run_node(LoraSlider, **{**UNUSED, **CHOICES, **pictures, **changes})


@pytest.fixture
def pairs(tmp_path: Path) -> Any:
    return of_pictures(side(tmp_path / "more", 40), side(tmp_path / "less", -40))[0]


def test_pairs_are_found_by_name(tmp_path: Path) -> None:
    data, report = of_pictures(side(tmp_path / "more", 40, "abd"), side(tmp_path / "less", -40, "abcd"))
    assert data.task == LearnSliderPairs(2.0)
    assert [(Path(each.source).parent.name, each.caption) for each in data.examples] == [
        ("more", f"a street {name}") for name in "abd"
    ]
    assert all(float((each.pixels - each.partner.pixels).mean()) > 0.2 for each in data.examples)
    assert report.startswith("a slider that draws the pictures with more at 0.25 and those with less at -0.25\n3 pairs")
    assert "left out c.png: no picture with more has its name" in report


def test_pictures_that_cannot_be_a_slider_are_told(tmp_path: Path) -> None:
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
            of_pictures(*given)
    with pytest.raises(ValueError, match="pictures and also prompts in more and subject; empty these"):
        of_pictures(more, less, more="old", subject="a cat")
    with pytest.raises(ValueError, match="more has no prompt; .* or connect more_pictures and less_pictures"):
        of_pictures()
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
    assert "A slider is for strengths from -2 to 2" in made.report and "No strength" not in made.report
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
