"""A run on disk: killed at any moment or out of space, it goes on to the same bytes; nobody else writes into it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from harness.toy import CONFIG, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.runs import run_folder
from lora_loom.lora_core.runs.past_runs import past_runs
from lora_loom.lora_core.runs.run_folder import RunFolder
from lora_loom.lora_core.runs.setting_changes import differences
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.trainer import train
from lora_loom.lora_core.version import VERSION

STEPS = 60
CONFIG60 = replace(CONFIG, steps=STEPS, accumulation=1)
BAD = {8, 30, 54, 55, 56}  # two drops, then three in a row that send the run back to step 50
SETTINGS = {"train": {"steps": STEPS}}


def go(path: Path, save_every: int = 3, stop_at: int = 0, pause: float = 0.0, start_over: bool = False) -> Run:
    """Train in a folder as the bridge does. `pause` slows steps down; at `stop_at` events the run breaks."""
    run = Run(CONFIG60)
    folder = RunFolder(path, "print", SETTINGS)

    def poison(module, args, out):
        return torch.full_like(out, torch.nan) if run.state.events in BAD else out

    def describe() -> Adapter:
        with run.state.judged():
            return Adapter(run.state.factors.low_ranks(), {"title": "run"})

    run.toy.leave.register_forward_hook(poison, prepend=True)
    with folder.held():
        folder.resume(run.state, start_over)
        with attached(run.state.factors.branches), folder.kept(run.state, describe):
            for result in train(CONFIG60, run.state, run.toy, run.samples, folder.note):
                folder.note(result)
                time.sleep(pause)
                if stop_at and run.state.events >= stop_at:
                    raise KeyboardInterrupt
                if result.step % save_every == 0:
                    folder.try_save(run.state, describe)
    return run


def content(path: Path) -> dict[str, object]:
    """Everything in a run's folder that must not depend on how often it was cut off: the state, the last LoRA, the
    settings, and the log apart from times and resumes."""
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k != "time"} for line in lines if line.get("event") != "resumed"]
    names = ("state.safetensors", f"step_{STEPS:06d}.safetensors", "run.json")
    return {"log": log, **{name: (path / name).read_bytes() for name in names}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("whole") / "run"
    go(path)
    return content(path)


def test_the_run_has_everything(whole, tmp_path):
    log = whole["log"]
    troubles = [line["event"] for line in log if "event" in line]
    assert len(troubles) == 6 and troubles[-1].endswith("back to step 50; the learning rate was lowered to 0.0009")
    assert [line["step"] for line in log if "loss" in line][-10:] == list(range(51, 61))
    assert {"loss", "grad_norm", "learning_rate"} < log[0].keys()
    assert json.loads(whole["run.json"]) == {"lora_loom": VERSION, "identity": "print", "settings": SETTINGS}


def test_the_last_few_loras_are_kept_and_none_of_a_time_that_was_undone(tmp_path):
    go(tmp_path / "run", save_every=2)
    names = sorted(path.name for path in (tmp_path / "run").glob("step_*"))
    assert names == [f"step_{step:06d}.safetensors" for step in (50, 52, 54, 56, 58, 60)]
    assert run_folder.KEPT == 5


@pytest.mark.parametrize("at", [1, 3, 9, 35, 50, 58, 62, 66])
def test_cut_off_and_resumed_the_folder_is_the_same(tmp_path, whole, at):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", stop_at=at)
    go(tmp_path / "run")
    assert content(tmp_path / "run") == whole
    assert '"event": "resumed"' in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_finished_run_writes_nothing_again(tmp_path, whole):
    path = tmp_path / "run"
    go(path)
    before = {p: p.stat().st_mtime_ns for p in path.glob("*.safetensors")}
    go(path)
    assert {p: p.stat().st_mtime_ns for p in path.glob("*.safetensors")} == before and content(path) == whole


def test_a_workflow_that_is_no_json_ends_no_run(tmp_path):
    folder = RunFolder(tmp_path, "a", {})
    for odd in ({"extra": object()}, {"a": {1, 2}}):
        folder.keep_workflow(odd)
    assert list(tmp_path.iterdir()) == []
    folder.keep_workflow({"nodes": []})
    assert json.loads((tmp_path / "workflow.json").read_text()) == {"nodes": []}


def test_start_over_begins_again(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", stop_at=20)
    go(tmp_path / "run", start_over=True)
    assert content(tmp_path / "run") == whole
    assert "resumed" not in (tmp_path / "run" / "log.jsonl").read_text()


def nursery() -> Connection:
    """Where runs in processes of their own are asked for: a process forked before anything was trained in this one,
    for autograd's threads do not survive a fork. It ends with this one."""
    here, there = Pipe()
    if os.fork():
        there.close()
        return here
    here.close()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for its children
    torch.set_num_threads(1)
    try:
        while True:
            path, save_every, pause = there.recv()
            if pid := os.fork():
                there.send(pid)
            else:
                go(path, save_every, pause=pause)
                os._exit(0)
    finally:
        os._exit(0)


NURSERY = nursery() if hasattr(os, "fork") else None


def forked(path: Path, save_every: int, pause: float) -> int:
    """The run in a process of its own, whose id is returned."""
    NURSERY.send((path, save_every, pause))
    return NURSERY.recv()


def kill(pid: int) -> None:
    try:
        while True:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
    except ProcessLookupError:
        pass


@pytest.mark.skipif(os.name == "nt", reason="there is no fork to make processes quickly")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=st.lists(st.floats(0.0, 0.25), min_size=1, max_size=3), save_every=st.integers(1, 7))
def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path_factory, whole, moments, save_every):
    path = tmp_path_factory.mktemp("killed") / "run"
    for moment in moments:
        pid = forked(path, save_every, pause=0.002)
        time.sleep(moment)
        kill(pid)
    go(path, save_every)
    assert content(path) == whole
    assert not list(path.glob(".*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="there is no fork")
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    pid = forked(tmp_path / "run", 3, pause=10)
    wait_for(tmp_path / "run" / "log.jsonl")
    with pytest.raises(ValueError, match="another ComfyUI is training run now; wait until it is done, or choose "):
        go(tmp_path / "run")
    kill(pid)
    go(tmp_path / "run")


def wait_for(path: Path) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("limit", [200, 2_000])
def test_files_that_cannot_grow_stop_no_run_but_its_end(tmp_path, whole, limit):
    """As on a full disk: every write past the limit fails."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    path, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt):
        go(path, stop_at=10)
    kept = (path / "state.safetensors").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(
            OSError, match="step 60 was not saved: .+ cannot be written .+ Free some disk space and queue again"
        ):
            go(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (path / "state.safetensors").read_bytes() == kept and not list(path.glob(".*.tmp"))
    go(path)
    assert content(path) == whole


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_disk_that_is_really_full(tmp_path, whole):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(KeyboardInterrupt):
            go(disk / "run", stop_at=10)
        kept = (disk / "run" / "state.safetensors").read_bytes()
        ballast = disk / "ballast"
        with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError, match=r"step 60 was not saved: .+ \(No space left on device\); the last save"):
            go(disk / "run")
        assert (disk / "run" / "state.safetensors").read_bytes() == kept
        assert not list((disk / "run").glob(".*.tmp"))
        ballast.unlink()
        go(disk / "run")
        assert content(disk / "run") == whole
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_earlier_runs_are_found_by_name(tmp_path):
    for folder, name in (("a-00000001", "a"), ("a-b-00000002", "a-b"), ("[a]-00000003", "[a]")):
        go(tmp_path / folder)
        (past,) = past_runs(tmp_path, name)
        assert past.folder.name == folder and past.identity == "print" and past.step == 60 and past.finished
    (tmp_path / "a-00000001" / "run.json").write_text("{")
    assert not past_runs(tmp_path, "a")


OLD = {
    "lora": {"rank": 16, "alpha": 16.0, "preset": "attention", "include": []}, "text": {}, "preserve": [],
    "train": {"steps": 1000, "learning_rate": 1e-4, "optimizer": {"name": "adamw", "beta1": 0.0}},
    "dataset": {"pictures": 12, "px": 512, "hash": "a"}, "model": {"family": "SDXL", "hash": "b"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("lora", {"rank": 32}, ["rank 16, now 32"]),
        ("lora", {"preset": "all-linear"}, ["targets attention, now all-linear"]),
        ("train", {"learning_rate": 2e-4, "steps": 2000}, ["steps 1000, now 2000", "learning_rate 0.0001, now 0.0002"]),
        ("train", {"optimizer": {"name": "lion", "beta1": 0.9}}, ["optimizer adamw, now lion", "beta1 0, now 0.9"]),
        ("text", {"rank": 4}, ["text_rank none, now 4"]),
        ("dataset", {"pictures": 14, "hash": "c"}, ["the data set (12 pictures, 512 px, now 14 pictures, 512 px)"]),
        ("dataset", {"hash": "c"}, ["the data set"]),
        ("model", {"hash": "c"}, ["the base model or its layers"]),
        ("lora", {"include": ()}, []),
        ("lora", {"include": ("a", "b")}, ["include none, now a b"]),
    ],
)
def test_what_differs_is_said_in_words(part, change, words):
    new = {**OLD, part: {**OLD[part], **change}}
    if "preset" in change:
        new["model"] = {"family": "SDXL", "hash": "other layers"}
    assert list(differences(OLD, new).values()) == words
