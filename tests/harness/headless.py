"""headless.py as a person calls it: a process of its own, with a base directory of ComfyUI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.comfyui import ROOT, comfyui_path, device_arguments, link_pack, prepare_base

LOADERS: dict[str, dict[str, Any]] = {  # of the demo's models
    "model": {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"},
    },
    "clip": {
        "class_type": "CLIPLoader",
        "inputs": {"clip_name": "loom_demo_words.pt", "type": "stable_diffusion"},
    },
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "loom_demo_vae.safetensors"}},
}


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str
    result: dict[str, Any]


def training(folder: str, steps: int, **values: Any) -> dict[str, dict[str, Any]]:
    """A prompt in the API format: train on a folder below input/, and save the LoRA as `headless`."""
    train = {"steps": steps, "rank": 2, "learning_rate": 1e-3, "run_name": "headless", "quiet": "off"}
    train |= {"alpha": 0.0, "targets": "attention", "seed": 5, "batch_size": 2, "accumulation": 1, **values}
    links = {name: [name, 0] for name in ("model", "clip", "vae", "dataset")}
    data = {"folder": folder, "trigger": "heart", "resolution": 64, "repeats": 1, "bucket_step": 16}
    save = {"adapter": ["train", 2], "model": ["model", 0], "name": "headless", "format": "comfyui", "dtype": "fp32"}
    return {
        **{name: {**node, "inputs": dict(node["inputs"])} for name, node in LOADERS.items()},
        "dataset": {"class_type": "LoraLoom_Dataset", "inputs": data},
        "train": {"class_type": "LoraLoom_TrainLora", "inputs": {**links, **train}, "_meta": {"title": "Trainer"}},
        "save": {"class_type": "LoraLoom_SaveLora", "inputs": save},
    }


class Headless:
    """Commands with one base directory."""

    def __init__(self, base: Path) -> None:
        self.base = prepare_base(base)
        self._count = 0

    def command(self, prompt: Mapping[str, Any], *more: str, launcher: Sequence[str] = ()) -> list[str]:
        """Also writes the workflow."""
        self._count += 1
        workflow = self.base / f"workflow_{self._count}.json"
        workflow.write_text(json.dumps(prompt), encoding="utf-8")
        own = [str(ROOT / "headless.py"), str(workflow), "--result", str(self.result), *more]
        flags = ["--base-directory", str(self.base), "--extra-model-paths-config", str(link_pack())]
        flags += ["--use-pytorch-cross-attention", "--disable-api-nodes", *device_arguments()]
        return [sys.executable, *launcher, *own, *flags]

    @property
    def result(self) -> Path:
        """Where the last command has written how it went."""
        return self.base / f"result_{self._count}.json"

    @contextmanager
    def begun(self, prompt: Mapping[str, Any], *more: str, launcher: Sequence[str] = ()) -> Iterator[subprocess.Popen]:
        """Killed if it still runs in the end."""
        environment = {**os.environ, "COMFYUI_PATH": str(comfyui_path()), "PYTHONIOENCODING": "cp1252"}
        process = subprocess.Popen(
            self.command(prompt, *more, launcher=launcher), cwd=self.base, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="cp1252",
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, prompt: Mapping[str, Any], *more: str, launcher: Sequence[str] = (), timeout: float = 300) -> Ended:
        with self.begun(prompt, *more, launcher=launcher) as process:
            return self.ended(process, timeout)

    def ended(self, process: subprocess.Popen, timeout: float = 300) -> Ended:
        out, err = process.communicate(timeout=timeout)
        told = json.loads(self.result.read_text(encoding="utf-8")) if self.result.exists() else {}
        return Ended(process.returncode, out, err, told)

    def cancelled(self, prompt: Mapping[str, Any], steps: int, *more: str) -> Ended:
        """Ctrl-C once a run has logged so many steps."""
        with self.begun(prompt, *more) as process:
            while self.steps() < steps:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            return self.ended(process)

    def steps(self) -> int:
        """How many steps the logs of all runs have."""
        logs = (self.base / "output" / "lora_loom").glob("*/log.jsonl")
        return sum(log.read_text(encoding="utf-8").count('"loss"') for log in logs)
