"""Holds what comes out of a run, which all ranks are told by the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....lora_core.adapter import Adapter
from ....lora_core.files import formats
from ....lora_core.ranks.group import here
from ..host.ranks import by_first


@dataclass(frozen=True)
class Trained:
    adapter: Adapter
    losses: list[float]
    folder: Path
    told: str  # what stays on the node
    report: str
    charts: Image.Image
    sheet: Image.Image | None = None  # of the last previews
    chosen: Mapping[str, str] = field(default_factory=dict)  # what was left to the run


def by_first_rank(make: Callable[[], Trained], last: Callable[[], Adapter] | None = None) -> Trained:
    """Return on all ranks what comes out on the first, which alone makes it. `last` gives the LoRA of the last step,
    which all of them have; another one is sent."""
    made: list[Trained] = []
    if here().size == 1:
        return make()
    own = last and last()

    def plain() -> dict[str, Any]:
        made.append(make())
        return _plain(made[0], own)

    told = by_first(plain)
    return made[0] if made else _trained(told, own)


def _plain(trained: Trained, own: Adapter | None) -> dict[str, Any]:
    adapter, sheet = trained.adapter, trained.sheet
    known = own is not None and own.metadata.get("ss_steps") == adapter.metadata.get("ss_steps")
    tensors = None if known else formats.encode(adapter, "native", dtype=torch.float32)
    return {
        "tensors": tensors, "metadata": dict(adapter.metadata), "losses": list(trained.losses),
        "folder": str(trained.folder), "told": trained.told, "report": trained.report,
        "charts": _pixels(trained.charts), "sheet": sheet and _pixels(sheet), "chosen": dict(trained.chosen),
    }  # fmt: skip


def _trained(told: Mapping[str, Any], own: Adapter | None) -> Trained:
    kept = own if told["tensors"] is None else formats.decode(told["tensors"], told["metadata"])
    adapter = replace(cast(Adapter, kept), metadata=told["metadata"])
    sheet, rest = told["sheet"], (told["losses"], Path(told["folder"]), told["told"], told["report"])
    return Trained(adapter, *rest, _picture(told["charts"]), None if sheet is None else _picture(sheet), told["chosen"])


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture))


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())
