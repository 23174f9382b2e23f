"""Corrections that drown the weight they correct: not refused, as someone may mean them, but said."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from math import inf, isfinite, prod
from typing import NamedTuple

import torch
from torch import Tensor

from ....lora_core.kinds import Correction
from ....lora_core.kinds.correction import USUAL
from ....lora_core.kinds.dora import reach_of
from ....lora_core.low_rank import LowRank
from ....lora_core.stack.chain import Step, applied, chain
from ....lora_core.stack.weighted import Weighted
from ....lora_core.weak_memo import remembered
from ..host.wires import Clip, Model
from ..model.base_figures import Base

ABSURD = 10.0  # times the norm of the weight
_TURNS = ("OFT", "BOFT")
_TURNED = 1.0  # the same of what can only turn it, and comes to 2 at the most
_WILD = 100.0  # size of the blocks of a rotation; all that are as large turn by half a turn, and twice by a whole one
_WORTH_A_LOOK = 0.5  # times what most weights are: LoRAs have a tenth of that
_LOOKED_AT = 3  # layers of each LoRA, the loudest
_HOLDS = 2.0**15  # norm of a change that no weight overflows by: fp16 has numbers up to twice that
_SMALL = {True: 1.0, False: 0.001}  # root mean square of biases and norms, and of weights: below, all is loud beside it


class Heard(NamedTuple):
    """Says how much of a weight's norm a LoRA adds to it; infinite where that gives no numbers."""

    layer: str
    own: float
    weight: float
    limit: float = ABSURD

    @property
    def times(self) -> float:
        return self.own / self.weight


def too_loud(entries: Sequence[Weighted], model: Model, clip: Clip | None) -> list[str]:
    """Return a sentence for each LoRA that is, in one of its loudest layers, more than ten times as loud as the base
    model's weight. Weights are read only for LoRAs that are loud for a LoRA."""
    said = []
    for entry in entries:
        sizes = {name: size * abs(at) for name, size in _sizes(entry).items() if (at := entry.strength_of(name))}
        loudest = nlargest(_LOOKED_AT, sizes, key=sizes.__getitem__)
        loudest = [name for name in loudest if sizes[name] > _WORTH_A_LOOK]
        heard = list(filter(None, _heard(entry, loudest, Base(model, clip)))) if loudest else []
        worst = max(heard, key=lambda found: found.times / found.limit, default=None)
        if worst and worst.times > worst.limit:
            said.append(_sentence(entry, worst))
        elif wild := [name for name in loudest if sizes[name] > _WILD and _only_turns(entry, name)]:
            said.append(
                f"{entry.name} is too strong, so the file is probably broken: its rotation blocks for {wild[0]} have "
                f"size {sizes[wild[0]]:.3g}, where training keeps them below 1; leave it out"
            )
    return said


def _only_turns(entry: Weighted, name: str) -> bool:
    return name not in entry.adapter.layers and all(item.kind in _TURNS for item in entry.adapter.others[name])


def _sentence(entry: Weighted, worst: Heard) -> str:
    if not isfinite(worst.times):
        return (
            f"{entry.name} is broken: it makes the weight {worst.layer} NaN or infinite, and pictures black; "
            "leave it out"
        )
    line = (
        f"{entry.name} is far too loud: its change of {worst.layer} is {worst.times:.3g} times as large as the "
        f"weight itself (norm {worst.own:.3g} against {worst.weight:.3g}); the file is broken"
    )
    if any(item.depends_on_weight for item in entry.adapter.others.get(worst.layer, ())):
        return line
    return f"{line}, or made for a strength near {entry.strength / worst.times:.1g}"


def _sizes(entry: Weighted) -> dict[str, float]:
    """About the most that each layer can be at strength 1, in usual weights."""
    sizes = {name: _size(layer) for name, layer in entry.adapter.layers.items()}
    for name, items in entry.adapter.others.items():
        sizes[name] = sizes.get(name, 0.0) + sum(map(_size, items))
    return sizes


@remembered
def _size(change: LowRank | Correction) -> float:
    fixed, relative = reach_of(change)
    size = relative + fixed / prod(change.shape) ** 0.5 / (USUAL if len(change.shape) > 1 else _SMALL[True])
    return size if size == size else inf


def _heard(entry: Weighted, names: Sequence[str], base: Base) -> list[Heard | None]:
    layers = {name: entry.adapter.layers[name] for name in names if name not in entry.adapter.others}
    sizes = {name: layer.norm() * abs(entry.strength_of(name)) for name, layer in layers.items()}
    plain = {name: size for name, size in sizes.items() if size < _HOLDS}
    norms = base.norms(plain)
    found = [_over(name, size, norms[name][0], layers[name].shape) for name, size in plain.items() if name in norms]
    steps = chain([entry]) if len(plain) < len(names) else {}
    return [*found, *(_worked_out(name, steps[name], base) for name in names if name not in plain)]


@torch.inference_mode()
def _worked_out(name: str, steps: Sequence[Step], base: Base) -> Heard | None:
    """None for a weight of a third party's own, or one that holds no numbers itself."""
    weight = base.dense(name)
    if weight is None or not weight.isfinite().all():
        return None
    changed = base.kept(name, applied(weight, steps))
    own = _norm(changed - weight if changed.shape == weight.shape else changed)
    found = _over(name, own, _norm(weight), weight.shape)
    return found._replace(limit=_TURNED) if all(step.kind in _TURNS for step in steps) else found


def _over(name: str, own: float, weight: float, shape: Sequence[int]) -> Heard:
    least = _SMALL[len(shape) == 1] * prod(shape) ** 0.5
    return Heard(name, own, max(weight, least))


def _norm(tensor: Tensor) -> float:
    """Infinite where there is a NaN; no square of a number that fp32 holds is lost."""
    peak = float(tensor.abs().max())
    return peak * float(torch.linalg.vector_norm(tensor / peak)) if 0 < peak < inf else 0.0 if peak == 0 else inf
