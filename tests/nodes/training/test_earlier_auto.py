"""A run that was begun when auto meant another law of timesteps goes on with that one, to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.runs import cancelled, on_forward, read, train

AUTO = {"timesteps": "auto"}
BEFORE = {"timesteps": "shifted_logit_normal", "shift": 3.16}  # what auto was for FLUX.1
SAID = "the timesteps are those that this run was begun with"


def laws(runs: Path) -> list[tuple[str, float]]:
    """Of all runs, the one that was begun last at the end."""
    files = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    told = [json.loads(path.read_text("utf-8"))["settings"]["train"]["objective"] for path in files]
    return [(each["timesteps"], each["shift"]) for each in told]


@pytest.fixture
def flux(models) -> Any:
    return models("flux1")


def test_a_cut_off_run_goes_on(flux, data, runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(flux, data, run_name="whole", **BEFORE)
    with cancelled(flux, 3):
        train(flux, data, **BEFORE)
    with on_forward(flux) as forwards, caplog.at_level("INFO", "lora_loom"):
        resumed = train(flux, data, **AUTO)
    assert laws(runs) == [("shifted_logit_normal", 3.16)] * 2 and len(forwards) == len(whole[1]["loss"]) - 2
    assert resumed[1] == whole[1] and all(torch.equal(resumed[0][name], weight) for name, weight in whole[0].items())
    assert SAID in caplog.text and "shifted_logit_normal timesteps at shift 3.16" in caplog.text
    with on_forward(flux) as forwards:
        train(flux, data, **AUTO)
    assert not forwards, "and is found when it is finished"


def test_a_new_run_follows_the_size(flux, data, runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(flux, data, steps=1, **BEFORE)
    with caplog.at_level("INFO", "lora_loom"):
        train(flux, data, steps=1, run_name="another", **AUTO)
        train(flux, data, steps=1, seed=8, **AUTO)
        train(flux, data, steps=1, resume="start over", **AUTO)
        with on_forward(flux) as forwards:
            train(flux, data, steps=1, **AUTO)
    assert laws(runs) == [("shifted_logit_normal", 3.16)] + [("shifted_by_size", 3.16)] * 3
    assert not forwards, "the latest run counts"
    assert SAID not in caplog.text


def test_a_run_that_was_begun_loud_goes_on_loud(models, pictures, runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the learning rate of before, which quiet directions double for this base."""
    trio, data = models("wan_demo"), read(pictures, "sks")
    auto = {"learning_rate": 0.0, "quiet": "auto", "run_name": "before"}
    whole = train(trio, data, quiet="off", run_name="whole", learning_rate=3e-3)
    with cancelled(trio, 3):
        train(trio, data, quiet="off", run_name="before", learning_rate=3e-3)
    with caplog.at_level("INFO", "lora_loom"):
        resumed = train(trio, data, **auto)
    assert resumed[1] == whole[1] and all(torch.equal(resumed[0][name], weight) for name, weight in whole[0].items())
    assert (
        "the learning rate are those that this run was begun with; quiet is off, as it was when" in caplog.text
    )
    assert len(list(runs.iterdir())) == 2
