"""Reads what a run of a sweep left in its folders: how well it learned, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...lora_core.data.decoding import PictureError, content, decode
from ...lora_core.runs.found_run import FoundRun
from ...lora_core.runs.kept_picture import KINDS
from .outcome import Outcome

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Figures:
    """Says of a training how far it is, its smoothed loss, and the lowest loss on held-out pictures with its step."""

    step: int
    total: int
    loss: float | None
    held_out: float | None = None
    best: int | None = None


def figures_of(outcome: Outcome) -> list[Figures]:
    """Return one for each Train LoRA of the workflow."""
    return [_figures(run) for run in map(_run, outcome.runs)]


def pictures_of(outcome: Outcome) -> list[Image.Image]:
    """Return what the outputs wrote, then the last previews of the LoRA."""
    paths = [Path(file) for file in outcome.files if file.lower().endswith(_PICTURES)]
    found = [picture for path in paths if (picture := _opened(path))]
    return found + [picture for run in map(_run, outcome.runs) for picture in _previews(run)]


def charts_of(outcome: Outcome) -> list[Image.Image]:
    """Return the curves of each Train LoRA that came to its end."""
    paths = (path for run in map(_run, outcome.runs) if (path := run.charts()))
    return [picture for path in paths if (picture := _opened(path))]


def _run(told: dict) -> FoundRun:
    folder = Path(told["folder"])
    run = FoundRun(folder, folder.name)
    run.look()
    return run


def _figures(run: FoundRun) -> Figures:
    told = run.summary(running=False)
    losses = {step: loss for step, loss in run.validation() if step and loss is not None}
    best = min(losses, key=losses.__getitem__) if losses else None
    held_out = losses[best] if best is not None else None
    return Figures(told["step"], told["total"], told["loss"], held_out, int(best) if best is not None else None)


def _previews(run: FoundRun) -> Iterator[Image.Image]:
    """Yield what the LoRA drew last, without what the base model did."""
    step = max(run.previews, default=None)
    path = run.sheet(step) if step is not None else None
    whole = _opened(path) if path else None
    if whole is None:
        return
    boxes = [part.box for part in run.parts(step) if part.kind == KINDS[1]]
    yield from map(whole.crop, boxes or [(0, 0, *whole.size)])


def _opened(path: Path) -> Image.Image | None:
    try:
        return decode(content(path)).image.convert("RGB")
    except PictureError:
        return None
