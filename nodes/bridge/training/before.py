"""Answers what Train LoRA shows before a run: what auto will choose, the pictures counted, and memory.

Only models that ComfyUI lists are looked at, by their headers, and folders only as LoRA Dataset finds them; of these
nothing is told but counts. What is not known before a run is not in the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import comfy.model_management
import folder_paths
from aiohttp import web

from ....lora_core.data.counting import count
from ....lora_core.data.pictures import MASKS
from ....lora_core.training.config import OPTIMIZERS, TARGETS, OptimizerConfig
from ....lora_core.training.objective_config import AUTO, TIMESTEP_LAWS
from ....lora_core.training.presets import choose, preset_of
from ..host.desk import Desk, RefusedError
from ..host.device import free_bytes, shares_ram
from ..host.folders import dataset_folder
from ..model.header_family import ModelFile, look
from ..quiet.choice import OFF, QUIET, goes_quiet
from ..session.needs import known_need

_KINDS = ("checkpoints", "diffusion_models")
_MOST_FOLDERS = 16

_desk = Desk("before")


def serve_by(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/before")(before)


async def before(request: web.Request) -> web.Response:
    return await _desk.json(_answer, {name: request.query.getall(name) for name in request.query})


def _answer(asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    try:
        return foreseen(asked)
    except ValueError as error:
        raise RefusedError(400, str(error)) from error


def foreseen(asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Raises ValueError for numbers and choices that Train LoRA does not take."""
    path = _model(_one(asked, "kind"), _one(asked, "model"))
    found = look(path) if path else ModelFile()
    columns = [list(asked.get(name, ())) for name in ("folder", "trigger", "masks")]
    folders = list(zip_longest(*columns, fillvalue=""))[:_MOST_FOLDERS]
    chosen = _chosen(asked, found)
    return {**chosen, "memory": _memory(path, found), "folders": [_counted(*each) for each in folders]}


def _one(asked: Mapping[str, Sequence[str]], name: str, default: str = "") -> str:
    return next(iter(asked.get(name, ())), default)


def _number(asked: Mapping[str, Sequence[str]], name: str) -> float:
    found = float(_one(asked, name, "0"))
    if not math.isfinite(found):
        raise ValueError(f"{name} is {found}")
    return found


def _choice(asked: Mapping[str, Sequence[str]], name: str, options: Sequence[str]) -> Any:
    """One of a Literal's values, the first unless another is asked for."""
    found = _one(asked, name, options[0])
    if found not in options:
        raise ValueError(f"{name} is not one of {', '.join(options)}")
    return found


def _model(kind: str, name: str) -> str:
    """The path of a model that ComfyUI lists; empty for any other."""
    if kind not in _KINDS or name not in folder_paths.get_filename_list(kind):
        return ""
    return folder_paths.get_full_path(kind, name) or ""


def _chosen(asked: Mapping[str, Sequence[str]], found: ModelFile) -> dict[str, Any]:
    """Return what auto stands for; nothing where the family is not known, as another one's values would be wrong."""
    rank, alpha, rate, shift = (_number(asked, name) for name in ("rank", "alpha", "learning_rate", "shift"))
    targets, law = _choice(asked, "targets", (AUTO, *TARGETS)), _choice(asked, "timesteps", (AUTO, *TIMESTEP_LAWS))
    if found.family is None:
        return {"family": None}
    name = _one(asked, "optimizer")
    optimizer = OptimizerConfig(name, "constant") if name in OPTIMIZERS else OptimizerConfig()
    family = found.family.preset_name
    preset = preset_of(family)
    quiet, learns = _choice(asked, "quiet", (OFF, *QUIET)), _choice(asked, "learns", ("pictures", "other"))
    triggers = any(map(str.strip, asked.get("trigger", ())))
    quieted = goes_quiet(quiet, family, triggers and learns == "pictures")
    chosen = choose(family, targets, int(rank), alpha, rate, law, shift, optimizer, quiet=quieted)
    return {
        "family": family, "resolution": preset.resolution, "evidence": preset.evidence, "values": chosen.values(),
        "automatic": list(chosen.automatic),
    }  # fmt: skip


def _memory(path: str, found: ModelFile) -> dict[str, Any]:
    """Bytes. `needed` is what the latest run of the file needed with the settings in `of`."""
    device = comfy.model_management.get_torch_device()
    known = known_need(path) if path else None
    needed = {"needed": known[0], "of": known[1]} if known else {}
    weights = 0 if shares_ram(device) else found.weights  # which are in RAM already, where that is the device's
    return {"free": round(free_bytes(device)), "ram": shares_ram(device), "weights": weights, **needed}


def _counted(folder: str, trigger: str, masks: Any) -> Mapping[str, Any]:
    try:
        found = count(dataset_folder(folder), trigger, masks if masks in MASKS else "off")
    except ValueError:  # whose text names the path
        return {"fault": True}
    return {"captioned": found.captioned, "bare": found.bare, "left_out": found.left_out}
