"""A run on disk: its exact state, the LoRA at checkpoints, its settings and its log; all of it whole or not at all."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapter import Adapter
from ..files import formats
from ..files.label import redacted
from ..files.lock import locked
from ..files.save import save as save_file
from ..files.save import write_whole
from ..version import VERSION
from . import checkpoint
from .run_log import RunLog
from .trainer import StepResult, TrainState, Trouble

logger = logging.getLogger("lora_loom")

KEPT = 5  # LoRA files of earlier checkpoints
_LORA = re.compile(r"step_(\d+)\.safetensors")


@dataclass(frozen=True)
class Past:
    """What an earlier run left: its folder, its identity, its settings and the last step of which there is a LoRA."""

    folder: Path
    identity: str
    settings: Mapping[str, Any]
    step: int

    @property
    def finished(self) -> bool:
        return self.step >= self.settings["train"]["steps"]


class RunFolder:
    """`state.safetensors`, `step_NNNNNN.safetensors`, `run.json` and `log.jsonl` in one folder.

    `identity` changes with everything that decides the resulting bytes; `settings` say the same to people.
    """

    def __init__(self, path: Path, identity: str, settings: Mapping[str, Any]):
        self.path, self.identity, self.settings = path, identity, settings
        self.state_path, self.log = path / "state.safetensors", RunLog(path / "log.jsonl")
        self._went_back = False
        self._saved = 0  # events of the state that is on disk

    def lora(self, step: int) -> Path:
        """The LoRA of a step that was saved."""
        return self.path / f"step_{step:06d}.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes into the folder. Raises ValueError when another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        refusal = f"another ComfyUI is training {self.path.name} just now; wait for it, or choose another run_name"
        with locked(self.path / ".lock", refusal):
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            yield

    def resume(self, state: TrainState, start_over: bool = False) -> bool:
        """Bring a fresh state to where the run was cut off. False when it begins."""
        known = self.state_path.is_file() and not start_over
        if known:
            checkpoint.load(self.state_path, state, self.identity)
            self._saved = state.events if self.lora(state.step).is_file() else 0
        self._describe()
        self.log.resume(state.events, state.step)
        return known

    def extend(self, state: TrainState, past: Past) -> None:
        """Begin this run with all that an earlier one has learnt."""
        checkpoint.load(past.folder / self.state_path.name, state, past.identity)
        self._describe()
        earlier = past.folder / self.log.path.name
        if earlier.is_file():
            write_whole(self.log.path, earlier.read_text(encoding="utf-8").encode())
        self.log.resume(state.events, state.step)

    def note(self, event: StepResult | Trouble) -> None:
        """A line in the log."""
        if isinstance(event, Trouble):
            self._went_back |= event.went_back
            self.log.add(step=event.step, event=event.text)
        else:
            numbers = {name: value for name, value in asdict(event).items() if isinstance(value, (int, float))}
            self.log.add(**numbers)

    def save(self, state: TrainState, describe: Callable[[], Adapter]) -> None:
        """The LoRA, then the state. Raises OSError, and leaves what was there, when the disk does not take them."""
        self.log.sync()
        adapter = describe()
        tensors = formats.encode(adapter, "native", dtype=torch.float32)
        header = redacted(adapter.metadata)  # what may be told of the pictures is chosen in Save LoRA
        save_file(self.lora(state.step), tensors, header, overwrite=True)
        checkpoint.save(self.state_path, state, self.identity)
        self._saved = state.events
        self._prune(state.step)

    def try_save(self, state: TrainState, describe: Callable[[], Adapter]) -> str:
        """As `save`; a disk that does not take it is a sentence, and nothing to stop for yet."""
        if state.events == self._saved or not state.step:
            return ""
        try:
            self.save(state, describe)
        except OSError as error:
            return f"step {state.step} is not on disk: {self._unsaved(error)}"
        return ""

    @contextmanager
    def kept(self, state: TrainState, describe: Callable[[], Adapter]) -> Iterator[None]:
        """Save on leaving, however it is left: finished, cancelled, out of memory or broken.

        A run that is finished and cannot be saved raises OSError with a sentence.
        """
        try:
            yield
        except BaseException:
            if not state.torn and (problem := self.try_save(state, describe)):
                logger.error(problem)
            raise
        if problem := self.try_save(state, describe):
            raise OSError(
                f"{problem}; what was saved before is whole. Make room and queue again: the run goes on from there, "
                "to the same result"
            )

    def _unsaved(self, error: OSError) -> str:
        return f"{self.path} cannot be written ({error.strerror or error})"

    def _describe(self) -> None:
        """run.json"""
        path, run = self.path / "run.json", {"identity": self.identity, "settings": self.settings}
        text = json.dumps({"lora_loom": VERSION, **run}, indent=1) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode())

    def _prune(self, step: int) -> None:
        """Of the LoRA files up to this step the last few stay, those beyond it unless the run went back."""
        numbered = _numbered(self.path)
        stale = [number for number in numbered if number > step] if self._went_back else []
        for number in [*stale, *[n for n in numbered if n <= step][: -KEPT - 1]]:
            numbered[number].unlink(missing_ok=True)
        self._went_back = False


def past_runs(parent: Path, name: str) -> list[Past]:
    """Earlier runs of a name with their settings, the latest last; folders that have none are passed over."""
    found = []
    for path in sorted(parent.glob(f"{_literal(name)}-*/run.json"), key=lambda path: path.parent.stat().st_mtime):
        if not re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", path.parent.name):
            continue
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            steps = _numbered(path.parent)
            past = Past(path.parent, run["identity"], run["settings"], max(steps, default=0))
        except (ValueError, KeyError, OSError) as error:
            logger.warning("%s is passed over: %s", path, error)
            continue
        if past.step:
            found.append(past)
    return found


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _numbered(folder: Path) -> dict[int, Path]:
    """The LoRA files of a run by step, in order."""
    found = ((_LORA.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))
