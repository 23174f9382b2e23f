"""A run on disk: its exact state, the LoRA at checkpoints, its settings and its log; all of it whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..adapter import Adapter
from ..files import formats
from ..files.label import redacted
from ..files.lock import locked
from ..files.save import replace_soon, write_whole
from ..files.save import save as save_file
from ..stored import as_dict
from ..training.state import TrainState
from ..training.trainer import StepResult, Trouble
from ..version import VERSION
from . import checkpoint
from .past_runs import Past, numbered
from .run_log import RunLog

logger = logging.getLogger("lora_loom")

KEPT = 5  # LoRA files of earlier checkpoints
DIRECTIONS = "quiet.safetensors"
_ROOM = 4  # states that must fit beside one that is kept
_MOST_WORKFLOW = 2**24  # bytes
SAVE_SECONDS = 300.0  # after which the state is saved, whatever the steps


class UnsavedError(OSError):
    """Says that what was trained is not on the disk."""


class RunFolder:
    """`state.safetensors`, `step_NNNNNN.safetensors`, `run.json` and `log.jsonl` in one folder, in `state.earlier` the
    state before the last, and in DIRECTIONS those of a quiet run.

    `identity` changes with everything that decides the resulting bytes; `settings` say the same to people. A folder
    that cannot be written, and files in it that cannot be read, stop nothing: `notes` tell of them.
    """

    def __init__(self, path: Path, identity: str, settings: Mapping[str, Any]):
        self.path, self.identity, self.settings = path, identity, settings
        self.state_path, self.log = path / "state.safetensors", RunLog(path / "log.jsonl")
        self.earlier_path = path / "state.earlier"
        self.notes: list[str] = []
        self._went_back = False
        self._saved = 0  # events of the state that is on disk
        self._time = time.monotonic()  # of the last save

    def begun(self) -> bool:
        """Return whether there is a state to go on from, sound or not."""
        return any(map(os.path.isfile, (self.state_path, self.earlier_path)))  # of a name too long, too

    def lora(self, step: int) -> Path:
        """Return the LoRA of a step that was saved."""
        return self.path / f"step_{step:06d}.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes into the folder. Raises ValueError when another process does."""
        refusal = f"another ComfyUI is training {self.path.name} now; wait until it is done, or choose another run_name"
        with ExitStack() as undo:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                undo.enter_context(locked(self.path / ".lock", refusal))
            except OSError as error:
                if not os.access(self.path / ".", os.W_OK):
                    self.notes.append(f"warning: {self._unsaved(error)}; if the run is interrupted, it is lost")
            for leftover in self.path.glob(".*.tmp") if os.path.isdir(self.path) else ():
                with suppress(OSError):
                    leftover.unlink()
            yield

    def resume(self, state: TrainState, start_over: bool = False) -> bool:
        """Bring a fresh state to where the run was cut off, as far back as there is a sound one. False when it begins.

        Raises ValueError for a state of other settings or of another version.
        """
        known = not start_over and self._load(state)
        self._saved = state.events if known and os.path.isfile(self.lora(state.step)) else 0
        self._describe()
        self.log.resume(state.events, state.step)
        return known

    def _load(self, state: TrainState) -> bool:
        """From the last state, or the one before."""
        for path in (self.state_path, self.earlier_path):
            if not os.path.exists(path):
                continue
            try:
                given = checkpoint.load(path, state, self.identity)
            except (checkpoint.DamagedError, OSError) as error:
                self._set_aside(path, error)
                continue
            if path != self.state_path:
                self.notes.append(
                    f"warning: {self.path.name} continues from the save before the last one, at step {state.step}"
                )
            self._compare(given, state)
            return True
        return False

    def _compare(self, given: str, state: TrainState) -> None:
        """Tell when a state was trained with other quiet directions."""
        if given and given != state.given:
            self.notes.append(
                f"warning: the quiet directions that {self.path.name} was begun with are gone, and those made anew "
                f"differ from them. It goes on from step {state.step} with the new ones: what it has learnt is turned "
                "a little, and its result is not exactly that of a run that was not interrupted"
            )

    def _set_aside(self, path: Path, error: Exception) -> None:
        """A state that cannot be used stays beside those to come."""
        why = getattr(error, "strerror", None) or str(error).partition("; delete")[0]
        self.notes.append(
            f"warning: {path.name} of {self.path.name} is damaged and was not used ({why}); if there is no other save, "
            "the run starts again from the beginning. The LoRA files in its folder are kept"
        )
        with suppress(OSError):
            os.replace(path, path.with_suffix(".damaged"))

    def extend(self, state: TrainState, past: Past) -> bool:
        """Begin this run with all that an earlier one has learnt. False, with a note, when its state is damaged."""
        try:
            given = checkpoint.load(past.folder / self.state_path.name, state, past.identity)
        except (checkpoint.DamagedError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error).partition("; delete")[0]
            self.notes.append(
                f"warning: the state of {past.folder.name} cannot be used ({why}); the run starts from the beginning"
            )
            self._describe()
            return False
        self._compare(given, state)
        self._describe()
        with suppress(OSError), open(past.folder / self.log.path.name, "rb") as log:
            write_whole(self.log.path, log.read())
        self.log.resume(state.events, state.step)
        return True

    def keep_workflow(self, workflow: Mapping[str, Any] | None) -> None:
        """`workflow.json`, by which the run can be made again; where there is none, that of an earlier time stays."""
        try:
            data = json.dumps(workflow).encode() if workflow else b""
            if 0 < len(data) <= _MOST_WORKFLOW:
                write_whole(self.path / "workflow.json", data)
        except (OSError, TypeError, ValueError, RecursionError) as error:  # whatever other packs put into it
            logger.warning("%s was not written: %s", self.path / "workflow.json", error)

    def note(self, event: StepResult | Trouble) -> None:
        """A line in the log."""
        if isinstance(event, Trouble):
            self._went_back |= event.went_back
            self.log.add(step=event.step, event=event.text)
        else:
            numbers = {name: value for name, value in as_dict(event).items() if isinstance(value, (int, float))}
            self.log.add(**numbers)

    def save(self, state: TrainState, describe: Callable[[], Adapter]) -> None:
        """The state, then the LoRA. Raises OSError when the disk does not take both, and leaves what was there; of a
        state that it does not take, the LoRA may still find room."""
        try:
            self.save_state(state)
        finally:
            adapter = describe()
            tensors = formats.encode(adapter, "native", dtype=torch.float32)
            header = redacted(adapter.metadata)  # what may be told of the pictures is chosen in Save LoRA
            save_file(self.lora(state.step), tensors, header, overwrite=True)
        self._saved = state.events
        self._prune(state.step)

    def save_state(self, state: TrainState) -> None:
        """The state alone; the one before is kept where the file system links files. Raises OSError as `save`."""
        self._time = time.monotonic()
        with suppress(OSError):
            self.log.sync()
        with self._earlier_kept():
            checkpoint.save(self.state_path, state, self.identity)

    @contextmanager
    def _earlier_kept(self) -> Iterator[None]:
        """The state that is there becomes the earlier one once another is, where the file system links files and has
        room for several more."""
        link = self.path / ".earlier.tmp"
        with suppress(OSError, AttributeError):
            link.unlink(missing_ok=True)
            if shutil.disk_usage(self.path).free > _ROOM * self.state_path.stat().st_size:
                os.link(self.state_path, link)
        try:
            yield
            with suppress(OSError):
                replace_soon(link, self.earlier_path)
        finally:
            with suppress(OSError):
                link.unlink(missing_ok=True)

    def save_in_time(self, state: TrainState) -> str:
        """Save the state, when the last save is long ago; a disk that does not take it is a sentence."""
        if time.monotonic() - self._time < SAVE_SECONDS:
            return ""
        try:
            self.save_state(state)
        except OSError as error:
            return f"step {state.step} was not saved: {self._unsaved(error)}"
        return ""

    def finish(self) -> None:
        """A run that is whole needs no earlier state."""
        with suppress(OSError):
            self.earlier_path.unlink(missing_ok=True)

    def try_save(self, state: TrainState, describe: Callable[[], Adapter]) -> str:
        """As `save`; a disk that does not take it is a sentence, and nothing to stop for yet."""
        if state.events == self._saved or not state.step:
            return ""
        try:
            self.save(state, describe)
        except OSError as error:
            return f"step {state.step} was not saved: {self._unsaved(error)}"
        return ""

    @contextmanager
    def kept(self, state: TrainState, describe: Callable[[], Adapter]) -> Iterator[None]:
        """Save on leaving, however it is left: finished, cancelled, out of memory or broken.

        A run that is finished and cannot be saved raises UnsavedError with a sentence.
        """
        try:
            yield
        except BaseException:
            if not state.torn and (problem := self.try_save(state, describe)):
                logger.error(problem)
            raise
        if problem := self.try_save(state, describe):
            raise UnsavedError(
                f"{problem}; the last save is intact. Free some disk space and queue again: the run continues from "
                "there, with the same result"
            )

    def _unsaved(self, error: OSError) -> str:
        return f"{self.path} cannot be written ({error.strerror or error})"

    def _describe(self) -> None:
        """run.json"""
        path, run = self.path / "run.json", {"identity": self.identity, "settings": self.settings}
        text = json.dumps({"lora_loom": VERSION, **run}, indent=1) + "\n"
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == text:
                return
        try:
            write_whole(path, text.encode())
        except OSError as error:
            logger.warning("%s was not written: %s", path, error)

    def _prune(self, step: int) -> None:
        """Delete LoRA files up to this step except the last few, and those beyond it only if the run went back."""
        kept = numbered(self.path)
        stale = [number for number in kept if number > step] if self._went_back else []
        for number in [*stale, *[n for n in kept if n <= step][: -KEPT - 1]]:
            with suppress(OSError):
                kept[number].unlink(missing_ok=True)
        self._went_back = False
