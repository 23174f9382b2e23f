"""The strength to use a LoRA at, measured at the end of a run that is watched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import comfy.model_management

from ....lora_core.training.strengths import MOST_CAPTIONS, Scale, StrengthCurve

if TYPE_CHECKING:
    from .validation import Watch


def measured(watch: Watch) -> tuple[StrengthCurve | None, str]:
    """Return the curve of a run at its end, and what the report says of it; None and the reason where there is nothing
    to measure it with; nothing of a run without validation."""
    chosen, record, neutral = watch.chosen, watch.state.record, neutral_of(watch)
    if not chosen:
        return None, ""
    if not chosen.held_out:
        return None, _none("no picture is held out")
    if not neutral:
        return None, _none("there are no neutral captions, by which to tell what else the LoRA changes")
    if chosen.keep == "best" and record.best() != watch.state.step:
        return None, _none(f"the LoRA that comes out is that of step {record.best()}, not the last one")
    watch.enters("measuring the strength")
    tick, started = comfy.model_management.throw_exception_if_processing_interrupted, time.monotonic()
    scale = Scale(watch.config, watch.state, watch.denoiser, watch.samples, watch.cfg, tick)
    curve = scale.curve(watch.draws, neutral)
    seconds = time.monotonic() - started
    looked = f"{curve.pictures} held-out pictures, {curve.captions} neutral captions, {seconds:.1f} s"
    return curve, f"{curve.sentence()} ({looked})."


def neutral_of(watch: Watch) -> list[tuple[int, Any]]:
    """Return pictures that are looked at, by index, each with a condition that has nothing to do with the concept or
    names its class alone; the conditions are spread over the whole list."""
    shown, found = watch.pictures.looked_at, []
    for number in range(MOST_CAPTIONS if shown else 0):
        picture = shown[number % len(shown)]
        pool = watch.samples[picture].neutral or watch.samples[picture].preserved
        found += [(picture, pool[number * len(pool) // MOST_CAPTIONS])] if pool else []
    return found


def _none(why: str) -> str:
    return f"No strength is suggested: {why}."
