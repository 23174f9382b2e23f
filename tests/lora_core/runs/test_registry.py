"""What folders of runs tell: of sound ones everything, of others nothing wrong; and nothing is read twice."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import golden
from harness.links import link
from harness.run_folders import done, log, lora, run, sheet, state, steps, write
from lora_loom.lora_core.files import save
from lora_loom.lora_core.runs import found_run
from lora_loom.lora_core.runs import registry as registry_room
from lora_loom.lora_core.runs.registry import Registry
from lora_loom.lora_core.training import snapshot
from lora_loom.lora_core.training.config import fingerprint


def told(parent: Path, running: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    registry = Registry(parent)
    assert registry.look() == 0
    found = registry.summaries(running)
    json.dumps(found, allow_nan=False)
    return {each["id"]: each for each in found}


def test_a_run_that_was_stopped_one_that_is_finished_and_one_that_goes_on(tmp_path: Path) -> None:
    for name in ("ink-00000001", "ink-00000002", "ink-00000003"):
        folder = run(tmp_path, name)
        log(folder, steps(range(1, 51)))
        state(folder, 45)
        lora(folder, 40)
    done(tmp_path / "ink-00000002", 50, 40, "50 steps")
    found = told(tmp_path, ("ink-00000003",))
    assert [(each["state"], each["step"]) for _, each in sorted(found.items())] == [
        ("stopped", 45), ("finished", 50), ("running", 50),
    ]  # fmt: skip
    first, second = found["ink-00000001"], found["ink-00000002"]
    assert (first["name"], first["total"], first["loss"], first["seconds"]) == ("ink", 100, 0.5, 49.0)
    assert (first["family"], first["saved"], first["best"], first["fault"]) == ("SDXL", [40], None, "")
    assert (second["kept"], second["summary"], second["workflow"]) == (40, "50 steps", False)
    files = (tmp_path / "ink-00000002").iterdir()
    assert second["size"] == sum(path.stat().st_size for path in files)


def test_a_run_of_version_0_1_0_is_told(tmp_path: Path) -> None:
    found = told(golden.RUN.parent)[golden.RUN.name]
    assert (found["state"], found["step"], found["total"], found["kept"]) == ("finished", 3, 1000, 3)
    assert (found["loss"], found["summary"], found["family"]) == (0.25, "well", "SD 1.5")


def test_what_a_finished_run_told_is_believed_as_it_was_written_only(tmp_path: Path) -> None:
    folder = run(tmp_path)
    lora(folder, 60)
    done(folder, 60)
    assert told(tmp_path)[folder.name]["state"] == "finished"
    path = folder / "done.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"well"', '"wall"'), encoding="utf-8")
    assert told(tmp_path)[folder.name]["state"] == "stopped"


@pytest.mark.parametrize("field", ["report", "summary", "step"])
def test_a_finished_run_whose_words_are_none_is_not_believed(tmp_path: Path, field: str) -> None:
    folder = run(tmp_path)
    lora(folder, 60)
    done(folder, 60)
    plain = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    del plain["digest"]
    plain[field] = [["well"]]
    write(folder / "done.json", json.dumps({"digest": fingerprint(plain), **plain}))
    assert told(tmp_path)[folder.name]["state"] == "stopped"


LOSSES = ([], ["x"], "0.5", None, 0.5, [True], [10**400], [[0.5]])


@pytest.mark.parametrize("losses", LOSSES, ids=range(len(LOSSES)))
@pytest.mark.parametrize("step", [10, "10"])
def test_a_state_with_losses_that_are_none_tells_nothing(tmp_path: Path, losses: Any, step: Any) -> None:
    folder = run(tmp_path)
    record = {"windows": [], "images": {}, "key": "k", "base": [1.0], "points": [{"step": step, "losses": losses}]}
    for points in (record, {**record, "base": losses or "", "points": []}):
        progress = snapshot.as_tensor({"losses": [0.5], "record": points})
        save.save(folder / "state.safetensors", {"progress": progress}, {"lora_loom.step": "30"}, overwrite=True)
        registry = Registry(tmp_path)
        found = registry.find(folder.name)
        assert found is not None and (found.best, found.validation()) == (None, [])
        assert registry.summary(found, False)["step"] == 0


def test_validation_and_its_best_step_come_from_the_state(tmp_path: Path) -> None:
    folder = run(tmp_path)
    log(folder, steps(range(1, 31)))
    state(folder, 30, {10: 0.7, 20: 0.5, 30: 0.6})
    lora(folder, 30)
    lora(folder, 20, "best.safetensors")
    registry = Registry(tmp_path)
    found = registry.find(folder.name)
    assert found is not None and (found.best, list(found.loras())) == (20, [20, 30])
    assert registry.log(found, 0, 100, 60)["validation"] == [[0, 1.5], [10, 0.7], [20, 0.5], [30, 0.6]]
    assert found.lora(20) == folder / "best.safetensors" and found.lora(None) == folder / "step_000030.safetensors"
    best = lora(folder, 10, "best.safetensors")  # of a run that was started over since
    os.utime(best, (later := best.stat().st_mtime + 10, later))
    found.look()
    assert found.lora(20) is found.lora(10) is None


def test_what_differs_is_against_the_run_of_the_name_before(tmp_path: Path) -> None:
    run(tmp_path, "ink-00000001", 1e9, rank=8)
    run(tmp_path, "oil-00000002", 2e9, rank=4, learning_rate=3e-4)
    run(tmp_path, "ink-00000003", 3e9, rank=16, pictures=12)
    found = told(tmp_path)
    assert [each["id"] for each in found.values()] == ["ink-00000003", "oil-00000002", "ink-00000001"]
    assert found["ink-00000001"]["differs"] == []
    assert found["oil-00000002"]["differs"] == [["rank", "8", "4"], ["learning rate", "0.0001", "0.0003"]]
    pictures = ["data set", "4 pictures, 64 px", "12 pictures, 64 px"]
    assert found["ink-00000003"]["differs"] == [["rank", "8", "16"], pictures]


def test_another_data_set_of_the_same_size_is_told(tmp_path: Path) -> None:
    run(tmp_path, "ink-00000001", 1e9)
    run(tmp_path, "ink-00000002", 2e9, hash="e")
    differs = told(tmp_path)["ink-00000002"]["differs"]
    assert [name for name, *_ in differs] == ["data set", "base model or its layers"]
    assert all(now == "another" for *_, now in differs)


def test_prompts_and_pictures_are_those_of_the_last_sheet(tmp_path: Path) -> None:
    folder = run(tmp_path)
    sheet(folder, 0, [("a red fox", "a fox")], parts=False)
    sheet(folder, 50, [("a red fox", "a fox")])
    sheet(folder, 100, [("a red fox", "a fox"), ("a tree",)])
    registry = Registry(tmp_path)
    found = registry.find(folder.name)
    assert found is not None and registry.summary(found, False)["prompts"] == 2
    details = found.details()
    assert (found.previews, details["unlike"]) == ([0, 50, 100], [0, 50])
    assert details["prompts"] == [["a red fox", "a fox"], ["a tree"]]
    assert [(each["prompt"], each["kind"]) for each in details["pictures"]] == [
        ("a red fox", "base"), ("a red fox", "lora"), ("a fox", "base"), ("a fox", "lora"),
        ("a tree", "base"), ("a tree", "lora"),
    ]  # fmt: skip


def test_names_may_have_folders_and_odd_letters(tmp_path: Path) -> None:
    names = ["styles/old/ink-00000001", "<b>ink & oil-00000002", "\u72d7-00000003", "a%2Fb-00000004"]
    if os.name == "nt":
        names[1] = "b ink & oil-00000002"
    for name in names:
        run(tmp_path, name)
    assert set(told(tmp_path)) == set(names)
    registry = Registry(tmp_path)
    for name in names:
        found = registry.find(name)
        assert found is not None and (found.path, found.name) == (tmp_path / name, name[:-9])
    for name in ("..", ".", "", "styles", "styles/old", "../x-00000001", str(tmp_path / names[0]), "styles\\old"):
        assert registry.find(name) is None


BROKEN = (
    "", "{", "[]", "null", "{}", '{"settings": 1}', '{"settings": {"train": {"steps": "9"}}}', "[" * 100_000,
    '{"settings": {"train": {"steps": 0}}}', '{"settings": {"train": []}}', '{"settings": ' * 5000,
    '{"settings": {"train": {"steps": 5}, "x": ' + '{"y": ' * 900 + "1" + "}" * 900 + "}}",
)  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_run_json_is_told_and_the_others_too(tmp_path: Path, text: str) -> None:
    run(tmp_path, "ink-00000001")
    write(tmp_path / "bad-00000002" / "run.json", text)
    found = told(tmp_path)
    assert found["ink-00000001"]["fault"] == "" and found["ink-00000001"]["differs"] == []
    bad = found["bad-00000002"]
    assert (bad["fault"], bad["state"], bad["total"]) == ("run.json cannot be read", "stopped", 0)


def test_folders_of_others_are_passed_over(tmp_path: Path) -> None:
    run(tmp_path, "ink-00000001")
    for name in ("notes", ".hidden-00000001", "no-id", "ink-0000000G", "many/of/them/far/down-00000001"):
        run(tmp_path, name)
    (tmp_path / "empty-00000002").mkdir()
    write(tmp_path / "file-00000003", "x")
    assert set(told(tmp_path)) == {"ink-00000001"}
    assert told(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("name", ["log.jsonl", "done.json", "state.safetensors", "workflow.json", "best.safetensors"])
def test_files_that_are_damaged_tell_nothing(tmp_path: Path, name: str) -> None:
    folder = run(tmp_path)
    for data in (b"", b"\0" * 100, b"{}", b'{"digest": 1}', b"\xff" * 50, b'[{"x": 1}]', b"[" * 100_000):
        (folder / name).write_bytes(data)
        found = told(tmp_path)[folder.name]
        assert (found["state"], found["step"], found["saved"], found["workflow"]) == (
            "stopped", 0, [], name == "workflow.json" and data in (b"{}", b'{"digest": 1}'),
        )  # fmt: skip


def test_links_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "runs", tmp_path / "outside"
    secret = run(outside, "ink-00000001")
    log(secret, steps(range(1, 11)))
    sheet(secret, 10, [("a",)])
    lora(secret, 10)
    folder = run(inside, "ink-00000002")
    link(inside / "ink-00000003", secret)
    for name in ("log.jsonl", "previews", "step_000010.safetensors"):
        link(folder / name, secret / name)
    registry = Registry(inside)
    assert registry.look() == 0 and [each["id"] for each in registry.summaries()] == [folder.name]
    found = registry.find(folder.name)
    assert found is not None and (found.previews, found.loras(), found.lora(10)) == ([], {}, None)
    assert registry.log(found, 0, 10, 60)["steps"] == []


def test_a_junction_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows tells of one."""
    folder, plain = run(tmp_path, "ink-00000001"), os.lstat
    run(tmp_path, "ink-00000002")
    sheet(folder, 10, [("a",)])
    assert [each["previews"] for each in told(tmp_path).values()] == [[10], []]
    junction = SimpleNamespace(st_mode=stat.S_IFDIR, st_reparse_tag=0xA0000003)
    names = "previews", "ink-00000002"
    monkeypatch.setattr(os, "lstat", lambda path: junction if Path(path).name in names else plain(path))
    assert {name: each["previews"] for name, each in told(tmp_path).items()} == {folder.name: []}


def test_a_run_is_known_by_its_validations_alone(tmp_path: Path) -> None:
    """What else it remembers grows with its pictures, and stays on the disk."""
    folder = run(tmp_path)
    state(folder, 30, {10: 0.7, 20: 0.5})
    registry = Registry(tmp_path)
    found = registry.find(folder.name)
    assert found is not None and found.validation()[1:] == [[10, 0.7], [20, 0.5]]
    assert (found._record.windows, found._record.images) == ([], {})


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old, or a change at the same moment could not be told."""
    for number in range(20):
        folder = run(tmp_path, f"ink-{number:08x}")
        log(folder, steps(range(1, 1001)))
        for path in (folder / "log.jsonl", folder):
            os.utime(path, (1e9, 1e9))
    registry, opened = Registry(tmp_path), []
    registry.look()
    before = registry.summaries()
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *args, **more: opened.append(path) or real(path, *args, **more))
    registry.look()
    assert opened == [] and registry.summaries() == before
    log(tmp_path / "ink-00000007", steps([1001]), add=True)
    registry.look()
    assert {Path(path) for path in opened} == {tmp_path / "ink-00000007" / "log.jsonl"}
    assert next(each for each in registry.summaries(("ink-00000007",)) if each["state"] == "running")["step"] == 1001


def test_a_change_within_a_moment_is_seen(tmp_path: Path) -> None:
    """On disks that tell times by the second."""
    folder = run(tmp_path)
    lora(folder, 60)
    registry = Registry(tmp_path)
    registry.look()
    before = (folder.stat().st_atime_ns, folder.stat().st_mtime_ns)
    done(folder, 60)
    os.utime(folder, ns=before)
    registry.look()
    assert registry.summaries()[0]["state"] == "finished"


def test_a_look_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    for number in range(5):
        log(run(tmp_path, f"ink-{number:08x}"), steps(range(1, 11)))
    registry = Registry(tmp_path)
    assert registry.look(seconds=0) == 5 and registry.summaries() == []
    assert registry.look() == 0 and len(registry.summaries()) == 5


def test_of_very_many_the_last_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_room, "MOST_RUNS", 2)
    for number in range(4):
        os.utime(run(tmp_path, f"ink-{number:08x}", 1e9 + number), (1e9 + number, 1e9 + number))
    known = Registry(tmp_path)
    assert known.find("ink-00000000") is not None and known.look() == 0
    assert set(known._runs) == {"ink-00000003", "ink-00000002"}


def test_a_folder_that_goes_is_gone(tmp_path: Path) -> None:
    folder = run(tmp_path)
    registry = Registry(tmp_path)
    found = registry.find(folder.name)
    assert found is not None and registry.log(found, 0, 10, 60)["steps"] == []
    (folder / "run.json").unlink()
    assert registry.find(folder.name) is None and registry.look() == 0 and registry.summaries() == []


def test_the_workflow_tells_where_it_was_begun(tmp_path: Path) -> None:
    folder = run(tmp_path)
    write(folder / "workflow.json", json.dumps({"id": "w", "extra": {"lora_loom": {"prompt_id": "p", "node": "5:3"}}}))
    found = told(tmp_path)[folder.name]
    assert (found["workflow"], found["workflow_id"], found["prompt_id"], found["node"]) == (True, "w", "p", "5:3")
    one = Registry(tmp_path).find(folder.name)
    assert one is not None and (one.workflow() or {})["id"] == "w"
    write(folder / "workflow.json", json.dumps({"id": 7, "extra": {"lora_loom": ["p"]}}))
    found = told(tmp_path)[folder.name]
    assert (found["workflow"], found["workflow_id"], found["prompt_id"]) == (True, None, None)


def test_long_texts_are_cut(tmp_path: Path) -> None:
    folder = run(tmp_path, family="f" * 10_000)
    lora(folder, 60)
    done(folder, 60, summary="s" * 10_000)
    found = told(tmp_path)[folder.name]
    assert max(len(found["family"]), len(found["summary"])) == found_run._LONGEST
