"""A LoRA that training goes on from: which layers are trained, at which ranks, and what is said about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..adapter import TEXT_PREFIX
from ..files.lineage import Parent
from ..files.mismatch import lacking
from ..kinds import DoRA
from ..low_rank import LowRank


@dataclass(frozen=True, eq=False)
class Start:
    """`layers` have the model's own names; `digest` is the sha256 of the whole file that `parent` names.

    `own_targets`: where it has layers, those are trained and not a preset's. Every layer keeps its scaling, alpha /
    rank. `rank` and `alpha` are what was asked for, 0 when nothing was: a smaller layer is extended to that rank, by
    components that begin at zero, and no layer is cut. `doras` are DoRA by layer, per row, whose updates are among the
    layers; a magnitude that is not a number changes nothing. `unmatched` are the file's names that mean nothing in the
    connected models, `notes` say what else of it is left out.
    """

    parent: Parent
    digest: str
    layers: Mapping[str, LowRank]
    own_targets: bool = True
    rank: int = 0
    alpha: float = 0.0
    unmatched: tuple[str, ...] = ()
    doras: Mapping[str, DoRA] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def identity(self) -> list[Any]:
        """Return, as plain values, what decides the bytes of a run that goes on from this LoRA."""
        return [self.digest, self.own_targets, self.rank]

    def described(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "file": self.parent.name,
            "layers": "its layers" if self.own_targets else "targets",
            "hash": self.digest,
        }

    def own_names(self) -> frozenset[str]:
        """Return the layers to train instead of a preset's; none when targets were chosen."""
        return frozenset(self.layers if self.own_targets else ())

    def usual_rank(self) -> int:
        """Return the highest rank of its layers of the diffusion model, or else of its text encoders."""
        model = {name for name in self.layers if not name.startswith(TEXT_PREFIX)}
        return max(self.layers[name].rank for name in model or self.layers)

    def note(self, trained: Collection[str]) -> str:
        """Return one line for the node."""
        own = [name for name in trained if name in self.layers]
        new, rest = len(trained) - len(own), len(self.layers) - len(own)
        ranks = [self.layers[name].rank for name in own if not name.startswith(TEXT_PREFIX)]
        shorter, longer = (sum(rank < self.rank for rank in ranks), sum(rank > self.rank for rank in ranks))
        parts = [f"{len(own)} of its {len(self.layers)} layers are trained, each with its own alpha / rank"]
        if shorter:
            parts.append(f"{shorter} are extended to rank {self.rank}")
        if self.rank and longer:
            parts.append(f"{longer} keep their rank, which is above {self.rank}")
        if dora := len(self.doras.keys() & set(own)):
            parts.append(f"{dora} are DoRA and stay DoRA")
        if self.alpha:
            parts.append(f"alpha {self.alpha:g} is for new layers only")
        if new:
            parts.append(f"{new} layers are new")
        if rest:
            parts.append(f"{rest} are not trained and are saved unchanged")
        if self.unmatched:
            parts.append(lacking(self.unmatched))
        return f"continues from {self.parent.name}: {'; '.join((*parts, *self.notes))}"
