"""Tells how the correction of each layer is sized, scaled, regularised and trained."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..adapter import TEXT_PREFIX
from ..stored import stored
from .ranges import one_of, within

if TYPE_CHECKING:
    from .start import Start

Scaling = Literal["alpha / rank", "alpha / sqrt(rank)"]
SCALINGS = get_args(Scaling)
_KINDS = {"rank": int, "alpha": float, "rate": float}
_NUMBER = r"\d*\.?\d+(?:[eE][-+]?\d+)?"
_SETTING = re.compile(rf"rank\s+(?P<rank>\d+)|alpha\s+(?P<alpha>{_NUMBER})|rate\s+(?P<rate>{_NUMBER})")


@stored("pattern rank alpha rate")
@dataclass(frozen=True)
class Rule:
    """Other settings for the layers whose name the fnmatch `pattern`, or a part of it, matches; None is as the rest.

    `rate` is a factor on the learning rate.
    """

    pattern: str
    rank: int | None = None
    alpha: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("rank", 1, 1024), ("alpha", 1e-3, 1e4), ("rate", 1e-4, 1e4)):
            if getattr(self, name) is not None:
                within(f"{name} of {self.pattern!r}", getattr(self, name), low, high)

    def hits(self, name: str) -> bool:
        return fnmatchcase(name, self.pattern) or fnmatchcase(name, f"*{self.pattern}*")

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {getattr(self, name):g}" for name in _KINDS if getattr(self, name) is not None)
        return f"{self.pattern} = {settings}"


@stored("scaling lora_plus_ratio rank_dropout layer_dropout max_norm rules dora")
@dataclass(frozen=True)
class LayersConfig:
    """`scaling` by alpha / sqrt(rank) is rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). `lora_plus_ratio` is the
    learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354).

    `rank_dropout` and `layer_dropout` are the shares of ranks and of whole layers that a forward pass leaves out; what
    stays is scaled up to make up for it. No correction's Frobenius norm exceeds `max_norm` after a step; 0 is off. Of
    `rules` that set the same for a layer, the last wins. `dora` gives the rows of each weight magnitudes of their own
    (`training.dora`); `max_norm` then holds the low-rank part.
    """

    scaling: Scaling = "alpha / rank"
    lora_plus_ratio: float = 1.0
    rank_dropout: float = 0.0
    layer_dropout: float = 0.0
    max_norm: float = 0.0
    rules: tuple[Rule, ...] = ()
    dora: bool = False

    def __post_init__(self) -> None:
        one_of("scaling", self.scaling, SCALINGS)
        within("lora_plus_ratio", self.lora_plus_ratio, 0.01, 1000.0)
        within("rank_dropout", self.rank_dropout, 0.0, 0.9)
        within("layer_dropout", self.layer_dropout, 0.0, 0.9)
        within("max_norm", self.max_norm, 0.0, 1e6)

    @property
    def drops(self) -> bool:
        return self.rank_dropout > 0 or self.layer_dropout > 0

    def file_alpha(self, alpha: float, rank: int) -> float:
        """The alpha with which alpha / rank, as every reader of a file computes it, is the scaling that was chosen."""
        return alpha if self.scaling == "alpha / rank" else alpha * math.sqrt(rank)


@dataclass(frozen=True)
class LayerSize:
    """Describes one layer's correction: its rank, its factor on the learning rate, and its scaling: `alpha` in a file
    would give it to a correction of rank `alpha_rank`."""

    rank: int
    rate: float
    alpha: float
    alpha_rank: int


def sizes(
    names: Iterable[str], rank: int, alpha: float, text_rank: int, config: LayersConfig, start: Start | None = None
) -> dict[str, LayerSize]:
    """Return the size of each layer. Without an alpha in its rule, a layer has the scaling of all whatever its rank;
    one that goes on from `start` keeps its scaling, and a rank that is above what it would have here."""
    found = {}
    for name in names:
        chosen, own = _chosen(name, config.rules), start.layers.get(name) if start else None
        text = name.startswith(TEXT_PREFIX)
        if start and own:
            most = max(own.rank, chosen.get("rank", text_rank if text else start.rank))
            found[name] = LayerSize(most, chosen.get("rate", 1.0), own.scaling * most, most)
        else:
            wanted = chosen.get("rank", text_rank if text else rank)
            of = wanted if "alpha" in chosen else rank
            scaled = config.file_alpha(chosen.get("alpha", alpha), of)
            found[name] = LayerSize(wanted, chosen.get("rate", 1.0), scaled, of)
    return found


def _chosen(name: str, rules: Sequence[Rule]) -> dict[str, Any]:
    chosen = {}
    for rule in rules:
        if rule.hits(name):
            chosen |= {kind: value for kind in _KINDS if (value := getattr(rule, kind)) is not None}
    return chosen


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Return one rule a line, `pattern = rank 8, alpha 4, rate 0.5`; empty lines and those that begin with # are left
    out.

    Raises ValueError that quotes the line that cannot be read.
    """
    lines = (line.strip() for line in text.splitlines())
    return tuple(_rule(line) for line in lines if line and not line.startswith("#"))


def _rule(line: str) -> Rule:
    pattern, _, settings = line.partition("=")
    matches = [_SETTING.fullmatch(setting.strip()) for setting in settings.split(",")]
    if not pattern.strip() or None in matches:
        raise ValueError(
            f"per_layer cannot read the line {line!r}; write it like this: attn2 = rank 8, alpha 4, rate 0.5"
        )
    found = {name: number for match in matches if match for name, number in match.groupdict().items() if number}
    return Rule(pattern.strip(), **{name: _KINDS[name](number) for name, number in found.items()})


def counted(rules: Sequence[Rule], names: Sequence[str], existing: str) -> list[str]:
    """Return a line for each rule with the number of layers it hits.

    Raises ValueError for a rule that hits none; `existing` tells what there is.
    """
    lines = []
    for rule in rules:
        hits = sum(map(rule.hits, names))
        if not hits:
            raise ValueError(
                f"per_layer: '{rule}' matches none of the {len(names)} trained layers; they are: {existing}"
            )
        lines.append(f"per_layer: {rule} applies to {hits} of {len(names)} layers")
    return lines
