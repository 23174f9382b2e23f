"""Runs of one name with other settings: what differs is said, nothing is overwritten, more steps go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness.runs import STEPS, cancelled, kept, on_forward, train


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
    assert f"goes on from step {STEPS} of run-" in caplog.text
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
    words = r"run-\w+ was cut off at step 2 of 4 and had other settings: rank 2, now 3; seed 7, now 8\. Put them back"
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
    assert "a new run, beside run-" in caplog.text and "learning_rate 0.001, now 0.002. To tell" in caplog.text
    settings = [json.loads(path.read_text())["settings"]["train"]["learning_rate"] for path in runs.glob("*/run.json")]
    assert sorted(settings) == [1e-3, 2e-3]
