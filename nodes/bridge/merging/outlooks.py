"""Answers what a merge that was made would be at other limits, without making it again.

What it takes is kept for the last merges, singular values and no more; the front end has a key for each from the run.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from math import isfinite
from typing import Any

from aiohttp import web

from ....lora_core.drawing.measure import Measure
from ....lora_core.merging.cut_table import cut_measure
from ....lora_core.merging.outlook import Outlook
from ....lora_core.merging.truncation import Limits
from ..host.desk import Desk

_MOST = 24  # merges that are kept; one of FLUX is about a megabyte
_LIMITS = {"rank": "0", "energy": "1", "size_mb": "0", "ratio": "0", "share": "1", "conv_rank": "0"}  # no limits
_GONE = "Size and error at these settings are known after a run."

_kept: OrderedDict[str, Outlook] = OrderedDict()
_desk = Desk("outlooks")


def keep(outlook: Outlook) -> str:
    """Return the key by which it is asked."""
    key = uuid.uuid4().hex
    _kept[key] = outlook
    while len(_kept) > _MOST:
        _kept.popitem(last=False)
    return key


def serve_by(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/outlook")(answer)


async def answer(request: web.Request) -> web.Response:
    """Return a measure, or {problem} in a sentence."""
    return await _desk.json(_answered, dict(request.query))


def _answered(query: Mapping[str, str]) -> dict[str, Any]:
    try:
        return asked(query).plain()
    except (ValueError, LookupError) as error:
        return {"problem": _GONE if isinstance(error, LookupError) else str(error)}


def asked(query: Mapping[str, str]) -> Measure:
    """`factors` are the strengths of each part, or of all, as multiples of those of the run: 0.5:1,1:1 for two. Raises
    ValueError for figures that are none or too small, and LookupError when they are not known, or the merge is gone."""
    outlook = _kept[query.get("key", "")]
    _kept.move_to_end(query["key"])
    asked = {name: _number(query.get(name, usual)) for name, usual in _LIMITS.items()}
    limits = Limits(
        int(asked["rank"]), asked["energy"], asked["size_mb"], ratio=asked["ratio"], share=asked["share"],
        conv_rank=int(asked["conv_rank"]),
    )  # fmt: skip
    factors = [_pair(part) for part in query.get("factors", "1:1").split(",")]
    return cut_measure(outlook.at(limits, factors))


def _pair(text: str) -> tuple[float, float]:
    strength, on_text = map(_number, text.split(":"))
    return strength, on_text


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("strengths, energy and size are to be finite numbers")
    return number
