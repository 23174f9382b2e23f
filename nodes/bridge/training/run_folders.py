"""Tells which folder of ComfyUI's output a run is kept in, and what earlier runs of its name have to do with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management

from ....lora_core.ranks.group import here
from ....lora_core.runs import checkpoint
from ....lora_core.runs.past_runs import Past, past_runs
from ....lora_core.runs.result import forget
from ....lora_core.runs.run_folder import RunFolder
from ....lora_core.runs.setting_changes import differences
from ....lora_core.runs.unkept import Unkept
from ....lora_core.training.config import fingerprint
from ....lora_core.training.state import TrainState
from ..host.folders import run_folder
from ..host.progress import Progress
from ..host.ranks import by_first, on_all
from ..stack.carried import BELOW

log = logging.getLogger("lora_loom")
_ELSE = "choose another run_name for a new run, or set resume to 'start over' for a new run with this name"


@contextmanager
def begun(
    name: str,
    identity: str,
    settings: Mapping[str, Any],
    state: TrainState,
    start_over: bool,
    progress: Progress,
    before: Sequence[str] = (),
) -> Iterator[RunFolder]:
    """The run's folder, while it is this process's, with `state` brought to where the run goes on.

    A run of this name and these settings goes on. One that differs in `steps` only, and has done fewer, is gone on with
    in a folder of its own, at the learning rates of the new schedule. Raises ValueError when the latest run of the name
    was cut off and differs in something else; when it was finished, the node says so. `before` are the LoRAs below as
    version 0.1.0 told them.

    With several ranks it is the first that keeps the run, and whose state all begin with.
    """
    group = here()
    args = name, identity, settings, state, start_over, progress, before
    with ExitStack() as undo:
        own = on_all(lambda: undo.enter_context(_kept(*args)) if group.first else None)
        if group.size > 1:
            _spread(state)
        progress.begin(state.step)
        yield own or Unkept(run_folder(name, identity), identity, settings)


def _spread(state: TrainState) -> None:
    """Bring the state of every rank to that of the first."""
    tensors = by_first(lambda: checkpoint.taken(state))
    if not here().first:
        checkpoint.bring(state, tensors)


@contextmanager
def _kept(
    name: str,
    identity: str,
    settings: Mapping[str, Any],
    state: TrainState,
    start_over: bool,
    progress: Progress,
    before: Sequence[str],
) -> Iterator[RunFolder]:
    steps = settings["train"]["steps"]
    run, past, note = _found(name, identity, settings, start_over, before)
    with run.held():
        if run.resume(state, start_over):
            log.info("continuing %s at step %d of %d", run.path.name, state.step, steps)
        elif past is not None and run.extend(state, past):
            log.info("continuing %s at step %d of %d as %s", past.folder.name, state.step, steps, run.path.name)
        elif past is not None:
            note = ""
        for each in (note, *run.notes):
            tell(progress, each)
        forget(run.path)
        yield run


def known(
    name: str, identity: str, settings: Mapping[str, Any], before: Sequence[str] = ()
) -> RunFolder | None:  # fmt: skip
    """The run of this name and these very settings, if there is one; `before` as in `begun`."""
    own = RunFolder(run_folder(name, identity), identity, settings)
    if own.begun():
        return own
    for past in _past(own, before):
        same = RunFolder(past.folder, past.identity, settings)
        if not differences(past.settings, settings) and same.begun():
            return same
    return None


def tell(progress: Progress, note: str) -> None:
    """Keep a note, if there is one, on the node and in the log."""
    if note:
        log.warning(note)
        progress.keep(note)


@contextmanager
def stop_told(state: TrainState, run: RunFolder, progress: Progress) -> Iterator[None]:
    """Says on the node how far a run came that is cancelled inside, when it is saved."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        progress.end(_stopped(state.step, run))
        raise


def place(folder: Path) -> str:
    """Return where a run is, for people."""
    return f"output/lora_loom/{folder.name}"


def _stopped(step: int, run: RunFolder) -> str:
    if not step:
        return "stopped before the first step; queue again to start"
    reached = f"stopped at {step} of {run.settings['train']['steps']}"
    if not run.lora(step).is_file():
        return f"{reached}, not saved (see the log); queue again to continue from the last save"
    return f"{reached}, saved; queue again to continue\nsaved in {place(run.path)}"


def _found(
    name: str, identity: str, settings: Mapping[str, Any], start_over: bool, before: Sequence[str]
) -> tuple[RunFolder, Past | None, str]:
    """The run, the one that it extends, and what to say about the latest other one of the name.

    One of the same settings that has no state, as its first save was cut off, begins anew.
    """
    steps = settings["train"]["steps"]
    own = RunFolder(run_folder(name, identity), identity, settings)
    if start_over:
        return own, None, ""
    if found := known(name, identity, settings, before):
        return found, None, ""
    past = [each for each in _past(own, before) if differences(each.settings, settings)]
    changes = [differences(each.settings, settings) for each in past]
    shorter = [
        p for p, c in zip(past, changes, strict=True) if set(c) == {"steps"} and p.step < settings["train"]["steps"]
    ]
    if shorter:
        longest = max(shorter, key=lambda each: each.step)
        identity = fingerprint(identity, longest.identity)
        run = RunFolder(run_folder(name, identity), identity, settings)
        note = (
            f"continues from step {longest.step} of {longest.folder.name}, with the learning rate schedule of "
            f"{steps} steps"
        )
        return run, longest, note
    return own, None, _said(past[-1], changes[-1]) if past else ""


def _past(run: RunFolder, before: Sequence[str]) -> list[Past]:
    """Runs of its name. What one has of the same LoRAs below as version 0.1.0 told them is told as today."""
    found, now = past_runs(run.path.parent, run.path.name[: -len("-12345678")]), run.settings.get(BELOW)
    return [
        replace(each, settings={**each.settings, BELOW: now}) if before and each.settings.get(BELOW) == before else each
        for each in found
    ]


def _said(past: Past, changes: Mapping[str, str]) -> str:
    """Raises ValueError when the run was cut off: whoever queues again probably wants to go on with it."""
    what = "; ".join(changes.values())
    if past.finished:
        return (
            f"this is a new run; {past.folder.name} is not changed. Different: {what}. Choose another run_name to "
            "tell them apart"
        )
    steps = past.settings["train"]["steps"]
    raise ValueError(
        f"{past.folder.name} was interrupted at step {past.step} of {steps} and had other settings: {what}. Restore "
        f"those settings to continue it, {_ELSE}"
    )
