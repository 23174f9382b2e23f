"""Files of version 0.1.0 are read and written again to the same bytes: runs go on, hashes stay (`harness.golden`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import golden
from lora_loom.lora_core.files import formats, save
from lora_loom.lora_core.files.label import redacted
from lora_loom.lora_core.runs import checkpoint, result
from lora_loom.lora_core.runs.past_runs import past_runs
from lora_loom.lora_core.runs.recipe_json import RecipeRecord
from lora_loom.lora_core.runs.run_folder import RunFolder
from lora_loom.lora_core.runs.setting_changes import differences
from lora_loom.lora_core.training.health import Health
from lora_loom.lora_core.training.record import Record
from safetensors import safe_open

TOLD = golden.stored()
KEPT = ("lora_loom.checkpoint", "fingerprint", "lora_loom.step")  # of the header of a state


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A copy of the run that version 0.1.0 left."""
    path = tmp_path / golden.RUN.name
    shutil.copytree(golden.RUN, path)
    return RunFolder(path, golden.IDENTITY, json.loads((path / "run.json").read_text(encoding="utf-8"))["settings"])


@pytest.fixture(scope="module")
def told() -> dict:
    return golden.as_stored(golden.told())


@pytest.mark.parametrize("what", sorted(TOLD))
def test_identities_hashes_and_texts_are_what_they_were(told: dict, what: str) -> None:
    assert told[what] == TOLD[what]


def test_nothing_is_left_out(told: dict) -> None:
    assert told.keys() == TOLD.keys()


@pytest.mark.parametrize("name", golden.RECIPES)
def test_the_settings_of_a_header_are_read(name: str) -> None:
    assert RecipeRecord.from_json(TOLD["settings"][name]) == golden.settings(golden.RECIPES[name])


@pytest.mark.parametrize("optimizer", golden.OPTIMIZERS)
def test_a_state_is_read_and_written_again_as_it_was(tmp_path: Path, optimizer: str) -> None:
    path, state = golden.state_path(optimizer), golden.fresh(optimizer)
    checkpoint.load(path, state, golden.IDENTITY)
    again = golden.stepped(optimizer)  # whose optimiser keeps what it keeps today
    assert [*map(sorted, state.optimizer.state.values())] == [*map(sorted, again.optimizer.state.values())]
    wanted = golden.advanced(optimizer)
    assert state.factors.flat.equal(wanted.factors.flat) and (state.step, state.losses) == (golden.STEP, wanted.losses)
    assert state.health == wanted.health != Health() and state.record == wanted.record != Record()
    checkpoint.save(tmp_path / path.name, state, golden.IDENTITY)
    (header, tensors), (header_again, again) = map(_content, (path, tmp_path / path.name))
    assert tensors.keys() == again.keys() and all(tensors[name].equal(again[name]) for name in tensors)
    assert header == header_again and header.keys() == set(KEPT)
    draws = [torch.rand(5, generator=each.generator) for each in (state, wanted)]
    assert draws[0].equal(draws[1])


def _content(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a state, but for the hashes over all of it and the random numbers to come, which torch
    writes as it likes."""
    with safe_open(path, "pt") as file:
        header = {name: value for name, value in file.metadata().items() if name in KEPT}
        return header, {name: file.get_tensor(name) for name in file.keys() if name != "generator"}


def test_a_run_goes_on(run: RunFolder) -> None:
    state = golden.fresh("adamw")
    with run.held():
        assert run.resume(state) and state.step == golden.STEP and not run.notes
    (past,) = past_runs(run.path.parent, golden.NAME)
    assert past.step == golden.STEP and not differences(run.settings, past.settings)


def test_what_a_run_told_is_returned_and_written_again_to_the_same_bytes(run: RunFolder) -> None:
    told, charts = result.recall(run.path, golden.KEY)
    assert told == golden.FINISHED and charts.getpixel((0, 0)) == (10, 20, 30)
    before = (run.path / "done.json").read_bytes()
    result.forget(run.path)
    result.remember(run.path, golden.KEY, told, charts)
    assert (run.path / "done.json").read_bytes() == before


def test_the_log_has_the_same_fields(run: RunFolder) -> None:
    before = run.log.path.read_text(encoding="utf-8").splitlines()
    run.note(golden.RESULT)
    run.note(golden.TROUBLE)
    for one, other in zip(before, run.log.path.read_text(encoding="utf-8").splitlines()[len(before) :], strict=True):
        assert [*json.loads(one).items()][:-1] == [*json.loads(other).items()][:-1]


def test_a_lora_is_read_and_written_again_to_the_same_bytes(run: RunFolder, tmp_path: Path) -> None:
    path, lora = run.lora(golden.STEP), golden.lora()
    found = formats.read(path)
    assert found.layers.keys() == lora.layers.keys()
    assert all(layer.lora_A.equal(lora.layers[name].lora_A) for name, layer in found.layers.items())
    save.save(tmp_path / path.name, formats.encode(lora, "native", dtype=torch.float32), redacted(lora.metadata))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
