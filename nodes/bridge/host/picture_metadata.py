"""The adapters of a MODEL, by name, hash, strength, licence and author: on the MODEL, and in the pictures it makes.

A picture's metadata is what its prompt carried in `extra_pnginfo`. ComfyUI gives every prompt its own, and does not
run a node whose output it still has, so what a node writes there while it runs is missing from every later picture.
Therefore a prompt is met when it is posted, where its `extra_pnginfo` can be had; the node's fingerprint, which is
asked of every prompt before anything runs, fills in what the same graph gave when it last ran; and the node itself,
when it does run, what is true now.

A prompt that a program posts has no `extra_pnginfo`, and other packs take one for the sign of a workflow in it, which
they then read. Such a prompt stays without: its pictures are told in the graph itself, which every one of them has
under `prompt`, at the node's `_meta`.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer

import nodes

from ....lora_core.files import side_files
from ....lora_core.graph import Graph, below, kind, readers, signature
from ....lora_core.stack import attribution, credit
from ....lora_core.stack.rows import Row
from .folders import lora_path, lora_state
from .model_files import lora_hash
from .progress import Progress
from .wires import Model

KEY = "lora_loom_adapters"
HASHES = "Lora hashes"
CREDIT = "lora_loom_credit"
XMP = "XML:com.adobe.xmp"
NODE = "LoraLoom_LoadLoraStack"
_MODEL_AND_CLIP, _LORA_STACK = range(0, 2), range(2, 3)  # its outputs
_OURS = "LoraLoom_"
_KEPT = 256  # prompts that wait or have run, and graphs that have

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """`pictures` is the `extra_pnginfo` that its pictures are saved with, None where nobody gave one."""

    graph: Graph
    pictures: dict[str, Any] | None


@dataclass(frozen=True)
class Known:
    """Holds what a node gave when it last ran, the state of its files then, and how often that was found changed."""

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
    """Note a posted prompt that has a stack; it gets an id when it has none."""
    graph, extra = posted.get("prompt"), posted.get("extra_data")
    stacks = [node for node in graph.values() if kind(node) == NODE] if isinstance(graph, dict) else []
    if not isinstance(graph, dict) or not stacks:
        return posted
    for node in stacks:
        _forget(node)
    posted["prompt_id"] = posted.get("prompt_id") or str(uuid.uuid4())
    pictures = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    pictures = pictures if isinstance(pictures, dict) else None
    if pictures:
        _clear(pictures)
    _keep(_prompts, str(posted["prompt_id"]), Prompt(graph, pictures))
    return posted


def plain_readers() -> list[str] | None:
    """Return the nodes of other packs that take the `lora_stack` of the node that is asked or running, by the titles
    that people know; None when the graph is not known."""
    if (here := _here()) is None:
        return None
    prompt, node = here
    kinds = {kind(prompt.graph[name]) for name in readers(prompt.graph, node, _LORA_STACK)}
    return sorted(nodes.NODE_DISPLAY_NAME_MAPPINGS.get(each, each) for each in kinds if not each.startswith(_OURS))


def entry_of(row: Row, metadata: Mapping[str, str], overruled: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The hash is the header's, else read from the file once. `overruled` are the entries of takedown lists in spite of
    which the file is used."""
    digest = attribution.stated_hash(metadata) or lora_hash(row.name, Progress(1))
    made = attribution.entry(row, metadata, digest, side_files.told(lora_path(row.name)))
    return {**made, "overruled": list(overruled)} if overruled else made


def attach(model: Model, entries: Sequence[dict[str, Any]]) -> None:
    """Add to what is on the MODEL. Clones share the list, so it is never changed in place."""
    model.set_attachments(KEY, [*attached(model), *entries])


def attached(model: Model) -> Entries:
    return list(model.get_attachment(KEY) or ())


def recall() -> int:
    """Tell the prompt's pictures what the node that is asked for its fingerprint gave when it last ran.

    Returns a number that is another when one of its files has changed since, whose names it may have by a link.
    """
    if (here := _here()) is None:
        return 0
    prompt, node = here
    key = signature(prompt.graph, node)
    known = _known.get(key, Known([], []))
    _tell(prompt, node, known.entries)
    if (files := _files(known.entries)) != known.files:
        known = Known(known.entries, files, known.changes + 1)
        _keep(_known, key, known)
    return known.changes


def tell(entries: Entries) -> None:
    """Tell the prompt's pictures what the running node gives, and remember it for prompts that need not run it."""
    if (here := _here()) is None:
        return
    prompt, node = here
    key = signature(prompt.graph, node)
    changes = _known[key].changes if key in _known else 0
    _keep(_known, key, Known(entries, _files(entries), changes))
    _tell(prompt, node, entries)


def _files(entries: Entries) -> list[tuple]:
    return [lora_state(each["name"]) for each in entries]


def _here() -> tuple[Prompt, str] | None:
    context = get_executing_context()
    if context is None:
        return None
    prompt = _prompts.get(context.prompt_id)
    return (prompt, context.node_id) if prompt and context.node_id in prompt.graph else None


def _tell(prompt: Prompt, node: str, entries: Entries) -> None:
    if not paints(prompt.graph, node):
        return
    if prompt.pictures is None:
        _tell_in_graph(prompt.graph[node], entries)
        return
    others = [each for each in prompt.pictures.get(KEY, []) if each["node"] != node]
    found = others + [{**each, "node": node} for each in entries]
    _clear(prompt.pictures)
    if found:
        told = {KEY: found, HASHES: attribution.lora_hashes(found), CREDIT: credit.credits(found)}
        prompt.pictures.update(told)
        prompt.pictures.setdefault(XMP, credit.xmp(found))  # unless somebody else's is there


def _clear(pictures: dict[str, Any]) -> None:
    """Remove what is told of a stack, and nobody else's XMP."""
    for key in (KEY, HASHES, CREDIT, *([XMP] if credit.is_ours(pictures.get(XMP)) else [])):
        pictures.pop(key, None)


def _tell_in_graph(node: dict[str, Any], entries: Entries) -> None:
    """Replace the entries in the node's `_meta`, and give it a title where it has none. The title is what the front end
    writes there, and some read it without asking whether it is there."""
    about = node["_meta"] if isinstance(node.get("_meta"), dict) else {}
    about.pop(KEY, None)
    if entries:
        node["_meta"] = {"title": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(NODE, NODE), **about, KEY: entries}


def _forget(node: dict[str, Any]) -> None:
    """Remove, from a node of a prompt that was taken from a picture, what was told of that picture, and the fingerprint
    of its files then, which ComfyUI would take for one of now."""
    node.pop("is_changed", None)
    _tell_in_graph(node, [])


def paints(graph: Graph, node: str) -> bool:
    """Return whether an output is made with the node's MODEL or CLIP; of a stack that is only handed on, the next
    tells."""
    kinds = (nodes.NODE_CLASS_MAPPINGS.get(kind(graph[name])) for name in below(graph, node, _MODEL_AND_CLIP))
    return any(getattr(each, "OUTPUT_NODE", False) for each in kinds)


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _KEPT:
        kept.popitem(last=False)
