"""The exact weighted sum of adapters: factors side by side (concatenation), any ranks and alphas, no cross terms.

`sum_i s_i (alpha_i / r_i) B_i A_i = [s_1 .. B_1, ...] @ [A_1; ...]`: see LoRA Soups (arXiv:2410.13025), "CAT".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from ..adapter import TEXT_PREFIX, Adapter
from ..low_rank import LowRank


@dataclass(frozen=True)
class Weighted:
    """An adapter in the model's layer names, with its strength on the diffusion model and on the text encoders."""

    name: str
    adapter: Adapter
    strength: float
    text_strength: float

    def strength_of(self, layer: str) -> float:
        return self.text_strength if layer.startswith(TEXT_PREFIX) else self.strength


def exact_sum(parts: Sequence[Weighted]) -> dict[str, LowRank]:
    """Layer by layer the sum of all parts; layers that only some have, or at strength 0, are handled exactly."""
    return {name: LowRank.concat(terms) for name, terms in terms_of(parts).items()}


def terms_of(parts: Sequence[Weighted]) -> dict[str, tuple[LowRank, ...]]:
    """Layer by layer what is to be summed, each at its strength.

    Raises ValueError when a part holds something other than plain LoRA, which no sum of factors is equal to.
    """
    return {name: tuple(term for _, term in each) for name, each in numbered_terms(parts).items()}


def numbered_terms(parts: Sequence[Weighted]) -> dict[str, list[tuple[int, LowRank]]]:
    """As `terms_of`, each with the index of its part."""
    terms: dict[str, list[tuple[int, LowRank]]] = {}
    for index, part in enumerate(parts):
        _check_plain(part)
        for name, layer in part.adapter.layers.items():
            if strength := part.strength_of(name):
                terms.setdefault(name, []).append((index, layer.scaled(strength)))
    return terms


def _check_plain(part: Weighted) -> None:
    if kinds := [name for name in part.adapter.kinds() if name != "LoRA"]:
        raise ValueError(
            f"{part.name} holds {' and '.join(kinds)} weights, not plain LoRA; convert it with Convert LoRA first"
        )


def check_finite(parts: Sequence[Weighted]) -> None:
    """Raises ValueError when a layer that is on holds NaN or infinite values, as after a run that diverged."""
    for part in parts:
        tensors = [(name, (layer.lora_A, layer.lora_B)) for name, layer in part.adapter.layers.items()]
        tensors += [(name, item.tensors()) for name, items in part.adapter.others.items() for item in items]
        for name, factors in tensors:
            sums = (float(factor.float().sum()) for factor in factors)
            if part.strength_of(name) and not all(map(isfinite, sums)):
                raise ValueError(f"{part.name} holds NaN or infinite values in {name}; leave it out, or train it again")
