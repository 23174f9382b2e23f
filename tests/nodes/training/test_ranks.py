"""One run by two processes: what comes out is that of one, whatever is asked of it, and only the first keeps it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from harness import ranked
from harness.ranked import LEARNED, RUNS, STEPS_FIRST, few_prompts, learned, watched, what
from harness.runs import cancelled, read, train, write_pictures

pytestmark = pytest.mark.usefixtures("runs")


class Pair(NamedTuple):
    """Holds what one process made of each run, what each of two did, and the folder of all."""

    alone: dict[str, dict[str, Any]]
    ranks: dict[int, dict[str, Any]]
    folder: Path
    trio: Any
    data: Any


@pytest.fixture(scope="module")
def pair(models, make_lora, tmp_path_factory: pytest.TempPathFactory, comfy_base: Path) -> Pair:
    folder, trio = tmp_path_factory.mktemp("ranks"), models("sd15")
    data = read(write_pictures(folder / "pictures"), "picture")
    write_pictures(folder / "others", seed=1)
    shutil.copytree(folder / "pictures", folder / "fewer", ignore=shutil.ignore_patterns("3.*"))
    kept, output = comfy_base / "output" / "lora_loom", folder / "base0" / "output" / "lora_loom"
    shutil.rmtree(kept, ignore_errors=True)
    with cancelled(trio, STEPS_FIRST):
        train(trio, data, **RUNS["plain"], run_name="begun")
    shutil.copytree(kept, output)
    places = [
        base / "models" / "loras" / "aid.safetensors" for base in (comfy_base, folder / "base0", folder / "base1")
    ]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        make_lora("sd15", place, size=0.3)
    ranks = ranked.start(folder)
    with few_prompts():
        alone = _alone(trio, data, folder)
    places[0].unlink()
    return Pair(alone, ranks, folder, trio, data)


def _alone(trio: Any, data: Any, folder: Path) -> dict[str, dict[str, Any]]:
    sets, shown, runs = learned(trio, folder), watched(), {**RUNS, **LEARNED}
    extra = dict.fromkeys(("plain", *sets), shown)
    return {
        name: what(train(trio, sets.get(name, data), **run, **extra.get(name, {}), run_name=name))
        for name, run in runs.items()
    }


def check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """To the rounding of a sum in another order, which Adam makes larger where a gradient is almost zero."""
    assert found.get("error") is None and found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, weight in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", [*RUNS, *LEARNED])
def test_two_ranks_make_what_one_makes(pair: Pair, name: str) -> None:
    for own in pair.ranks.values():
        check_same(own[name], pair.alone[name])
    assert pair.ranks[0][name]["losses"] == pair.ranks[1][name]["losses"]
    assert pair.ranks[0][name]["report"] == pair.ranks[1][name]["report"]
    first, second = (own[name]["weights"] for own in pair.ranks.values())
    assert all(torch.equal(first[layer], second[layer]) for layer in first)


def test_encoding_and_steps_are_shared(pair: Pair) -> None:
    first, second = (own["plain"] for own in pair.ranks.values())
    assert (first["images"], second["images"]) == (2, 2)
    assert 0 <= first["captions"] - second["captions"] <= 2, "one over in each of two lists"
    assert second["forwards"] <= first["forwards"]
    again = [own["again"] for own in pair.ranks.values()]
    assert not any(own["images"] + own["captions"] + own["forwards"] for own in again), "it was finished before"
    for own in again:
        check_same(own, first)


def test_the_first_rank_alone_keeps_and_reports(pair: Pair) -> None:
    first, second = (own["plain"] for own in pair.ranks.values())
    assert first["report"] == second["report"] != "" and first["shape"] == second["shape"]
    other = pair.folder / "base1"
    assert [path for part in ("output", "user", "temp") for path in (other / part).rglob("*") if path.is_file()] == []
    kept = {path.name.rpartition("-")[0] for path in (pair.folder / "base0/output/lora_loom").iterdir()}
    assert kept == {"plain", "preserving", "quiet", "begun", "stopped", "full", *LEARNED}


def test_a_run_goes_on_with_more_ranks_and_with_fewer(pair: Pair, runs: Path) -> None:
    wanted = what(train(pair.trio, pair.data, **RUNS["plain"], run_name="whole"))
    check_same(pair.ranks[0]["begun"], wanted)
    assert all(own["stopped"]["cancelled"] for own in pair.ranks.values())
    done = {name: sum(own[name]["forwards"] for own in pair.ranks.values()) for name in ("begun", "full")}
    assert 0 < done["begun"] < done["full"]
    (stopped,) = (pair.folder / "base0/output/lora_loom").glob("stopped-*")
    assert (stopped / f"step_{STEPS_FIRST - 1:06d}.safetensors").is_file(), "the step that was cut off is done again"
    shutil.copytree(stopped, runs / stopped.name)
    check_same(what(train(pair.trio, pair.data, **RUNS["plain"], run_name="stopped")), wanted)
    check_same(pair.ranks[1]["full"], wanted)
    assert "No space left on device" in pair.ranks[0]["full"]["report"].splitlines()[0]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("settings", "steps 5 instead of 4"),
        ("pictures", "data set 3 pictures, 64 px instead of 4 pictures, 64 px"),
        ("rebased", "another base model or its layers"),
    ],
)
def test_ranks_that_differ_are_named_before_the_first_step(pair: Pair, name: str, sentence: str) -> None:
    for own in pair.ranks.values():
        assert "rank 1 (" in own[name]["error"] and sentence in own[name]["error"] and not own[name]["forwards"]


def test_fewer_pictures_than_ranks(pair: Pair) -> None:
    for own in pair.ranks.values():
        assert "set batch_size to 2 or more" in own["small"]["error"] and not own["small"]["images"]
