"""Measures what several LoRAs do to each other in one sum, from their factors alone: no matrix of a weight's size is
ever made.

With `G_B = B^T B` and `G_A = A A^T` of all factors side by side, strengths folded into B, every inner product of two
corrections is a sum over a block of `G_B * G_A` (entry by entry); a pair's shared subspace is the block of the whitened
Gram; the products of attention, such as `|dWq_i^T dWk_j|^2 = tr(C^T G_Aq C G_Ak)` with `C = Bq_i^T Bk_j`, need Grams of
the rows of one head. All of it in fp64, O((out + in) R^2) per layer for ranks that add up to R.

Each figure stands beside what unrelated LoRAs have by chance (`chance`). These are figures of risk: that two LoRAs work
in the same directions says where they may disturb each other. Whether they do, only pictures with one left out tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..families.blocks import REST, TEXT, block_of
from ..stack.weighted import Weighted
from .cross_terms import KINDS, Attention, in_each_head, sides
from .figures import BlockFigures, Head, Interference, OverlapExcess
from .layer_sum import FigureSettings, LayerTerms
from .parts import WeightPart, attentions

_UNET = "IN MID OUT"  # its groups in the order of the network


def measure(
    parts: Sequence[Weighted], attention: Attention | None = None, work: FigureSettings | None = None
) -> Interference:  # fmt: skip
    """Return the figures of every pair and block. `parts` are in the model's layer names.

    Raises ValueError when nothing is switched on.
    """
    attention, work = attention or Attention(), work or FigureSettings()
    layers = {n: LayerTerms(parts, n, work) for n in dict.fromkeys(n for part in parts for n in part.adapter.layers)}
    layers = {name: layer for name, layer in layers.items() if layer.members}
    if not layers:
        raise ValueError(
            "nothing to measure: no plain LoRA weight has a strength other than 0; raise a strength, or use Convert "
            "LoRA on files of other kinds"
        )
    blocks: dict[str, BlockFigures] = {}
    sums: dict[str, tuple[float, float]] = {}
    found: list[Head] = []
    homes = attentions({name: layer.shape for name, layer in layers.items()})
    for home, names in _together(layers, homes).items():
        for name in names:
            block = str(block_of(name))
            made, sums[name] = layers[name].brief(block) if work.brief else layers[name].figures(block)
            _gather(blocks, made)
            work.tick()
        if home in attention.heads:
            for kind, each, excess in _crossed(len(parts), home, homes[home], layers, attention):
                found += each
                _gather(blocks, _empty(str(block_of(names[0])), len(parts), {kind: excess}))
                work.tick()
        for name in names:
            layers[name].forget()
    ordered = tuple(blocks[name] for name in _in_order(layers))
    return Interference(tuple(part.name for part in parts), ordered, sums, tuple(found))


def _crossed(
    count: int,
    home: str,
    roles: Mapping[str, Sequence[WeightPart]],
    layers: Mapping[str, LayerTerms],
    attention: Attention,
) -> Iterator[tuple[str, list[Head], OverlapExcess]]:
    """Yield the cross terms of an attention, for each kind that the LoRAs have both sides of."""
    heads = attention.heads[home]
    for kind, (first, second) in KINDS.items():
        left, right = roles.get(first, ()), roles.get(second, ())
        if left and right:
            width = (left[0].columns if first == "o" else left[0].rows)[1] // heads
            ends = [[sides(layers[part.layer], part, width, heads) for part in end] for end in (left, right)]
            yield kind, *in_each_head(count, home, kind, ends, attention)


def _together(layers: Iterable[str], homes: Mapping[str, Mapping[str, Sequence[WeightPart]]]) -> dict[str, list[str]]:
    """Layers by their attention, whose figures use the same products, and each other one by itself."""
    home_of = {part.layer: home for home, roles in homes.items() for each in roles.values() for part in each}
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(home_of.get(name, name), []).append(name)
    return found


def _in_order(layers: Iterable[str]) -> list[str]:
    """Names of blocks: groups as they first come, those that are no blocks last, and numbers in order."""
    found = dict.fromkeys(map(block_of, layers))
    groups = list(dict.fromkeys(block.group for block in found))
    groups.sort(key=lambda group: (group in (REST, TEXT), _UNET.find(group)))
    return [str(b) for b in sorted(found, key=lambda block: (groups.index(block.group), block.number or 0))]


def _gather(blocks: dict[str, BlockFigures], block: BlockFigures) -> None:
    blocks[block.name] = blocks[block.name] + block if block.name in blocks else block


def _empty(name: str, size: int, crossed: Mapping[str, OverlapExcess]) -> BlockFigures:
    nothing = OverlapExcess.nothing(size)
    return BlockFigures(
        name, inner=nothing.held, variance=nothing.held, peak=nothing.held, write=nothing, read=nothing, crossed=crossed
    )
