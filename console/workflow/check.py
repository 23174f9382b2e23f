"""Finds what is wrong with a prompt, all of it at once and before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from . import fields, typed
from .browser_only import why_browser_only
from .fields import AUTOGROW, COMBO, Field, Info
from .prompt import Converted, Prompt
from .settings import fields_at

Node = Mapping[str, Any]


class Problem(NamedTuple):
    """A sentence, and the input of a node that it is about, where it is about one. Where it is not `sure`, the class of
    the node may take what object_info does not list; the server knows."""

    text: str
    node: str = ""
    name: str = ""
    sure: bool = True


def problems(done: Converted, object_info: Mapping[str, Info]) -> list[Problem]:
    """Return all of it: classes that are missing, connections to nowhere, inputs without a value, values that the
    server would refuse, files that it does not list. Of nodes that lead to no output only the class counts."""
    prompt = done.prompt
    found = [*map(Problem, _missing(done, object_info))]
    outputs = [name for name, node in prompt.items() if object_info.get(node["class_type"], {}).get("output_node")]
    if not outputs and not found:
        return [Problem("nothing in the workflow makes an output; add a node that saves or shows something")]
    for node in needed(prompt, outputs):
        if prompt[node]["class_type"] in object_info:
            who = f"node {node} ({title(prompt, node)})"
            found += [Problem(f"{who}: {text}", node, key, sure) for key, text, sure in _wrong(node, done, object_info)]
    return found


def title(prompt: Prompt, name: str) -> str:
    node = prompt[name]
    return str((node.get("_meta") or {}).get("title") or node["class_type"])


def needed(prompt: Prompt, outputs: list[str]) -> list[str]:
    """The nodes that outputs need, themselves included, in the order of the prompt."""
    seen: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name in seen or name not in prompt:
            continue
        seen.add(name)
        pending += [str(value[0]) for value in prompt[name]["inputs"].values() if _is_link(value)]
    return [name for name in prompt if name in seen]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _missing(done: Converted, object_info: Mapping[str, Info]) -> Iterator[str]:
    """Classes that are not here, each once, with its nodes and the pack that the file says it is from."""
    by_kind: dict[str, list[str]] = {}
    for name, node in done.prompt.items():
        if node["class_type"] not in object_info:
            by_kind.setdefault(node["class_type"], []).append(name)
    for kind, names in by_kind.items():
        laid = done.sources.get(names[0])
        properties = laid.node.properties if laid else {}
        pack = properties.get("cnr_id") or properties.get("aux_id")
        where = f"node {names[0]}" if len(names) == 1 else f"nodes {', '.join(names)}"
        yield f"{where}: this ComfyUI has no {kind}; {why_browser_only(kind) or _cure(pack)}"


def _cure(pack: object) -> str:
    if pack == "comfy-core":
        return "update ComfyUI"
    return f"install the pack {pack}" if pack else "install the pack that has it"


def _wrong(name: str, done: Converted, object_info: Mapping[str, Info]) -> Iterator[tuple[str, str, bool]]:
    """(input, what is wrong with it, whether that is sure)."""
    node = done.prompt[name]
    inputs, kind = node["inputs"], node["class_type"]
    known = fields_at(node, object_info)
    for key, value in inputs.items():
        if _is_link(value):
            fault = _broken(key, value, done.prompt, object_info)
        else:
            fault = _refused(known[key], value, done, name) if key in known else ""
        if fault:
            yield key, fault, _is_link(value)
    for key, spec, required in fields.inputs_of(object_info[kind]["input"]):
        if required and key not in inputs and spec[0] != AUTOGROW:
            fault = f"its field {key} has no value" if key in known else f"its input {key} is not connected"
            yield key, fault, False


def _broken(key: str, link: list[Any], prompt: Prompt, object_info: Mapping[str, Info]) -> str:
    origin = prompt.get(str(link[0]))
    if origin is None:
        return f"its input {key} comes from node {link[0]}, which is not there"
    outputs = object_info.get(origin["class_type"], {}).get("output")
    if outputs is not None and not (isinstance(link[1], int) and 0 <= link[1] < len(outputs)):
        return f"its input {key} comes from output {link[1]} of node {link[0]}, which has {len(outputs)}"
    return ""


def _refused(made: Field, value: Any, done: Converted, name: str) -> str:
    try:
        typed.check(made, value)
    except ValueError as error:
        model = _model(done, name, value)
        if made.kind == COMBO and (model or _is_file(made, value)):
            return f"the file {value} of {made.name} is not there{_where(made, value, model)}"
        return f"{made.name} {error}"
    return ""


def _is_file(made: Field, value: Any) -> bool:
    """A list of files is empty, or all of it ends as files do."""
    return isinstance(value, str) and "." in value[-14:] and all("." in str(choice)[-14:] for choice in made.choices)


def _model(done: Converted, name: str, value: Any) -> Mapping[str, Any]:
    """Return what the workflow says of a file: its folder and where it is had."""
    laid = done.sources.get(name)
    models = laid.node.properties.get("models") if laid else None
    return next((model for model in models or () if model.get("name") == value), {})


def _where(made: Field, value: Any, model: Mapping[str, Any]) -> str:
    if model:
        return f"; put it into models/{model.get('directory', '')} (it is at {model.get('url', 'an unknown place')})"
    meant = typed.nearest(str(value), map(str, made.choices))
    return f"; did you mean {meant}?" if meant else f"; ComfyUI lists {len(made.choices)} here"
