"""Runs of one name with other settings: what differs is said, nothing is overwritten, more steps go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from harness.calls import run_node
from harness.runs import STEPS, Outputs, cancelled, kept, on_forward, read, train, write_pictures
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.validation import TrainingValidation

import nodes

PREVIEWS = {"prompts": "a tree", "negative": "", "every": 0, "width": 64, "height": 64, "steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "simple", "seed": 0, "strength": 1.0}  # fmt: skip

VALIDATION = {"held_out": 0.25, "every": 2, "draws": 2, "patience": 2, "early_stop": False, "keep": "best", "seed": 0}


@contextmanager
def only_from_disk() -> Iterator[None]:
    """VAE, CLIP and loading of models fail inside."""

    def used(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be encoded or loaded")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("encode", "encode_tiled", "decode"):
            patch.setattr(comfy.sd.VAE, name, used)
        for name in ("tokenize", "encode_from_tokens", "encode_from_tokens_scheduled", "clone"):
            patch.setattr(comfy.sd.CLIP, name, used)
        patch.setattr(comfy.model_management, "load_models_gpu", used)
        yield


def same(found: Outputs, wanted: Outputs) -> bool:
    """In every output, the header of the LoRA included."""
    a, b = found.lora_model, wanted.lora_model
    tensors = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)
    pictures = torch.equal(found.sheet, wanted.sheet) and torch.equal(found.charts, wanted.charts)
    texts = (found.loss_map, found.report, found.adapter.metadata)
    return tensors and pictures and texts == (wanted.loss_map, wanted.report, wanted.adapter.metadata)


@pytest.mark.parametrize(
    ("family", "choices"),
    [("wan_demo", {"watched": True, "targets": "attention+mlp"}), ("sd15", {"text_rank": 2})],
)
def test_a_finished_run_comes_back_from_its_folder(models, data, runs: Path, family: str, choices: dict) -> None:
    trio, choices = models(family), dict(choices)
    if choices.pop("watched", False):
        validation = run_node(TrainingValidation, **VALIDATION)[0]
        choices |= {"validation": validation, "previews": run_node(TrainingPreviews, **PREVIEWS)[0]}
    first = train(trio, data, **choices)
    before = kept(runs)
    with only_from_disk():
        assert same(train(trio, data, **choices), first)
    assert kept(runs) == before
    with only_from_disk(), pytest.raises(AssertionError, match="nothing is to be"):
        train(trio, data, **choices, resume="start over")


def test_what_the_result_depends_on_is_looked_up_again(models, runs: Path, tmp_path: Path) -> None:
    trio, folder = models("wan_demo"), write_pictures(tmp_path / "pictures")
    first = train(trio, read(folder))

    def again(reason: str, steps: int = 0, **choices: Any) -> None:
        with only_from_disk(), pytest.raises(AssertionError, match="nothing is to be"):
            train(trio, read(folder), **choices)
        trained: list[bool] = []
        with on_forward(trio, lambda _: trained.append(torch.is_grad_enabled())):
            found = train(trio, read(folder), **choices)
        assert found.loss_map == first.loss_map and sum(trained) == steps, reason
        assert all(torch.equal(found.lora_model[name], value) for name, value in first.lora_model.items()), reason

    previews = run_node(TrainingPreviews, **PREVIEWS)[0]
    again("a preview is drawn", previews=previews)
    with only_from_disk():
        train(trio, read(folder), previews=previews)
    for path in list(folder.glob("0.*")):
        path.rename(folder / f"00{path.suffix}")
    again("a picture has another name, which the report tells")
    (lora,) = runs.rglob(f"step_{STEPS:06d}.safetensors")
    lora.write_bytes(lora.read_bytes()[:-4] + b"\0\0\0\0")
    again("the file was changed")
    again("and it still is")
    with cancelled(trio, 3):
        train(trio, read(folder), resume="start over")
    again("a run that started over was cut off", STEPS - 2)
    with only_from_disk():
        train(trio, read(folder))


def test_a_clones_patches_in_the_layers_are_not_this_models(models, data, runs: Path, make_lora, loras: Path) -> None:
    trio = models("wan_demo")
    make_lora("wan_demo", loras / "below.safetensors", preset="attention+mlp", size=0.2)
    model, clip = nodes.LoraLoader().load_lora(trio.model, trio.clip, "below.safetensors", 1.0, 1.0)
    above = train(trio, data, model=model, clip=clip)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    assert train(trio, data).loss_map != above.loss_map


def test_more_steps_go_on_in_a_folder_of_their_own(models, data, runs: Path, caplog) -> None:
    trio = models("wan_demo")
    short = train(trio, data)[1]["loss"]
    before = kept(runs)
    with cancelled(trio, 3):
        train(trio, data, steps=STEPS + 4)
    with on_forward(trio) as forwards:
        longer = train(trio, data, steps=STEPS + 4)[1]["loss"]
    assert len(forwards) == 2 and longer[:STEPS] == short and len(longer) == STEPS + 4
    with on_forward(trio) as forwards:
        assert train(trio, data, steps=STEPS + 4)[1]["loss"] == longer
    assert not forwards and len(list(runs.iterdir())) == 2
    assert {name: kept(runs)[name] for name in before} == before
    assert f"continues from step {STEPS} of run-" in caplog.text
    straight = train(trio, data, steps=STEPS + 4, resume="start over")[1]["loss"]
    assert len(straight) == STEPS + 4 and straight != longer


@pytest.mark.parametrize("text_rank", [0, 2])
def test_a_run_between_the_halves_of_another_changes_neither(models, data, runs: Path, text_rank: int) -> None:
    """In one ComfyUI: A is cancelled, B trained on the same and on another model, A gone on with."""
    trio, other = models("sd15"), models("wan_demo")
    first, second = {"run_name": "a", "text_rank": text_rank}, {"run_name": "b", "seed": 9, "targets": "attention+mlp"}
    train(trio, data, **first), train(trio, data, **second), train(other, data, **second)
    alone = kept(runs)
    shutil.rmtree(runs)
    with cancelled(trio, 3):
        train(trio, data, **first)
    train(trio, data, **second), train(other, data, **second)
    train(trio, data, **first)
    together = kept(runs)
    assert {name: together[name] for name in alone} == alone and len(alone) == 6


def test_other_settings_of_a_run_that_was_cut_off_ask_first(models, data, runs: Path) -> None:
    trio = models("wan_demo")
    with cancelled(trio, 3):
        train(trio, data)
    before = kept(runs)
    words = r"run-\w+ was interrupted at step 2 of 4 and had other settings: rank 2, now 3; seed 7, now 8\. Restore"
    with pytest.raises(ValueError, match=words):
        train(trio, data, rank=3, seed=8)
    assert kept(runs) == before
    train(trio, data, rank=3, seed=8, run_name="other")
    train(trio, data, rank=3, seed=8, resume="start over")
    with on_forward(trio) as forwards:
        train(trio, data)
    assert len(forwards) == STEPS - 2, "the old run goes on"


def test_other_settings_of_a_finished_run_are_said(models, data, runs: Path, caplog) -> None:
    trio = models("wan_demo")
    train(trio, data)
    train(trio, data, learning_rate=2e-3)
    assert (
        "this is a new run; run-" in caplog.text and "Different: learning_rate 0.001, now 0.002. Choose" in caplog.text
    )
    settings = [json.loads(path.read_text())["settings"]["train"]["learning_rate"] for path in runs.glob("*/run.json")]
    assert sorted(settings) == [1e-3, 2e-3]
