"""The twelve fixed fields of Load LoRA Stack, which the first version had: web/js/stack/stack.js makes text of them
when a workflow opens, and so does this, so that both send the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

from .texts import number
from .values import Value

STACK = "LoraLoom_LoadLoraStack"
_NONE = "None"
_KINDS = {"FLOAT": (int, float), "STRING": str}
_CODES = {":": "%3A", "<": "%3C", ">": "%3E", "\n": "%0A", "\r": "%0D"}
_CODE = re.compile("%25|" + "|".join(_CODES.values()))


def folded(values: Mapping[str, Value], linked: Set[str]) -> dict[str, Value]:
    """Return the fields without the fixed rows, which are lines of `rows` now; those that are connected stay. Raises
    ValueError for values that are none of rows."""
    rows, gone = [], set()
    if not all(isinstance(each.value, _KINDS.get(each.field.kind, object)) for each in values.values()):
        raise ValueError("its rows are not saved as they should be; choose them again in ComfyUI, and save")
    for place in range(1, 5):
        names = [f"{kind}_{place}" for kind in ("lora", "strength", "text_strength")]
        if linked.isdisjoint(names) and all(name in values for name in names):
            gone |= set(names)
            file, strength, text = (values[name].value for name in names)
            rows += [_row(file, strength, text)] if file and file != _NONE else []
    kept = {name: value for name, value in values.items() if name not in gone}
    if rows and "rows" in kept:
        text = kept["rows"].value
        kept["rows"] = Value(kept["rows"].field, "\n".join([*rows, *([text] if text else [])]))
    return kept


def _row(file: Any, strength: float, text: float) -> str:
    kept = _CODE.sub(lambda code: f"%25{code[0][1:]}", str(file).removesuffix(".safetensors"))
    name = "".join(_CODES.get(letter, letter) for letter in kept)
    parts = [name, number(strength)] + ([number(text)] if text != strength else [])
    return f"<lora:{':'.join(parts)}>"
