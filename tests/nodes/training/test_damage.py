"""A run's folder that was damaged: the same settings come to the same LoRA, or a sentence says why not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from harness.calls import run_node
from harness.comfyui import ROOT
from harness.runs import STEPS, cancelled, on_forward, train
from lora_loom.lora_core.files import save as saving
from lora_loom.lora_core.runs import run_folder
from lora_loom.lora_core.training import validation
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.validation import TrainingValidation
from safetensors import safe_open
from safetensors.torch import save_file

PREVIEWS = {"prompts": "a tree", "negative": "", "every": 2, "width": 64, "height": 64, "steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "simple", "seed": 0, "strength": 1.0}  # fmt: skip
VALIDATION = {"held_out": 0.25, "every": 2, "draws": 2, "patience": 2, "early_stop": False, "keep": "last", "seed": 0}
NOBODY = 65534
Go = Callable[[], Any]


@pytest.fixture(scope="module")
def made(models, data, comfy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Go]:
    """Folders of a finished run and of one that was cancelled at step 2 of 4, what came out, and the call."""
    trio, folder = models("wan_demo"), comfy_base / "output" / "lora_loom"
    choices = {
        "previews": run_node(TrainingPreviews, **PREVIEWS)[0], "save_every": 1,
        "validation": run_node(TrainingValidation, **VALIDATION)[0],
    }  # fmt: skip

    def go() -> Any:
        return train(trio, data, **choices)

    kept = tmp_path_factory.mktemp("kept")
    shutil.rmtree(folder, ignore_errors=True)
    steps: list[bool] = []

    def cancel(_: int) -> None:
        steps.extend([True] * torch.is_grad_enabled())
        if len(steps) == 3:
            comfy.model_management.interrupt_current_processing()

    with on_forward(trio, cancel), pytest.raises(comfy.model_management.InterruptProcessingException):
        go()
    shutil.copytree(folder, kept / "cut")
    out = go()
    shutil.copytree(folder, kept / "finished")
    shutil.rmtree(folder)
    return kept / "cut", kept / "finished", out, go


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x20
    path.write_bytes(content)


def flipped_early(path: Path) -> None:
    """In the header, or in the first value."""
    content = bytearray(path.read_bytes())
    content[20] ^= 0x01
    path.write_bytes(content)


def foreign(path: Path) -> None:
    path.write_bytes(b"[1, 2]\n" if path.suffix in (".json", ".jsonl") else bytes(range(256)) * 8)


def a_folder(path: Path) -> None:
    missing(path)
    path.mkdir()
    (path / "something").write_text("in it", encoding="utf-8")


def a_dead_link(path: Path) -> None:
    missing(path)
    path.symlink_to("nowhere")


def newer(path: Path) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            header = file.metadata()
        save_file(tensors, path, {**header, "lora_loom.checkpoint": "4"})
    else:
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "lora_loom": "9.0", "identity": 7, "settings": {"new": [1]}}))


STATE, LORA, BEST = "state.safetensors", "step_000001.safetensors", "best.safetensors"
LOG, RUN = "log.jsonl", "run.json"
DONE, CHARTS, SHEET, LOCK = "done.json", "charts.png", "previews/step_{:06d}.png", ".lock"
DAMAGED = [
    *((STATE, how) for how in (missing, empty, cut, flipped, flipped_early, foreign, a_folder, a_dead_link, newer)),
    *((LOG, how) for how in (missing, cut, flipped, foreign, a_folder)),
    *((RUN, how) for how in (missing, cut, foreign, a_folder, newer)),
    *((LORA, how) for how in (missing, cut, a_folder)),
    *((BEST, how) for how in (cut, a_folder)),
    *((SHEET, how) for how in (empty, cut, flipped, a_folder)),
    (LOCK, a_folder),
]
OF_A_FINISHED = [
    *((DONE, how) for how in (empty, cut, flipped, foreign, a_folder)), *((CHARTS, how) for how in (cut, flipped)),
    *((SHEET, how) for how in (empty, cut)), (STATE, flipped), (f"step_{STEPS:06d}.safetensors", cut),
]  # fmt: skip


def same(found: Any, wanted: Any) -> bool:
    return found.loss_map == wanted.loss_map and all(
        torch.equal(value, found.lora_model[name]) for name, value in wanted.lora_model.items()
    )


def damaged(folder: Path, kept: Path, name: str, how: Callable[[Path], None], step: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    (run,) = folder.iterdir()
    how(run / name.format(step))
    return run


@pytest.mark.parametrize(("name", "how"), DAMAGED)
def test_a_run_that_was_cut_off_goes_on_or_says_why_not(made, runs: Path, caplog, name: str, how: Callable) -> None:
    kept, _, whole, go = made
    run = damaged(runs, kept, name, how, 2)
    if (name, how) == (STATE, newer):
        with pytest.raises(ValueError, match="by another version of LoRA Loom; choose another run name, or start over"):
            go()
        return
    assert same(go(), whole)
    if name == STATE and how not in (missing, a_dead_link):
        assert "state.safetensors of run-" in caplog.text and "is damaged and was not used" in caplog.text
        assert "continues from the save before the last one, at step 1" in caplog.text
    assert (run / f"step_{STEPS:06d}.safetensors").is_file()
    assert same(go(), whole), "and once more"


@pytest.mark.parametrize(("name", "how"), OF_A_FINISHED)
def test_a_run_that_was_finished_comes_back_whatever_is_damaged(made, runs: Path, name: str, how: Callable) -> None:
    _, kept, whole, go = made
    damaged(runs, kept, name, how, STEPS)
    assert same(go(), whole)


@contextmanager
def as_nobody(*paths: Path) -> Iterator[None]:
    """Permissions are heeded inside, also where tests run as root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows has no such permissions")
    root = os.geteuid() == 0
    if root:
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.chown(each, NOBODY, NOBODY)
            for parent in path.parents:
                if not parent.stat().st_mode & 1:
                    parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", [STATE, LOG, RUN, LORA, BEST, SHEET, LOCK])
def test_files_without_permission_are_as_good_as_not_there(made, runs: Path, name: str) -> None:
    kept, _, whole, go = made
    run = damaged(runs, kept, name, lambda path: None, 2)
    with as_nobody(runs):
        (run / name.format(2)).chmod(0)
        assert same(go(), whole)


def test_a_folder_that_is_read_only_stops_nothing(made, runs: Path) -> None:
    kept, _, whole, go = made
    run = damaged(runs, kept, LOG, lambda path: None, 2)
    with as_nobody(runs):
        run.chmod(0o555)
        try:
            out = go()
        finally:
            run.chmod(0o755)
    assert same(out, whole) and "The LoRA was not saved to disk. This node still returns it" in out.report


def test_a_file_in_the_place_of_the_folder_stops_nothing(made, runs: Path) -> None:
    kept, _, whole, go = made
    run = damaged(runs, kept, LOG, lambda path: None, 2)
    shutil.rmtree(run)
    run.write_text("not a folder")
    out = go()
    assert same(out, whole) and "The LoRA was not saved to disk" in out.report and run.read_text() == "not a folder"


def test_a_name_too_long_for_the_disk_stops_nothing(models, data, runs: Path) -> None:
    trio = models("wan_demo")
    wanted = train(trio, data)
    out = train(trio, data, run_name="/".join(["x" * 190] * 25))
    assert same(out, wanted) and "File name too long" in out.report.splitlines()[0]


PARTS = {"state": (run_folder.checkpoint, "save"), "LoRA": (run_folder, "save_file")}


@pytest.mark.parametrize("part", PARTS)
def test_a_first_save_that_finds_the_disk_full(models, data, runs: Path, monkeypatch, part: str) -> None:
    trio, settings = models("wan_demo"), {"steps": 2, "save_every": 1, "batch_size": 1}
    wanted = train(trio, data, **settings, run_name="whole")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*PARTS[part], full)
        out = train(trio, data, **settings)
    assert same(out, wanted) and "No space left on device" in out.report.splitlines()[0]
    assert same(train(trio, data, **settings), wanted)


KILLED = """
import os, signal, sys
sys.path.append(sys.argv[1])
from pathlib import Path
from harness.inprocess import alias_pack, load_comfyui
alias_pack()
base = load_comfyui(Path(sys.argv[2]))
import tiny, torch
from harness.calls import register_pack
from harness.runs import read, train, write_pictures
from lora_loom.lora_core.runs import run_folder
import nodes
register_pack()
with torch.inference_mode():
    (model,) = nodes.UNETLoader().load_unet("loom_demo.safetensors", "default")
    (vae,) = nodes.VAELoader().load_vae("loom_demo_vae.safetensors")
    (clip,) = nodes.CLIPLoader().load_clip("loom_demo_words.pt", "stable_diffusion")
folder = base / "pictures"
trio, data = tiny.Loaded(model, clip, vae), read(folder if folder.is_dir() else write_pictures(folder))
settings = {"steps": 2, "save_every": 1, "batch_size": 1, "gradient_checkpointing": False}
places = {"state": (run_folder.checkpoint, "save"), "lora": (run_folder, "save_file")}
if killed := sys.argv[3]:
    setattr(*places[killed], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    train(trio, data, run_name=killed, **settings)
    sys.exit("it was not killed")
runs = [train(trio, data, run_name=name, **settings) for name in (*places, "whole")]
same = [all(torch.equal(run.lora_model[key], value) for key, value in runs[-1].lora_model.items()) for run in runs]
assert all(same) and runs[0].loss_map == runs[1].loss_map == runs[2].loss_map, same
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows ends processes without a signal")
def test_a_run_that_is_killed_in_its_first_save_trains_when_queued_again(tmp_path: Path) -> None:
    """Through the node, each run in a process of its own."""
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(tmp_path / "base")]
    for place, status in (("state", -signal.SIGKILL), ("lora", -signal.SIGKILL), ("", 0)):
        done = subprocess.run([*command, place], capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stderr[-3000:]


def test_only_the_pictures_do_not_fit(made, runs: Path, monkeypatch) -> None:
    """The disk takes all of the run but its sheets, its charts and its best LoRA."""
    _, _, whole, go = made
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith((".png", BEST)):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(saving.os, "replace", full)
    assert same(go(), whole) and not list(runs.rglob("*.png")) and not list(runs.rglob(".*.tmp"))


def test_the_best_lora_that_does_not_fit_comes_out(models, data, runs: Path, monkeypatch) -> None:
    """The run gets worse after its second step."""
    trio = models("wan_demo")
    chosen = run_node(TrainingValidation, **{**VALIDATION, "keep": "best", "every": 1})[0]
    losses = {0: 5.0, 1: 2.0, 2: 1.0, 3: 3.0, 4: 4.0}
    monkeypatch.setattr(validation, "measure", lambda draws, _, state, *__: [losses[state.step]] * len(draws))
    wanted = train(trio, data, validation=chosen)
    shutil.rmtree(runs)
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(BEST):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(saving.os, "replace", full)
    assert wanted.adapter.metadata["ss_steps"] == "2" and same(train(trio, data, validation=chosen), wanted)


def test_a_run_is_saved_by_time_without_a_lora_and_to_the_same_bytes(models, data, runs: Path, monkeypatch) -> None:
    trio = models("wan_demo")
    wanted = train(trio, data, save_every=0)
    shutil.rmtree(runs)
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", 0.0)
    with cancelled(trio, 3):
        train(trio, data, save_every=0)
    (run,) = runs.iterdir()
    (run / "step_000002.safetensors").unlink()
    assert run_folder.checkpoint.step_of(run / STATE) == 2
    with pytest.raises(ValueError, match="was interrupted at step 2 of 4 and had other settings"):
        train(trio, data, rank=3)
    assert same(train(trio, data, save_every=0), wanted)
