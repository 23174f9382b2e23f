"""The adapters of a MODEL, by name, hash, strength, licence and author: on the MODEL, and in the pictures it makes.

A picture's metadata is what its prompt carried in `extra_pnginfo`. ComfyUI gives every prompt its own, and does not
run a node whose output it still has, so what a node writes there while it runs is missing from every later picture.
Therefore a prompt is met when it is posted, where its `extra_pnginfo` can be had; the node's fingerprint, which is
asked of every prompt before anything runs, fills in what the same graph gave when it last ran; and the node itself,
when it does run, what is true now.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer

import nodes

from ...lora_core import attribution
from ...lora_core.rows import Row
from .folders import lora_state
from .origin import lora_hash
from .progress import Progress

KEY = "lora_loom_adapters"
HASHES = "Lora hashes"
NODE = "LoraLoom_LoadLoraStack"
_KEPT = 256  # prompts that wait or have run, and graphs that have

Entries = list[dict[str, Any]]
Graph = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """`pictures` is the `extra_pnginfo` that its pictures are saved with."""

    graph: Graph
    pictures: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What a node gave when it last ran, the state of its files then, and how often that was found to have changed."""

    entries: Entries
    files: list[tuple]
    changes: int = 0


_prompts: OrderedDict[str, Prompt] = OrderedDict()
_known: OrderedDict[str, Known] = OrderedDict()


def listen() -> None:
    """From now on, meet every prompt that is posted."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and meet not in server.on_prompt_handlers:
        server.add_on_prompt_handler(meet)


def meet(posted: dict[str, Any]) -> dict[str, Any]:
    """Note the `extra_pnginfo` of a posted prompt that has a stack; it gets one, and an id, when it has none."""
    graph = posted.get("prompt")
    if not isinstance(graph, dict) or not any(_kind(node) == NODE for node in graph.values()):
        return posted
    posted["prompt_id"] = posted.get("prompt_id") or str(uuid.uuid4())
    posted["extra_data"] = posted.get("extra_data") or {}
    pictures = posted["extra_data"]["extra_pnginfo"] = posted["extra_data"].get("extra_pnginfo") or {}
    if isinstance(pictures, dict):
        _keep(_prompts, str(posted["prompt_id"]), Prompt(graph, pictures))
    return posted


def entry_of(row: Row, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The hash is the header's, else read from the file once."""
    return attribution.entry(row, metadata, attribution.stated_hash(metadata) or lora_hash(row.name, Progress(1)))


def attach(model, entries: Sequence[dict[str, Any]]) -> None:
    """Add to what is on the MODEL. Clones share the list, so it is never changed in place."""
    model.set_attachments(KEY, [*attached(model), *entries])


def attached(model) -> Entries:
    return list(model.get_attachment(KEY) or ())


def recall() -> int:
    """Of the node that is asked for its fingerprint: tell the prompt's pictures what it gave when it last ran.

    Returns a number that is another when one of its files has changed since, whose names it may have by a link.
    """
    if (here := _here()) is None:
        return 0
    prompt, node = here
    signature = _signature(prompt.graph, node)
    known = _known.get(signature, Known([], []))
    _tell(prompt, node, known.entries)
    if (files := _files(known.entries)) != known.files:
        known = Known(known.entries, files, known.changes + 1)
        _keep(_known, signature, known)
    return known.changes


def tell(entries: Entries) -> None:
    """Of the node that is running: tell the prompt's pictures, and remember it for prompts that need not run it."""
    if (here := _here()) is None:
        return
    prompt, node = here
    signature = _signature(prompt.graph, node)
    changes = _known[signature].changes if signature in _known else 0
    _keep(_known, signature, Known(entries, _files(entries), changes))
    _tell(prompt, node, entries)


def _files(entries: Entries) -> list[tuple]:
    return [lora_state(each["name"]) for each in entries]


def _here() -> tuple[Prompt, str] | None:
    context = get_executing_context()
    prompt = _prompts.get(context.prompt_id) if context else None
    return (prompt, context.node_id) if prompt and context.node_id in prompt.graph else None


def _tell(prompt: Prompt, node: str, entries: Entries) -> None:
    if not _paints(prompt.graph, node):
        return
    others = [each for each in prompt.pictures.get(KEY, []) if each["node"] != node]
    found = others + [{**each, "node": node} for each in entries]
    for key in (KEY, HASHES):
        prompt.pictures.pop(key, None)
    if found:
        prompt.pictures.update({KEY: found, HASHES: attribution.lora_hashes(found)})


def _signature(graph: Graph, node: str) -> str:
    """What a node's output follows from, whatever the nodes are called: its kind and inputs, and those above it."""
    known: dict[str, str] = {}

    def signed(name: str) -> str:
        if name not in known:
            inputs = graph[name].get("inputs") or {}
            told = {key: [signed(v[0]), v[1]] if _is_link(v, graph) else v for key, v in inputs.items()}
            text = json.dumps([_kind(graph[name]), told], sort_keys=True, default=str)
            known[name] = hashlib.sha256(text.encode()).hexdigest()
        return known[name]

    return signed(node)


def _paints(graph: Graph, node: str) -> bool:
    """Whether an output is made with the node's MODEL or CLIP; of a stack that is only handed on, the next tells."""
    below = {name for name in graph if any(source == node and slot < 2 for source, slot in _links(graph, name))}
    grown = bool(below)
    while grown:
        more = {name for name in graph if name not in below and any(link[0] in below for link in _links(graph, name))}
        below |= more
        grown = bool(more)
    kinds = (nodes.NODE_CLASS_MAPPINGS.get(_kind(graph[name])) for name in below)
    return any(getattr(kind, "OUTPUT_NODE", False) for kind in kinds)


def _links(graph: Graph, name: str) -> list[tuple[str, int]]:
    inputs = (graph[name].get("inputs") or {}).values()
    return [(value[0], value[1]) for value in inputs if _is_link(value, graph)]


def _is_link(value: Any, graph: Graph) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    name, slot = value
    return isinstance(name, str) and name in graph and isinstance(slot, int)


def _kind(node: Any) -> str:
    return str(node.get("class_type", "")) if isinstance(node, Mapping) else ""


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _KEPT:
        kept.popitem(last=False)
