"""The rows of a weight by which LoRAs change them.

A fused weight (q, k and v in one, in FLUX also the first half of the MLP) is one layer here, of which a LoRA may change
some rows and another all. A method has a say where several LoRAs meet, and nowhere else.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from ..low_rank import LowRank

Terms = list[tuple[int, LowRank]]  # index of the part, and its correction at its strength


class Piece(NamedTuple):
    """Rows from `start` on, and what changes them: corrections of these rows alone."""

    start: int
    terms: Terms


def pieces(terms: Terms) -> list[Piece]:
    """The layer as one piece where all change the same rows, else a piece for each run of rows that the same change."""
    spans = [_span(term) for _, term in terms]
    if len(set(spans)) == 1:
        return [Piece(0, terms)]
    found = []
    for start, stop in pairwise(sorted({edge for span in spans for edge in span})):
        within = [(lo <= start and stop <= hi) for lo, hi in spans]
        inside = [(i, term.rows(start, stop - start)) for (i, term), taken in zip(terms, within, strict=True) if taken]
        found += [Piece(start, inside)] if inside else []
    return found


def _span(term: LowRank) -> tuple[int, int]:
    """The first row that it changes, and the one after the last."""
    rows = term.lora_B.any(1).nonzero()
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, len(term.lora_B))
