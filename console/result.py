"""Tells how it went: the last lines, and a file for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .document import Prompt
from .words import Words, clock

DONE, FAILED, BAD_INPUT = 0, 1, 2
_OUTCOMES = {DONE: "done", FAILED: "failed", BAD_INPUT: "bad input"}
_MODELS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_TRAINER, _SAVER = "LoraLoom_TrainLora", "LoraLoom_SaveLora"


@dataclass
class Result:
    """`runs`: for each Train LoRA its node, name, folder, state, step, total, loss (smoothed) and seconds."""

    status: int = FAILED
    problem: str = ""
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        return _OUTCOMES.get(self.status, "cancelled")

    def write(self, path: Path) -> None:
        """Under another name first, so that whoever finds it finds all of it."""
        told = {"status": self.status, "outcome": self.outcome, "problem": self.problem, "seconds": self.seconds}
        told |= {"files": self.files, "runs": self.runs}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    def tell(self, words: Words) -> None:
        """Write the last lines: what went wrong, else the files."""
        words.clear()
        for run in self.runs:
            words.result(f"run folder: {run['folder']}")
        for file in self.files:
            words.result(f"written: {file}")
        if self.problem:
            words.error(f"{self.outcome} after {clock(self.seconds)}: {self.problem}")
        else:
            words.line(f"{self.outcome} in {clock(self.seconds)}")


def runs_of(told: Mapping[str, Mapping[str, Any]], output: Path) -> list[dict[str, Any]]:
    """Return what was last told of runs, without what only a browser asks."""
    kept = ("node", "name", "state", "step", "total", "loss", "seconds")
    begun = [run for run in told.values() if run.get("id")]
    return [{**{key: run.get(key) for key in kept}, "folder": str(output / "lora_loom" / run["id"])} for run in begun]


def files_of(outputs: Mapping[str, Any], prompt: Prompt, since: float) -> list[str]:
    """Return the files that nodes say they have written, and models that came into the output folder since then (in
    seconds since the epoch): ComfyUI's own nodes do not name those."""
    import folder_paths

    output = Path(folder_paths.get_output_directory())
    savers = [key for key, node in prompt.items() if node.get("class_type") == _SAVER]
    loras = [name for key in savers for name in (outputs.get(key) or {}).get("lora_loom_files", [])]
    found = [*_named(outputs, output), *(str(Path(folder_paths.get_folder_paths("loras")[0]) / each) for each in loras)]
    found += [str(path) for path in _models(output, since)]
    return list(dict.fromkeys(found))


def _named(outputs: Mapping[str, Any], output: Path) -> Iterator[str]:
    """Temporary pictures go when this process ends."""
    lists = (each for node in outputs.values() for each in node.values() if isinstance(each, Sequence))
    for item in (item for each in lists for item in each if isinstance(item, dict)):
        if item.get("type") == "output" and item.get("filename"):
            yield str(output / (item.get("subfolder") or "") / item["filename"])


def _models(output: Path, since: float) -> Iterable[Path]:
    """Yield new models; what lies in folders of runs, and in the cache, is not named by itself."""
    for folder, below, names in os.walk(output):
        below[:] = [name for name in below if not name.startswith("lora_loom")]
        for path in (Path(folder, name) for name in names if name.lower().endswith(_MODELS)):
            if path.stat().st_mtime >= since:
                yield path
