"""The pack in other languages: from tests/locales/<language>.json, where a translation lies beside its English, to the
files in locales/ that ComfyUI serves.

A table has the names of inputs and outputs by their ids (`LoraLoom_ResizeLora.keep` where one node's is another), the
texts of nodes, the words of the page and sentences of the server by the English itself: English that has changed is
English that lacks. What a sentence of the server has in {braces} is a name or a figure, and {said} a sentence again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .comfyui import ROOT

TABLES = ROOT / "tests" / "locales"
LOCALES = ROOT / "locales"
LANGUAGES = ("zh", "ja", "ko")  # beside English, which needs no table
WORD = re.compile(r"""\b(?:word|phrase)\(\s*("(?:[^"\\\n]|\\.)*")""")  # as web/js/page/words.js looks them up
Table = dict[str, dict[str, str]]


class Said(NamedTuple):
    """Says what a node says: where it is in ComfyUI's file, its key in a table, and the values that it may name."""

    place: tuple[str, ...]
    part: str
    key: str
    options: tuple[str, ...] = ()

    @property
    def english(self) -> str:
        return self.key.partition(".")[2] if self.part == "names" else self.key


def table(language: str) -> Table:
    return json.loads((TABLES / f"{language}.json").read_text(encoding="utf-8"))


def said(node: str, info: dict[str, Any]) -> Iterator[Said]:
    """All that a node says, from what ComfyUI's /object_info has of it."""
    yield Said(("display_name",), "texts", info["display_name"])
    yield Said(("description",), "texts", info["description"])
    for name, kind, options in _inputs(info):
        yield Said(("inputs", name.replace(".", "_"), "name"), "names", f"{node}.{name}")
        values = tuple(map(str, options.get("options", ()))) if kind == "COMBO" else ()
        yield Said(("inputs", name.replace(".", "_"), "tooltip"), "texts", options["tooltip"], values)
    for number, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True)):
        yield Said(("outputs", str(number), "name"), "names", f"{node}.{name}")
        yield Said(("outputs", str(number), "tooltip"), "texts", tooltip)


def _inputs(info: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for group in ("required", "optional"):
        for name, (kind, options) in info["input"].get(group, {}).items():
            yield name, kind, options


def words() -> set[str]:
    """Return the English that the page looks up in its tables."""
    scripts = sorted((ROOT / "web").rglob("*.js"))
    return {json.loads(each) for path in scripts for each in WORD.findall(path.read_text(encoding="utf-8"))}


def found(known: Table, each: Said) -> str | None:
    """Return what a table has for it: of a name, the node's own or that of all nodes."""
    return known[each.part].get(each.key) or known[each.part].get(each.english)


def files(language: str, nodes: dict[str, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Return what is to be in the language's files. English says of its own what the nodes say."""
    known = table(language) if language in LANGUAGES else None
    definitions: dict[str, Any] = {}
    for node, info in nodes.items():
        for each in said(node, info):
            _put(definitions.setdefault(node, {}), each.place, (known and found(known, each)) or each.english)
    made = {LOCALES / language / "nodeDefs.json": definitions}
    if known:
        made[LOCALES / language / "main.json"] = {
            "nodeCategories": known["categories"], "loraLoomServer": known["server"], "loraLoom": known["words"],
        }  # fmt: skip
    return made


def _put(into: dict[str, Any], place: tuple[str, ...], value: str) -> None:
    *ways, last = place
    for way in ways:
        into = into.setdefault(way, {})
    into[last] = value


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
