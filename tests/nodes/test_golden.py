"""Runs, sheets and caches of version 0.1.0 are found by the names and notes they have. See `harness.golden`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import golden, golden_bridge
from lora_loom.lora_core.runs.setting_changes import differences
from lora_loom.nodes.bridge.model.encoding_cache import Encodings, cache_folder
from lora_loom.nodes.bridge.training import run_folders
from lora_loom.nodes.bridge.training.previewer import kept_sheet

TOLD = json.loads((golden.FOLDER / golden_bridge.KEYS_OF_BRIDGE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def told(models) -> dict:
    return golden.as_stored(golden_bridge.told(models("sd15")))


@pytest.fixture
def cache() -> Iterator[Path]:
    """The folder of what was encoded, as version 0.1.0 left it."""
    shutil.rmtree(cache_folder(), ignore_errors=True)
    shutil.copytree(golden.CACHE, cache_folder())
    yield cache_folder()
    shutil.rmtree(cache_folder())


@pytest.mark.parametrize("what", sorted(TOLD))
def test_identities_hashes_and_texts_are_what_they_were(told: dict, what: str) -> None:
    assert told[what] == TOLD[what] and told.keys() == TOLD.keys()


def test_a_run_is_found_by_its_name_and_settings(told: dict, runs: Path) -> None:
    shutil.copytree(golden.RUN.parent, runs)
    settings = told["settings"]["adamw"]
    for identity in (golden.IDENTITY, "0123456789abcdef"):  # by its folder, and by what run.json says
        assert run_folders.known(golden.NAME, identity, settings).path == runs / golden.RUN.name
    assert run_folders.known(golden.NAME, "0123456789abcdef", told["settings"]["lion"]) is None
    assert not differences(TOLD["settings"]["adamw"], settings)


def test_a_sheet_is_found() -> None:
    shown = golden_bridge.shown()
    found = kept_sheet(golden.RUN, golden.STEP, shown["all chosen"])
    assert found.getpixel((0, 0)) == (30, 20, 10)
    assert kept_sheet(golden.RUN, golden.STEP, shown["as it comes"]) is None


def test_what_was_encoded_is_found(cache: Path) -> None:
    def made() -> None:
        raise AssertionError("it is not found")

    encodings = Encodings("captions", golden_bridge.ENCODER)
    assert golden_bridge.same(encodings.of(golden_bridge.CONTENT, made), golden_bridge.encoded())
    with pytest.raises(AssertionError, match="it is not found"):
        encodings.of([*golden_bridge.CONTENT, 1], made)
