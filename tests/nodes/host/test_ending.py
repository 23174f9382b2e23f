"""Signals that end the process cancel a run, and end the process as ever once it is kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import pytest
from harness.comfyui import ROOT
from harness.runs import STEPS, on_forward, train, write_pictures
from harness.server import ComfyServer
from lora_loom.nodes.bridge.host.ending import SIGNALS, _Closing, ended_by_signals


def run_of(folder: str, steps: int) -> dict:
    """A training of the demo model, in API format."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "loom_demo_words.pt", "type": "stable_diffusion"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "loom_demo_vae.safetensors"}},
        "4": {"class_type": "LoraLoom_Dataset", "inputs": {
            "folder": folder, "trigger": "x", "resolution": 64, "repeats": 1, "bucket_step": 16}},
        "5": {"class_type": "LoraLoom_TrainLora", "inputs": {
            "model": ["1", 0], "clip": ["2", 0], "vae": ["3", 0], "dataset": ["4", 0], "steps": steps, "rank": 2,
            "alpha": 2.0, "learning_rate": 1e-3, "targets": "attention", "seed": 7, "batch_size": 1, "accumulation": 1,
            "run_name": "signals", "save_every": 0, "gradient_checkpointing": False}},
    }  # fmt: skip


def steps_of(base: Path) -> int:
    return sum(path.read_text().count('"loss"') for path in base.glob("output/lora_loom/signals-*/log.jsonl"))


def wait_for(holds: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.02)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows ends other processes without a signal")
def test_a_server_that_is_told_to_end_keeps_its_run_first(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    write_pictures(tmp_path / "input" / "p")
    done, ignored = 0, signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as of jobs in the background
    first = signal.SIGTERM if ignored else signal.SIGINT
    for number, ends in ((first, (0, -signal.SIGTERM)), (signal.SIGTERM, (-signal.SIGTERM,))):
        with ComfyServer(tmp_path) as server:
            server.post_prompt(run_of("p", 2000))
            wait_for(lambda least=done + 5: steps_of(tmp_path) >= least)
            process = server._process
            process.send_signal(number)
            assert process.wait(240) in ends, server.log(30)
            before_end = server.log().partition("Stopped server")[0]
            assert "Processing interrupted" in before_end or number == signal.SIGTERM, "Python ends with work going on"
        (run,) = (tmp_path / "output" / "lora_loom").iterdir()
        found = sorted(int(path.stem[-6:]) for path in run.glob("step_*.safetensors"))
        assert (run / "state.safetensors").is_file() and found[-1] >= done + 5 and ROOT.is_dir()
        assert done == 0 or '"event": "resumed"' in (run / "log.jsonl").read_text()
        done = found[-1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_cancel_and_reaches_who_was_there_before(models, data, runs: Path, number: int) -> None:
    trio, came, before = models("wan_demo"), [], signal.getsignal(number)

    def there_before(*_: object) -> None:
        came.append(sorted(path.name for path in runs.rglob("*.safetensors")))

    def shoot(forward: int) -> None:
        if forward == 3:
            signal.raise_signal(number)

    signal.signal(number, there_before)
    try:
        with on_forward(trio, shoot), pytest.raises(comfy.model_management.InterruptProcessingException):
            train(trio, data)
        assert came == [["state.safetensors", "step_000002.safetensors"]]
        assert signal.getsignal(number) is there_before
        comfy.model_management.interrupt_current_processing(False)
        assert len(train(trio, data).loss_map["loss"]) == STEPS and len(came) == 1
        signal.signal(number, signal.SIG_IGN)
        with ended_by_signals():
            assert signal.getsignal(number) == signal.SIG_IGN, "as under nohup"
    finally:
        signal.signal(number, before)


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGTERM)
            assert not came
            signal.raise_signal(signal.SIGTERM)
            assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        comfy.model_management.interrupt_current_processing(False)


def test_a_closing_console_waits_until_the_run_is_saved() -> None:
    """The test calls what Windows calls, in a thread of its own."""
    closing, answers = _Closing(), []
    assert closing.handle(0) == 0, "Ctrl-C is a signal"
    told = threading.Thread(target=lambda: answers.append(closing.handle(2)))
    told.start()
    try:
        wait_for(comfy.model_management.processing_interrupted)
        assert not answers
        closing.leave()
        told.join(60)
        assert answers == [0]
    finally:
        comfy.model_management.interrupt_current_processing(False)
