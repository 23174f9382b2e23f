"""Asks ComfyUI's server what a browser would ask, without a connection: its own handlers answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .document import Prompt
from .start import StartError
from .workflow.check import Problem

_LARGEST = 2**30  # bytes of a workflow
_LONGEST = 300  # characters of what is wrong with a node


async def object_info(server: Any) -> dict[str, Any]:
    """Return every node as the front end sees it."""
    return (await _answered(server, "GET", "/object_info"))[1]


async def accepted(
    server: Any, prompt: Prompt, extra: Mapping[str, Any], client: str, known: Sequence[Problem] = ()
) -> tuple:
    """Return what the server would have put into its queue for a prompt: (number, id, prompt, extra data, nodes to
    execute, and more in newer versions).

    known: what was found wrong before; where that is not sure, it counts if the server finds it, too. Raises ValueError
    with that and with what the server finds besides, also where other outputs of the workflow are right.
    """
    body = {"prompt": prompt, "client_id": client, **({"extra_data": dict(extra)} if extra else {})}
    queue, caught = server.prompt_queue, _Caught()
    server.prompt_queue, told = caught, logging.root.manager.disable
    logging.disable()  # ComfyUI logs what it answers
    try:
        status, answer = await _answered(server, "POST", "/prompt", body)
    finally:
        server.prompt_queue = queue
        logging.disable(told)
    if wrong := _wrong(answer, prompt, known):
        raise ValueError("\n".join(wrong))
    if status != 200 or caught.item is None:
        raise ValueError(f"ComfyUI does not take the workflow: {json.dumps(answer)[:_LONGEST]}")
    return caught.item


class _Caught:
    """In the place of the queue."""

    item: tuple | None = None

    def put(self, item: tuple) -> None:
        self.item = item


def _wrong(answer: Mapping[str, Any], prompt: Prompt, known: Sequence[Problem]) -> list[str]:
    """A line for each thing that is wrong; the error of the whole is only a summary where there are others."""
    nodes = {key: node.get("errors", []) for key, node in (answer.get("node_errors") or {}).items()}
    met = {(key, _input(error)) for key, errors in nodes.items() for error in errors}
    judged = nodes or not answer.get("error")  # without a class, the server looks no further
    found = [each.text for each in known if each.sure or not judged or (each.node, each.name) in met]
    told = {(each.node, each.name) for each in known}
    for key, errors in nodes.items():
        who = f"node {key} ({title(prompt, key)})"
        found += [f"{who}: {_said(error)}" for error in errors if (key, _input(error)) not in told]
    error = answer.get("error")
    return found or ([_said(error) if isinstance(error, dict) else str(error)] if error else [])


def _input(error: Mapping[str, Any]) -> str:
    return str((error.get("extra_info") or {}).get("input_name", ""))


def _said(error: Mapping[str, Any]) -> str:
    said = ": ".join(filter(None, (error.get("message"), error.get("details"))))
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."


def title(prompt: Prompt, key: str) -> str:
    """Return what a person calls a node; of one that another made while it ran, what the other is called."""
    node = prompt.get(key) or prompt.get(key.partition(".")[0]) or {}
    return (node.get("_meta") or {}).get("title") or _display_name(node.get("class_type", "")) or key


def _display_name(kind: str) -> str:
    import nodes

    return nodes.NODE_DISPLAY_NAME_MAPPINGS.get(kind, kind)


async def _answered(server: Any, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Return the status and the JSON of a route. Raises StartError where this ComfyUI has no such route."""
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.streams import StreamReader
    from aiohttp.test_utils import make_mocked_request

    handlers = [route.handler for route in server.routes if (route.method, route.path) == (method, path)]
    if not handlers:
        raise StartError(f"this ComfyUI answers no {method} {path}; use one between 0.30 and 0.46")
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), _LARGEST, loop=loop)
    content.feed_data(json.dumps(body).encode())
    content.feed_eof()
    headers = {"Content-Type": "application/json"}
    request = make_mocked_request(method, path, headers, payload=content, client_max_size=_LARGEST)
    answer = await handlers[0](request)
    return answer.status, json.loads(answer.body)
