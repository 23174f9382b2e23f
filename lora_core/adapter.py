"""The noun of the house: an ordered set of low-rank corrections with its metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .low_rank import LowRank

TEXT_PREFIX = "text_encoders."


@dataclass(frozen=True, eq=False)
class Adapter:
    """`layers` maps the name of a weight (without `.weight`) to its correction; `metadata` is the file's header text.

    Training and the bridge use ComfyUI's own state-dict names: `diffusion_model.<path>` and
    `text_encoders.<path>`. An Adapter read from a file keeps the file's spelling until the bridge resolves it against a
    model.
    """

    layers: Mapping[str, LowRank]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def map(self, change: Callable[[LowRank], LowRank]) -> Adapter:
        return replace(self, layers={name: change(layer) for name, layer in self.layers.items()})

    def scaled(self, strength: float) -> Adapter:
        return self.map(lambda layer: layer.scaled(strength))

    def rank(self) -> int:
        """The largest rank of any layer, 0 when there is none."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    def num_parameters(self) -> int:
        return sum(layer.num_parameters() for layer in self.layers.values())

    def energies(self) -> dict[str, float]:
        """Squared Frobenius norm of each layer's correction."""
        return {name: layer.inner(layer) for name, layer in self.layers.items()}

    def norm(self) -> float:
        """Frobenius norm of all corrections together."""
        return max(sum(self.energies().values()), 0.0) ** 0.5
