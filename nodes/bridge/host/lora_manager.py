"""Tells Lora-Manager, when it is there, which LoRAs a stack has applied, so that its Save Image writes them.

That pack notes what nodes do by a table, class names to classes: it calls `extract` of these before a node runs and
`update` with what the node gave. Packs are loaded in any order, so the table is looked for with the first prompt.
"""

from __future__ import annotations

import logging
import ntpath
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from server import PromptServer

from ....lora_core.stack.rows import Row
from .picture_metadata import paints

log = logging.getLogger("lora_loom")

_MODULE, _TABLE, _LORAS = ".metadata_collector.node_extractors", "NODE_EXTRACTORS", "loras"
_NODE = "LoadLoraStack"  # in that table nodes go by the names of their classes


class StackExtractor:
    """For Load LoRA Stack. What another node of that class name gives has no rows of ours, and is passed over."""

    @staticmethod
    def extract(node_id: str, inputs: Any, outputs: Any, metadata: Any) -> None:
        """Nothing: which files the rows mean is known when the node has run."""

    @staticmethod
    def update(node_id: str, outputs: Any, metadata: Any) -> None:
        graph = getattr(metadata.get("current_prompt"), "original_prompt", None) or {}
        rows = [row for row in _rows(outputs) if row.active]
        if not rows or (node_id in graph and not paints(graph, node_id)):
            return
        found = [{"name": _bare(row.name), "strength": round(row.strength, 4)} for row in rows]
        metadata.setdefault(_LORAS, {})[node_id] = {"lora_list": found, "node_id": node_id}


def listen() -> None:
    """From now on, look for that pack with every prompt."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and introduce not in server.on_prompt_handlers:
        server.add_on_prompt_handler(introduce)


def introduce(posted: dict[str, Any]) -> dict[str, Any]:
    """Enter our extractor into that pack's table. Of a pack that is built in another way nothing is touched."""
    for module in [module for name, module in list(sys.modules.items()) if name.endswith(_MODULE)]:
        table = getattr(module, _TABLE, None)
        if not isinstance(table, dict) or getattr(module, "LORAS", None) != _LORAS:
            _say_once(
                "this version of Lora-Manager stores metadata differently: it does not include the LoRAs of Load "
                "LoRA Stack"
            )
        else:
            table.setdefault(_NODE, StackExtractor)
    return posted


def _rows(outputs: Iterable[Any] | None) -> Iterator[Row]:
    for output in outputs or ():
        for value in getattr(output, "result", None) or ():
            yield from (row for row in value if isinstance(row, Row)) if isinstance(value, list) else ()


def _bare(name: str) -> str:
    """As that pack calls files: without folder, of either system, and suffix."""
    return ntpath.splitext(ntpath.basename(name))[0]


@cache
def _say_once(words: str) -> None:
    log.info(words)
