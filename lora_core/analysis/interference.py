"""What several LoRAs do to each other in one sum, from their factors alone: no matrix of a weight's size is ever made.

With `G_B = B^T B` and `G_A = A A^T` of all factors side by side, strengths folded into B, every inner product of two
corrections is a sum over a block of `G_B * G_A` (entry by entry); a pair's shared subspace is the block of the whitened
Gram; the products of attention, such as `|dWq_i^T dWk_j|^2 = tr(C^T G_Aq C G_Ak)` with `C = Bq_i^T Bk_j`, need Grams of
the rows of one head. All of it in fp64, O((out + in) R^2) per layer for ranks that add up to R.

Each figure stands beside what unrelated LoRAs have by chance (`chance`). These are figures of risk: that two LoRAs work
in the same directions says where they may disturb each other. Whether they do, only pictures with one left out tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..blocks import REST, TEXT, block_of
from ..merging.exact_sum import Weighted
from .cross_terms import KINDS, Attention, Side, in_each_head
from .figures import Block, Excess, Head, Interference
from .layer_sum import Layer, Work
from .parts import attentions

_UNET = "IN MID OUT"  # its groups in the order of the network


def measure(
    parts: Sequence[Weighted], attention: Attention | None = None, work: Work | None = None
) -> Interference:  # fmt: skip
    """The figures of every pair and block. `parts` are in the model's layer names.

    Raises ValueError when nothing is switched on.
    """
    attention, work = attention or Attention(), work or Work()
    layers = {n: Layer(parts, n, work) for n in dict.fromkeys(n for part in parts for n in part.adapter.layers)}
    layers = {name: layer for name, layer in layers.items() if layer.members}
    if not layers:
        raise ValueError("there is no plain LoRA weight at a strength other than 0, and nothing else can be measured")
    blocks: dict[str, Block] = {}
    sums = {}
    for name, layer in layers.items():
        block, sums[name] = layer.brief(str(block_of(name))) if work.brief else layer.figures(str(block_of(name)))
        _gather(blocks, block)
        work.tick()
    found: list[Head] = []
    for home, roles in attentions({name: layer.shape for name, layer in layers.items()}).items():
        for kind, ends in KINDS.items():
            left, right = (roles.get(role, ()) for role in ends)
            if home not in attention.heads or not left or not right:
                continue
            width = (left[0].columns if ends[0] == "o" else left[0].rows)[1] // attention.heads[home]
            sides = [[Side(layers[part.layer], part, width) for part in end] for end in (left, right)]
            each, excess = in_each_head(len(parts), home, kind, sides, attention)
            found += each
            _gather(blocks, _empty(str(block_of(left[0].layer)), len(parts), {kind: excess}))
            work.tick()
    ordered = tuple(blocks[name] for name in _in_order(layers))
    return Interference(tuple(part.name for part in parts), ordered, sums, tuple(found))


def _in_order(layers: Iterable[str]) -> list[str]:
    """Names of blocks: groups as they first come, those that are no blocks last, and numbers in order."""
    found = dict.fromkeys(map(block_of, layers))
    groups = list(dict.fromkeys(block.group for block in found))
    groups.sort(key=lambda group: (group in (REST, TEXT), _UNET.find(group)))
    return [str(b) for b in sorted(found, key=lambda block: (groups.index(block.group), block.number or 0))]


def _gather(blocks: dict[str, Block], block: Block) -> None:
    blocks[block.name] = blocks[block.name] + block if block.name in blocks else block


def _empty(name: str, size: int, crossed: Mapping[str, Excess]) -> Block:
    nothing = Excess.nothing(size)
    return Block(name, nothing.held, nothing.held, nothing.held, nothing, nothing, crossed)
