"""The noun of the house: an ordered set of low-rank corrections with its metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

import torch

from .kinds import Correction, DoRA
from .low_rank import LowRank

TEXT_PREFIX = "text_encoders."


@dataclass(frozen=True, eq=False)
class Adapter:
    """`layers` maps the name of a weight (without `.weight`) to its correction; `metadata` is the file's header text.

    Training and the bridge use ComfyUI's own state-dict names: `diffusion_model.<path>` and
    `text_encoders.<path>`. An Adapter read from a file keeps the file's spelling until the bridge resolves it against a
    model.

    `others` holds the corrections that are no plain LoRA, named likewise, in the order in which they are applied; a
    bias is `<layer>.bias`, and any other parameter has its own full name. `left_out` are tensors of its file that are
    part of no layer; `embeddings` are for prompts, by name and part, see `files.bundled`.
    """

    layers: Mapping[str, LowRank]
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, tuple[Correction, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    embeddings: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    def map(self, change: Callable[[LowRank], LowRank]) -> Adapter:
        return replace(self, layers={name: change(layer) for name, layer in self.layers.items()})

    def split(self, names: Container[str]) -> tuple[Adapter, Adapter]:
        """Return the layers of these names, and the others."""
        return self._where(lambda name: name in names), self._where(lambda name: name not in names)

    def _where(self, takes: Callable[[str], bool]) -> Adapter:
        layers, others = ({n: held[n] for n in held if takes(n)} for held in (self.layers, self.others))
        return replace(self, layers=layers, others=others)

    def copied(self, dtype: torch.dtype) -> Adapter:
        """With every tensor copied, in that type."""
        others = {n: tuple(item.to(dtype, copy=True) for item in items) for n, items in self.others.items()}
        return replace(self.map(lambda layer: layer.to(dtype, copy=True)), others=others)

    def scaled(self, strength: float) -> Adapter:
        """Raises ValueError when there are other kinds, of which a strength need not be a factor."""
        if self.others:
            raise ValueError(
                f"an adapter with {' and '.join(self.kinds())} weights is not scaled; apply it at a strength"
            )
        return self.map(lambda layer: layer.scaled(strength))

    def rank(self) -> int:
        """Return the largest rank of any layer, DoRA's updates included; 0 when there is none."""
        return max((layer.rank for layer in self.low_ranks().values()), default=0)

    def low_ranks(self) -> dict[str, LowRank]:
        """Return the plain layers, and the low-rank updates inside DoRA."""
        inside = {
            name: item.update
            for name, items in self.others.items()
            for item in items
            if isinstance(item, DoRA) and isinstance(item.update, LowRank)
        }
        return {**self.layers, **inside}

    def num_parameters(self) -> int:
        items = [*self.layers.values(), *(item for items in self.others.values() for item in items)]
        return sum(item.num_parameters() for item in items)

    def kinds(self) -> Counter[str]:
        """Return how many corrections there are of each kind."""
        others = Counter(item.kind for items in self.others.values() for item in items)
        return Counter({"LoRA": len(self.layers)} if self.layers else {}) + others

    def energies(self) -> dict[str, float]:
        """Squared Frobenius norm of each layer's correction."""
        return {name: layer.inner(layer) for name, layer in self.layers.items()}

    def norm(self) -> float:
        """Frobenius norm of all corrections together."""
        return max(sum(self.energies().values()), 0.0) ** 0.5


def layers_of(adapter: Adapter) -> str:
    """`12 layers`, with the kinds where some are no plain LoRA: `12 layers (8 DoRA, 4 LoRA)`."""
    kinds = adapter.kinds()
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{kinds.total()} layers" + (f" ({named})" if kinds.keys() - {"LoRA"} else "")


def off_layers(adapter: Adapter) -> int:
    """Return how many layers their file switches off."""
    return sum(not layer.alpha for layer in adapter.layers.values())
