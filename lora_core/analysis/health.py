"""Judges a LoRA by its figures beside the base model's: broken, dead and loud layers, and directions that stand out.

Layers are of one kind when their names differ in numbers alone. A layer is loud when its share of the weight's norm is
more times what is usual for its kind than the LoRA's other layers explain: in logarithms, by `SPREADS` times their
spread (1.4826 times the median absolute deviation of all layers of the network from their kinds' medians), and by
`LEAST` times at the least. So a LoRA is held against nothing but itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, inf, log
from statistics import median

import torch
from torch import Tensor

from ..adapter import TEXT_PREFIX
from ..low_rank import LowRank

SPREADS, LEAST = 5.0, 4.0
ENOUGH, OF_A_KIND = 5, 3  # layers from which on there is a usual one, in all and of a kind
DROWNED = 0.4  # of the weight's norm, in the usual layer: some eight times what LoRAs have
USUAL = 0.05  # what that is brought down to, where nothing else is known
DEAD = 1e-4  # of the share that is usual for the LoRA
FEW = 0.25  # of a layer's directions
ENERGY = 0.99  # of the squared norm, which the rank is told for
_FAINT = 0.001  # root mean square of a weight below which all is loud beside it
_NUMBER = re.compile(r"\d+")
Norms = Mapping[str, tuple[float, float]]  # Frobenius and spectral norm by layer


@dataclass(frozen=True, eq=False)
class LayerFigures:
    """Holds what is known of a layer at strength 1: its singular values (descending, fp64; none where the factors hold
    NaN or infinite values), its rank, and the norms of the weight, Frobenius and spectral, 0 where they are not
    known."""

    name: str
    rank: int
    sigma: Tensor
    base: float = 0.0
    base_top: float = 0.0

    @property
    def broken(self) -> bool:
        return not len(self.sigma)

    @cached_property
    def norm(self) -> float:
        return float(self.sigma.norm())

    @property
    def top(self) -> float:
        return 0.0 if self.broken else float(self.sigma[0])

    @property
    def share(self) -> float:
        """Return the norm over the weight's."""
        return self.norm / self.base if self.base else 0.0

    @property
    def top_share(self) -> float:
        """Return the strongest direction over the weight's strongest."""
        return self.top / self.base_top if self.base_top else 0.0

    @cached_property
    def effective_rank(self) -> float:
        """Return exp of the entropy of the singular values' shares (Roy and Vetterli 2007): 1 to the rank."""
        if not self.norm:
            return 0.0
        shares = self.sigma[self.sigma > 0] / self.sigma.sum()
        return exp(-float((shares * shares.log()).sum()))

    def held(self, limit: float) -> LayerFigures:
        """Return the same with no singular value above a limit."""
        return replace(self, sigma=self.sigma.clamp(max=limit))

    @property
    def gap(self) -> float:
        """Return the strongest direction over the root mean square of all others; 1 where there is no other."""
        others = self.sigma[1:]
        size = float(others.norm()) / max(len(others), 1) ** 0.5
        return self.top / size if size else inf if len(others) else 1.0


def figures_of(name: str, layer: LowRank, base: tuple[float, float] | None = None) -> LayerFigures:
    """Return the figures of one layer; `base` are the norms of its weight."""
    if not (bool(layer.lora_A.isfinite().all()) and bool(layer.lora_B.isfinite().all())):
        return LayerFigures(name, layer.rank, torch.zeros(0, dtype=torch.float64), *_held(layer, base))
    return LayerFigures(name, layer.rank, layer.singular_values(), *_held(layer, base))


def _held(layer: LowRank, base: tuple[float, float] | None) -> tuple[float, float]:
    """The norms, at least those of a weight of faint numbers: zeros are what some layers begin with."""
    if base is None:
        return 0.0, 0.0
    out, inner = layer.lora_B.shape[0], layer.lora_A.shape[1]
    return max(base[0], _FAINT * (out * inner) ** 0.5), max(base[1], _FAINT * (out**0.5 + inner**0.5))


@dataclass(frozen=True)
class Usual:
    """Says what is usual of one figure for layers of each kind, and `whole` for those of a kind with too few; and how
    many times that is too much for either."""

    kinds: Mapping[str, float]
    whole: float
    most: float
    most_of_whole: float

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Usual:
        """Return it for figures by layer, of which zeros and infinite ones do not count. Of too few layers nothing is
        too much."""
        logs = {name: log(value) for name, value in values.items() if 0 < value < inf}
        if len(logs) < ENOUGH:
            return cls({}, exp(median(logs.values())) if logs else 0.0, inf, inf)
        whole, groups = median(logs.values()), defaultdict(list)
        for name, value in logs.items():
            groups[_kind(name)].append(value)
        kinds = {kind: median(found) for kind, found in groups.items() if len(found) >= OF_A_KIND}
        beside = [value - kinds.get(_kind(name), whole) for name, value in logs.items()]
        most, alone = _most(beside), _most([value - whole for value in logs.values()])
        return cls({kind: exp(value) for kind, value in kinds.items()}, exp(whole), most, alone)

    def at(self, name: str) -> float:
        return self.kinds.get(_kind(name), self.whole)

    def times(self, name: str, value: float) -> float:
        """Return how many times the usual one a layer's figure is."""
        usual = self.at(name)
        return value / usual if usual else 0.0

    def exceeded(self, name: str, value: float) -> bool:
        return self.times(name, value) > (self.most if _kind(name) in self.kinds else self.most_of_whole)


def _most(logs: Sequence[float]) -> float:
    return exp(max(SPREADS * 1.4826 * median(map(abs, logs)), log(LEAST)))


@dataclass(frozen=True)
class Fence:
    """Says what is usual for the layers of one network: the share, that of the strongest direction, and how far this
    stands above the rest of its layer."""

    share: Usual
    top: Usual
    gap: Usual

    @classmethod
    def of(cls, layers: Sequence[LayerFigures]) -> Fence:
        """Return the fence around layers that are not broken and whose weights are known."""
        figures = ({each.name: getattr(each, name) for each in layers} for name in ("share", "top_share", "gap"))
        return cls(*map(Usual.of, figures))

    @property
    def factor(self) -> float:
        """Return what to multiply all layers with: 1, or less where the usual one drowns its weight."""
        return 1.0 if self.share.whole < DROWNED else USUAL / self.share.whole

    def limit(self, layer: LayerFigures) -> float:
        """Return the singular value that is usual for the strongest direction of such a layer."""
        return self.top.at(layer.name) * layer.base_top

    def loud(self, layer: LayerFigures) -> bool:
        return self.share.exceeded(layer.name, layer.share) or self.top.exceeded(layer.name, layer.top_share)

    def stands_out(self, layer: LayerFigures) -> bool:
        """Return whether a loud layer is so by a few of its directions: without them its spectrum is more like that of
        others."""
        limit = self.limit(layer)
        few = int((layer.sigma > limit).sum()) <= max(len(layer.sigma) * FEW, 1)
        before, after = self._unlike(layer), self._unlike(layer.held(limit))
        return self.loud(layer) and few and after < before

    def dead(self, layer: LayerFigures) -> bool:
        return not layer.broken and (not layer.norm or bool(layer.base) and layer.share < DEAD * self.share.whole)

    def _unlike(self, layer: LayerFigures) -> float:
        """How far the gap is from what is usual, as a logarithm; infinite where that cannot be told."""
        usual = self.gap.at(layer.name)
        return abs(log(layer.gap / usual)) if usual and 0 < layer.gap < inf else inf


def _kind(name: str) -> str:
    return _NUMBER.sub("#", name)


@dataclass(frozen=True)
class Health:
    """Holds the figures of all layers of a LoRA, each in the fence of its network: the diffusion model's, or the text
    encoders'."""

    layers: Sequence[LayerFigures]

    @classmethod
    def of(cls, layers: Mapping[str, LowRank], base: Norms, tick: Callable[[], object] = lambda: None) -> Health:
        """`base` holds the norms of the base model's weights. `tick` is called after each layer, and may raise."""
        found = []
        for name, layer in layers.items():
            found.append(figures_of(name, layer, base.get(name)))
            tick()
        return cls(found)

    @cached_property
    def fences(self) -> dict[bool, Fence]:
        """By whether they are of text encoders."""
        known = [layer for layer in self.layers if layer.base and layer.norm]
        return {text: Fence.of([layer for layer in known if _on_text(layer) is text]) for text in (False, True)}

    def fence(self, layer: LayerFigures) -> Fence:
        return self.fences[_on_text(layer)]

    @cached_property
    def broken(self) -> list[LayerFigures]:
        return [layer for layer in self.layers if layer.broken]

    @cached_property
    def dead(self) -> list[LayerFigures]:
        return [layer for layer in self.layers if self.fence(layer).dead(layer)]

    @cached_property
    def outliers(self) -> list[LayerFigures]:
        """Those that are loud by a few directions, the loudest first."""
        return [layer for layer in self._loud if self.fence(layer).stands_out(layer)]

    @cached_property
    def loud(self) -> list[LayerFigures]:
        """Those that are loud as a whole, the loudest first."""
        return [layer for layer in self._loud if not self.fence(layer).stands_out(layer)]

    @cached_property
    def _loud(self) -> list[LayerFigures]:
        return sorted((each for each in self.layers if self.fence(each).loud(each)), key=lambda each: -self.times(each))

    def times(self, layer: LayerFigures) -> float:
        """Return how many times as loud as is usual for its kind a layer is."""
        return self.fence(layer).share.times(layer.name, layer.share)

    @property
    def too_loud_as_a_whole(self) -> bool:
        return any(fence.factor < 1 for fence in self.fences.values())

    @property
    def sound(self) -> bool:
        return not (self.broken or self.dead or self.outliers or self.loud or self.too_loud_as_a_whole)

    @property
    def norm(self) -> float:
        return sum(layer.norm**2 for layer in self.layers) ** 0.5

    def share(self, layers: Iterable[LayerFigures] | None = None) -> float:
        """Return the norm of all of these layers over that of their weights, where those are known."""
        known = [layer for layer in (self.layers if layers is None else layers) if layer.base]
        whole = sum(layer.base**2 for layer in known)
        return (sum(layer.norm**2 for layer in known) / whole) ** 0.5 if whole else 0.0

    def kept(self) -> list[float]:
        """Return the share of the squared norm that every layer cut to a rank of 1, 2 and so on would keep."""
        longest = max((len(layer.sigma) for layer in self.layers), default=0)
        total = torch.zeros(longest, dtype=torch.float64)
        for layer in self.layers:
            total[: len(layer.sigma)] += layer.sigma.square()
        return (total.cumsum(0) / total.sum()).tolist() if total.any() else []

    def rank_for(self, energy: float = ENERGY) -> int:
        """Return the rank at which every layer cut to it keeps that share of the squared norm; 0 without any."""
        return next((rank for rank, share in enumerate(self.kept(), 1) if share >= energy), 0)


def _on_text(layer: LayerFigures) -> bool:
    return layer.name.startswith(TEXT_PREFIX)
