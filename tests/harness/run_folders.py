"""Folders of runs as Train LoRA leaves them, made without training: for what reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lora_loom.lora_core.drawing.sheet import SheetRow, placed
from lora_loom.lora_core.files import save
from lora_loom.lora_core.runs import kept_picture, result
from lora_loom.lora_core.runs.kept_picture import KINDS, Part
from lora_loom.lora_core.runs.result import Finished
from lora_loom.lora_core.training import snapshot
from lora_loom.lora_core.training.record import Point, Record, Window, cells
from PIL import Image

SETTINGS = {
    "lora": {"rank": 8, "alpha": 8.0}, "train": {"steps": 100, "learning_rate": 1e-4}, "text": {},
    "dataset": {"pictures": 4, "px": 64, "hash": "d"}, "model": {"family": "SDXL", "hash": "m"},
}  # fmt: skip
COLOURS = ("#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff", "#00ffff")


def run(parent: Path, name: str = "ink-1234abcd", begun: float = 1e9, **settings: Any) -> Path:
    """A run that was begun at that time with SETTINGS but for what is given, by the last names of settings."""
    folder, told = parent / name, json.loads(json.dumps(SETTINGS))
    for part in told.values():
        part.update({key: value for key, value in settings.items() if key in part})
    write(folder / "run.json", json.dumps({"lora_loom": "0.1.0", "identity": "1234abcd", "settings": told}))
    os.utime(folder / "run.json", (begun, begun))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def steps(numbers: Iterable[int], time: float = 1e9, loss: float = 0.5) -> list[dict[str, Any]]:
    """Lines of a log, a second apart."""
    return [{"step": n, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-4, "time": time + n} for n in numbers]


def log(folder: Path, lines: Iterable[Mapping[str, Any]], add: bool = False) -> None:
    with open(folder / "log.jsonl", "a" if add else "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def lora(folder: Path, step: int, name: str = "", rank: int = 2) -> Path:
    """Return a small sound LoRA of a step."""
    tensors = {"x.lora_down.weight": torch.full((rank, 4), float(step)), "x.lora_up.weight": torch.ones(4, rank)}
    path = folder / (name or f"step_{step:06d}.safetensors")
    save.save(path, tensors, {"ss_steps": str(step)}, overwrite=True)
    return path


def state(folder: Path, step: int, points: Mapping[int, float] | None = None) -> None:
    """Enough of a state to tell where the run goes on, and its validation."""
    record = Record([Window(step, step)], {"0": cells()}, "k", [1.0, 2.0] if points else [])
    record.points = [Point(at, [loss, loss]) for at, loss in (points or {}).items()]
    progress = snapshot.as_tensor({"losses": [0.5] * step, "record": record.plain()})
    header = {"lora_loom.step": str(step)}
    save.save(folder / "state.safetensors", {"progress": progress}, header, overwrite=True)


def done(folder: Path, step: int, kept_step: int | None = None, summary: str = "well") -> None:
    told = Finished(step, f"step_{kept_step or step:06d}.safetensors", kept_step or step, [0.5], "It is well.", summary)
    result.remember(folder, "key", told, Image.new("RGB", (8, 8)))


def sheet(folder: Path, step: int, prompts: Iterable[tuple[str, ...]], side: int = 16, parts: bool = True) -> Path:
    """Return a sheet whose pictures are plain, each in a colour of COLOURS by its number."""
    rows, shown, number = [], [], 0
    for row, own in enumerate(prompts):
        about = [(row, prompt, kind) for prompt in own for kind in KINDS]
        pictures = [Image.new("RGB", (side, side), COLOURS[(number + i) % len(COLOURS)]) for i in range(len(about))]
        rows.append(SheetRow("  |  ".join(own), pictures, [kind for *_, kind in about]))
        shown, number = [*shown, *about], number + len(about)
    page, boxes = placed(rows, f"step {step}")
    path = folder / "previews" / f"step_{step:06d}.png"
    told = [Part(*about, box) for about, box in zip(shown, boxes, strict=True)]
    kept_picture.write(path, page, "note", told if parts else ())
    return path
