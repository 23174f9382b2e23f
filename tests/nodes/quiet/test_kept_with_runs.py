"""A run keeps its quiet directions: it goes on as what it was when the cache is gone, or would be another now."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.runs import STEPS, Outputs, cancelled, on_forward, read, train, write_pictures
from lora_loom.lora_core.quiet import kept
from lora_loom.lora_core.quiet.directions import Directions
from lora_loom.lora_core.quiet.sketch import Sketch
from lora_loom.lora_core.runs.run_folder import DIRECTIONS
from lora_loom.nodes.bridge.model.encoding_cache import cache_folder
from lora_loom.nodes.bridge.quiet.directions import Found

pytestmark = pytest.mark.usefixtures("runs", "few")
QUIET = {"quiet": "directions"}
ANEW = "was begun with are gone, and those made anew differ from them"


@pytest.fixture
def named(tmp_path: Path) -> Any:
    return read(write_pictures(tmp_path / "pictures"), "number")


@pytest.fixture
def halfway(models, named, runs: Path) -> tuple[Outputs, Path]:
    """What a run that was not cut off has come to, and the folder of one that was."""
    trio = models("wan_demo")
    whole = train(trio, named, run_name="whole", **QUIET)
    with cancelled(trio, 3):
        train(trio, named, **QUIET)
    (folder,) = runs.glob("run-*")
    return whole, folder


def empty() -> None:
    shutil.rmtree(cache_folder() / "quiet")


def perturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions that are made from now on are those of another device, or of another torch."""
    directions = Sketch.directions

    def other(self: Sketch) -> Directions:
        own = directions(self)
        values = own.values * (1 + torch.linspace(-1, 1, len(own.values)) * 1e-3)
        return Directions(own.vectors, values, own.rest)

    monkeypatch.setattr(Sketch, "directions", other)


def same(found: Outputs, wanted: Outputs) -> bool:
    weights = (torch.equal(found.lora_model[name], weight) for name, weight in wanted.lora_model.items())
    return found.loss_map == wanted.loss_map and all(weights)


def test_it_goes_on_with_its_own_when_the_cache_is_empty(models, named, halfway, monkeypatch: Any, caplog: Any) -> None:
    """Without looking at neutral states again, whatever would come of them now."""
    whole, folder = halfway
    assert (folder / DIRECTIONS).samefile(*(cache_folder() / "quiet").glob("*"))
    empty(), perturbed(monkeypatch)
    with on_forward(models("wan_demo")) as forwards:
        resumed = train(models("wan_demo"), named, **QUIET)
    assert len(forwards) < 2 * STEPS and same(resumed, whole) and ANEW not in caplog.text


def test_more_steps_go_on_with_those_of_the_run_before(models, named, halfway, runs: Path, monkeypatch: Any) -> None:
    _, folder = halfway
    before = (folder / DIRECTIONS).read_bytes()
    empty(), perturbed(monkeypatch)
    train(models("wan_demo"), named, steps=STEPS + 1, **QUIET)
    assert [path.read_bytes() for path in runs.glob(f"run-*/{DIRECTIONS}")] == [before, before]
    train(models("wan_demo"), named, resume="start over", **QUIET)
    assert (folder / DIRECTIONS).read_bytes() != before, "a new run"


def test_others_are_told_and_it_goes_on(models, named, halfway, monkeypatch: Any, caplog: Any) -> None:
    whole, folder = halfway
    (folder / DIRECTIONS).write_bytes(b"damaged")
    empty(), perturbed(monkeypatch)
    resumed = train(models("wan_demo"), named, **QUIET)
    assert f"{folder.name} {ANEW}. It goes on from step 2 with the new ones" in caplog.text
    assert len(resumed.loss_map["loss"]) == STEPS and not same(resumed, whole)
    caplog.clear()
    assert kept.read(folder / DIRECTIONS), "those are its own now"
    train(models("wan_demo"), named, steps=STEPS + 1, **QUIET)
    assert ANEW not in caplog.text


def test_the_same_made_anew_are_as_good(models, named, halfway, caplog: Any) -> None:
    whole, folder = halfway
    (folder / DIRECTIONS).unlink(), empty()
    assert same(train(models("wan_demo"), named, **QUIET), whole) and ANEW not in caplog.text


def test_a_run_that_was_begun_before_they_were_kept_goes_on(models, named, runs: Path, caplog: Any) -> None:
    trio = models("wan_demo")
    whole = train(trio, named, run_name="whole", **QUIET)
    with pytest.MonkeyPatch.context() as before, cancelled(trio, 3):
        before.setattr(Found, "digest", "")
        train(trio, named, **QUIET)
    (path,) = runs.glob(f"run-*/{DIRECTIONS}")
    path.unlink()
    assert same(train(trio, named, **QUIET), whole) and ANEW not in caplog.text and path.is_file()


def test_a_disk_without_room_is_told_and_the_run_is_quiet(models, named, runs: Path, caplog: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept, "keep", full)
        found = train(models("wan_demo"), named, steps=1, **QUIET)
    assert f"{DIRECTIONS} cannot be written (No space left on device)" in caplog.text
    assert "lora_loom.quiet" in found.adapter.metadata and not list(runs.glob(f"*/{DIRECTIONS}"))


def test_another_name_or_a_copy(tmp_path: Path, monkeypatch: Any) -> None:
    layers = {"q": Directions.of(torch.eye(4)[:2], torch.tensor([2.0, 1.0]), 5.0)}
    source, path = tmp_path / "source", tmp_path / "kept"
    kept.write(source, layers)
    for _ in range(2):
        kept.keep(path, layers, source)
        assert path.samefile(source) and len(list(tmp_path.iterdir())) == 2

    def unable(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", unable)
    for given in (source, None):
        kept.keep(path, layers, given)
        assert path.read_bytes() == source.read_bytes() and not path.samefile(source)
