"""The whole check, finding by finding, and its two files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ....lora_core.analysis.device_check import Check, CheckFinding
from ..host.progress import Progress
from . import derived, memory, right, timing
from .networks import FLUX, TINY
from .rig import Rig, guarded
from .who import who

Told = Callable[[CheckFinding, int], None]  # a finding, and how many there are by now
EXPECTED = len(TINY) * len(right.EACH) + len(right.ONCE) + len(derived.ONCE) + 18  # about, for a bar
NAME = "lora_loom_gpu_check"


def check(device: torch.device | None = None, quick: bool = False, tell: Told = lambda *_: None) -> Check:
    """Check everything on ComfyUI's device, or another. `quick` leaves out real widths and takes three steps for ten.

    Models that ComfyUI holds on the device are unloaded first. Raises the interrupt of a user who cancels.
    """
    device = device or comfy.model_management.get_torch_device()
    comfy.model_management.unload_all_models()
    started, found, told = time.monotonic(), [], who(device)
    for finding in _findings(Rig(device), quick):
        found.append(finding)
        tell(finding, len(found))
        comfy.model_management.throw_exception_if_processing_interrupted()
    return Check(told, found, time.monotonic() - started, quick)


def write(found: Check, folder: Path) -> list[Path]:
    """Write the JSON and the page; earlier ones of the same name are replaced."""
    texts = {"json": found.as_json(), "md": found.page()}
    paths = [folder / f"{NAME}.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _findings(rig: Rig, quick: bool) -> Iterator[CheckFinding]:
    if comfy.model_management.is_device_cpu(rig.device):
        yield CheckFinding(
            "right", "beside the CPU", None, "this device is the CPU: its results are compared with themselves"
        )
    for network in TINY:
        for name, work in right.EACH.items():
            yield guarded("right", f"{network.name}, {name}", partial(work, rig, network), partial(rig.left, network))
    for name, work in (right.ONCE | derived.ONCE).items():
        yield guarded("right", name, partial(work, rig, FLUX), partial(rig.left, FLUX))
    if quick:
        yield CheckFinding("memory", "predicted and real", None, "left out in the quick check")
    else:
        yield from memory.run(rig)
    yield from timing.run(rig, quick)


def on_node(quick: bool) -> tuple[Check, str]:
    """The check with its progress on the node that is executing, and what stays on it; its files go to the output
    folder."""
    progress = Progress(EXPECTED)

    def tell(finding: CheckFinding, done: int) -> None:
        progress.tick(min(done, EXPECTED), EXPECTED)
        progress.say(f"{done} of about {EXPECTED}: {finding.line()}")

    found = check(quick=quick, tell=tell)
    paths = write(found, Path(folder_paths.get_output_directory()))
    written = f"in the output folder: {' and '.join(path.name for path in paths)}"
    return found, progress.end("\n".join([*found.verdicts(), written]))
