"""Several concepts in one run: kept apart, exactly resumed, compared at the end, and refused where they cannot be."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.calls import run_node
from harness.runs import cancelled, kept
from harness.runs import train as run
from lora_loom.lora_core.training.config import LoraConfig, Recipe, TrainConfig, Validation
from lora_loom.lora_core.training.validation import Pictures
from lora_loom.nodes.bridge.training import bleeding, checks
from lora_loom.nodes.bridge.training.samples import captions_to_encode
from lora_loom.nodes.combine_datasets import CombineDatasets
from lora_loom.nodes.dataset import LoraDataset
from PIL import Image

pytestmark = pytest.mark.usefixtures("runs")
train = partial(run, steps=8)


def named(folder: Path, trigger: str, *captions: str) -> Any:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(trigger))
    for index, caption in enumerate(captions):
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    given = {"folder": str(folder), "resolution": 64, "repeats": 1, "bucket_step": 16}
    return run_node(LoraDataset, trigger=trigger, **given)[0]


def joined(*sets: Any, **more: Any) -> Any:
    return run_node(CombineDatasets, datasets={f"dataset{i}": each for i, each in enumerate(sets)}, **more)[0]


def test_many_concepts_are_kept_apart_and_compared(models, tmp_path: Path) -> None:
    """With text encoders; each pair of them has its place in the table and in the charts."""
    words = ("sks", "ohwx", "zwx", "qrt")
    data = joined(
        *(named(tmp_path / word, word, f"{word} on a beach", f"a red {word}") for word in words), keep_apart=True
    )
    watched = Validation(held_out=0.0, every=4, draws=2)
    seen = train(models("sd15"), data, steps=4, validation=watched, text_rank=2, text_learning_rate=1e-3)
    table = next(part for part in seen.report.split("\n\n") if part.startswith("| pictures of |")).splitlines()
    assert table[0] == f"| pictures of | {' | '.join(f'with {word}' for word in (*words, 'no trigger'))} |"
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {word}" for word in words]
    assert all(line.count("|") == len(words) + 3 for line in table[2:])
    assert seen.charts.shape == (1, 768, 1024, 3)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("concepts")
    first = named(folder / "sks", "sks", "sks on a beach", "a red sks", "sks at night")
    return first, named(folder / "ohwx", "ohwx", "ohwx in a car", "a blue ohwx", "ohwx")


@pytest.mark.parametrize("family", ["sd15", "wan_demo"])
def test_concepts_are_kept_apart_in_every_fourth_step(models, sets, runs: Path, family: str) -> None:
    """Exactly resumed; without quiet directions, and beside them."""
    trio, data = models(family), joined(*sets, keep_apart=True)
    quiet = "off" if family == "sd15" else "directions"
    whole = train(trio, data, quiet=quiet)
    files = kept(runs)
    settings = (next(runs.iterdir()) / "run.json").read_text("utf-8")
    assert '"preserve_every": 4' in settings and '"preservation": 2' in settings
    shutil.rmtree(runs)
    if quiet == "off":
        plain = train(trio, joined(*sets), quiet="off")
        assert whole[1]["loss"][:4] == plain[1]["loss"][:4], "up to the first step that preserves"
        assert whole[1]["loss"][4] != plain[1]["loss"][4]
        shutil.rmtree(runs)
    with cancelled(trio, 6):
        train(trio, data, quiet=quiet)
    train(trio, data, quiet=quiet)
    again = kept(runs)
    assert {name: again[name] for name in files} == files


def test_captions_without_their_triggers_are_encoded_where_concepts_are_kept_apart(sets) -> None:
    bare = {"on a beach", "a red", "at night", "in a car", "a blue"}
    own = {example.caption for one in sets for example in one.examples} | {""}
    assert captions_to_encode(joined(*sets, keep_apart=True), ()) == own | bare
    assert captions_to_encode(joined(*sets), ()) == own
    assert captions_to_encode(joined(joined(*sets, keep_apart=True)), ()) == own | bare, "of sets combined before"


def test_a_run_that_is_watched_compares_its_concepts(models, sets, runs: Path) -> None:
    """At the end, in report and charts; the LoRA is that of the run that is not watched."""
    trio, data, watched = models("sd15"), joined(*sets), Validation(held_out=0.0, every=4, draws=2)
    bare = train(trio, data, steps=4)
    shutil.rmtree(runs)
    seen = train(trio, data, steps=4, validation=watched)
    assert all(torch.equal(value, seen[0][name]) for name, value in bare[0].items())
    table = next(part for part in seen.report.split("\n\n") if part.startswith("| pictures of |")).splitlines()
    assert table[0] == "| pictures of | with sks | with ohwx | with no trigger |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| sks", "| ohwx"]
    assert "by the loss of 6 training pictures in noise:" in seen.report
    assert "| concept | base model | best | change |" in seen.report and "\n| ohwx | " in seen.report
    assert seen.charts.shape == (1, 768, 1024, 3)


def test_held_out_pictures_are_asked_for_where_there_are_some_of_each(sets) -> None:
    data, recipe = joined(*sets), Recipe(LoraConfig(), TrainConfig())
    assert bleeding.compared(data, recipe) == () and bleeding.captions(data, recipe) == set()
    for share, looked in ((0.34, 2), (0.0, 6)):
        watched = replace(recipe, validation=Validation(held_out=share, seed=3))
        shown, held_out = bleeding._shown(Pictures(data, watched), ("sks", "ohwx"))
        assert held_out is (share > 0) and len(shown) == looked
    assert bleeding.captions(data, watched) >= {"a red sks", "a red ohwx", "a red", "ohwx", "sks", ""}
    lone = Pictures(data, replace(recipe, validation=Validation(held_out=0.1)))
    assert bleeding._shown(lone, ("sks", "ohwx"))[1] is False, "one picture cannot be of both"


def test_triggers_that_cannot_be_told_apart_are_refused_before_anything_is_encoded(models, sets, tmp_path) -> None:
    trio = models("sd15")
    hook = trio.vae.first_stage_model.register_forward_pre_hook(lambda *_: pytest.fail("it was encoded"))
    with pytest.raises(ValueError, match="the trigger sks stands in the trigger sks dog, .*or switch off keep_apart"):
        joined(sets[0], named(tmp_path / "dog", "sks dog", "sks dog on a beach"), keep_apart=True)
    spelled = "caf\u00e9", "cafe\u0301"  # one letter, and two that look like it
    alike = joined(
        *(named(tmp_path / str(i), word, f"{word} on a beach") for i, word in enumerate(spelled)), keep_apart=True
    )
    with pytest.raises(ValueError, match="are the same tokens to this text encoder; choose another trigger"):
        train(trio, alike)
    hook.remove()


def test_triggers_that_overlap_are_told_where_they_are_not_kept_apart(models, sets, tmp_path) -> None:
    data = joined(sets[0], named(tmp_path / "dog", "sks dog", "sks dog on a beach"))
    told = checks.warnings(models("sd15").model, data)
    assert any(line.startswith("warning: the trigger sks stands in the trigger sks dog") for line in told)
