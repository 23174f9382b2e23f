"""Average Saved Steps: the mean of the LoRAs that a run has saved on its way."""

from __future__ import annotations

from pathlib import Path

from ....lora_core.adapter import Adapter
from ....lora_core.drawing.measure import Measure
from ....lora_core.files.hashes import data_hash
from ....lora_core.files.lineage import Parent, losses
from ....lora_core.merging.cut_table import error_measure
from ....lora_core.merging.merge import Merged
from ....lora_core.merging.running_mean import LEAST, Mean, mean, shares, taken
from ....lora_core.runs import registry
from ....lora_core.runs.found_run import FoundRun
from ....lora_core.stack.weighted import Weighted
from ..host.folders import runs_folder
from ..host.lora_files import read_lora
from .conversion import Tick
from .provenance import described
from .report import error_lines, size_line


def run_names() -> list[str]:
    """Return the runs that there are, as LoRA runs calls them, those that were changed last first."""
    return list(registry.newest(runs_folder()))


def saved_steps(run: str, first: int) -> dict[int, Path]:
    """Return the files of the steps of a run that are averaged, in order. Raises ValueError for a run that is not
    there, or has saved too few."""
    path = dict(registry.folders(runs_folder())).get(run)
    if path is None:
        raise ValueError(f"the run {run} is not in output/lora_loom any more; choose another run")
    found = FoundRun(path, run)
    found.look(0.0)
    files = found.loras()
    if not files:
        raise ValueError(f"{run} has saved no LoRA yet; choose another run")
    steps = taken(files, first)
    if len(steps) < LEAST:
        has = ", ".join(map(str, files))
        cure = "set from_step lower" if len(files) >= LEAST else "train with a smaller save_every"
        raise ValueError(f"{run} has saved the steps {has}, and an average needs {LEAST} of those it takes; {cure}")
    return {step: path / files[step] for step in steps}


def state_of(run: str | None, first: int | None) -> list:
    """Return name, size and time of each file that is averaged; nothing where there are none."""
    try:
        found = {path.name: path.stat() for path in saved_steps(run or "", first or 0).values()}
    except (ValueError, OSError):
        return []
    return [(name, each.st_size, each.st_mtime_ns) for name, each in found.items()]


def average(run: str, first: int, decay: float, tick: Tick) -> tuple[Adapter, str, Measure]:
    """Return the mean of a run's saved steps, a report, and its figures for the front end. Raises ValueError as
    `saved_steps` and `mean`, and for a run of DoRA."""
    files = saved_steps(run, first)
    adapters = {step: _plain(run, read_lora(path)) for step, path in files.items()}
    weights = dict(zip(files, shares(len(files), decay), strict=True))
    parts = [Weighted(f"{run}, step {step}", adapters[step], weights[step], weights[step]) for step in files]
    made = mean(parts, tick)
    parents = [
        Parent.of(each.name, each.adapter.metadata, each.strength, each.strength, data_hash(path))
        for each, path in zip(parts, files.values(), strict=True)
    ]
    header = parts[-1].adapter.metadata
    how = {"method": "average", "run": run, "steps": list(files), "decay": decay, **losses(made.error, made.errors)}
    base = header.get("modelspec.architecture", "").removesuffix("/lora"), header.get("ss_base_model_version", "")
    report = _report(run, weights, decay, made)
    shown = error_measure(made.error, made.errors, report.partition("\n")[0])
    return described(made.layers, parents, [header], base, how), report, shown


def _plain(run: str, adapter: Adapter) -> Adapter:
    if adapter.others:
        kinds = " and ".join(kind for kind in adapter.kinds() if kind != "LoRA")
        raise ValueError(
            f"{run} trained {kinds} weights, of which a mean would not be {kinds} again; set ema_decay in Training "
            "Optimizer, which averages while it trains, or use one of the steps"
        )
    return adapter


def _report(run: str, weights: dict[int, float], decay: float, made: Mean) -> str:
    steps, last = ", ".join(f"{step} x {weight:.3g}" for step, weight in weights.items()), max(weights)
    kind = f"The moving average, decay {decay:g}," if decay else "The mean"
    cut = Merged(layers=made.layers, errors=made.errors, error=made.error)
    lines = [
        f"{kind} of {len(weights)} saved steps of {run} is {100 * made.moved:.3g} % away from its last step, {last}, "
        f"and its norm is {made.size:.3g} of that.",
        f"steps and their weights: {steps}",
        size_line(cut),
        f"the exact mean has a rank up to {len(weights)} times as high, and is cut back to the rank of the run",
    ]
    return "\n".join([*lines, *error_lines(cut)])
