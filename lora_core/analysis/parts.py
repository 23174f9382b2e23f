"""Tells from a layer's name what its rows and columns are: which are q, k, v and output of an attention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..attention_names import HOME, LEAVES, SINGLE, leaf

_PROJECTION = re.compile(rf"(?P<home>.*{HOME})\.(?:{'|'.join(f'(?P<{role}>{leaf(role)})' for role in LEAVES)})")
_SINGLE = re.compile(rf"(?P<home>.*{SINGLE})\.linear(?P<number>[12])")
_STREAM = re.compile(r"\.(?:img|txt)_attn$|\.(?:x|context)_block\.attn$")  # two streams attend to each other


class WeightPart(NamedTuple):
    """Rows and columns (start, length) of a layer's weight that do one thing; `role` is q, k, v, o or "" for others.
    `attention` names the attention, joint streams alike."""

    layer: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    role: str = ""
    attention: str = ""


def parts_of(layer: str, shape: tuple[int, int]) -> list[WeightPart]:
    """`shape` is (out, in) of the flattened weight. Queries of a fused weight are as wide as its input."""
    height, width = shape
    whole_rows, whole_columns = (0, height), (0, width)
    if found := _SINGLE.fullmatch(layer):
        home = found["home"]
        if found["number"] == "2" and width > height:
            inner = WeightPart(layer, whole_rows, (0, height), "o", home)
            return [inner, WeightPart(layer, whole_rows, (height, width - height))]
        if found["number"] == "1" and height > 3 * width:
            parts = [WeightPart(layer, (i * width, width), whole_columns, role, home) for i, role in enumerate("qkv")]
            return [*parts, WeightPart(layer, (3 * width, height - 3 * width), whole_columns)]
        return [WeightPart(layer, whole_rows, whole_columns)]
    found = _PROJECTION.fullmatch(layer)
    if not found:
        return [WeightPart(layer, whole_rows, whole_columns)]
    home = _STREAM.sub(".attn", found["home"])
    if not found["qkv"]:
        role = next(name for name in "qkvo" if found[name])
        return [WeightPart(layer, whole_rows, whole_columns, role, home)]
    lower = (height - width) // 2
    bounds = ((0, width), (width, lower), (width + lower, height - width - lower))
    return [WeightPart(layer, rows, whole_columns, role, home) for rows, role in zip(bounds, "qkv", strict=True)]


def attentions(shapes: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, list[WeightPart]]]:
    """Return the projections of each attention by role; one role has several where streams are joint."""
    found: dict[str, dict[str, list[WeightPart]]] = {}
    for layer, shape in shapes.items():
        for part in parts_of(layer, shape):
            if part.role:
                found.setdefault(part.attention, {}).setdefault(part.role, []).append(part)
    return found
