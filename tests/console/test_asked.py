from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from lora_loom.console.asked import accepted, object_info
from lora_loom.console.start import StartError
from lora_loom.console.workflow.check import Problem
from server import PromptServer

IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}


def save(image: str) -> dict[str, Any]:
    return {"class_type": "PreviewImage", "inputs": {"images": [image, 0]}, "_meta": {"title": "Shown"}}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def server(loop: asyncio.AbstractEventLoop) -> Iterator[PromptServer]:
    """ComfyUI's own, which does not listen; other tests find what they would without it."""
    before = getattr(PromptServer, "instance", None)
    yield PromptServer(loop)
    if before is None:
        del PromptServer.instance
    else:
        PromptServer.instance = before


def test_the_item_is_the_servers_and_nothing_is_queued(loop: asyncio.AbstractEventLoop, server: PromptServer) -> None:
    met = []
    server.add_on_prompt_handler(lambda posted: met.append(posted) or posted)
    queue, workflow = server.prompt_queue, {"extra_pnginfo": {"workflow": {"nodes": []}}}
    item = loop.run_until_complete(accepted(server, {"1": IMAGE, "2": save("1")}, workflow, "me"))
    assert set(item[2]) == {"1", "2"} and item[4] == ["2"] and item[3]["client_id"] == "me"
    assert item[3]["extra_pnginfo"] == workflow["extra_pnginfo"]
    assert server.prompt_queue is queue and queue.get_tasks_remaining() == 0
    assert len(met) == 1, "other packs meet it as a prompt that a browser posts"


def test_all_is_refused_where_an_output_is_wrong(loop: asyncio.AbstractEventLoop, server: PromptServer) -> None:
    """Each thing that is wrong has a line; the server would run the other output."""
    wrong = {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 64, "color": 0}}
    prompt = {"1": IMAGE, "2": save("1"), "3": wrong, "4": save("3")}
    with pytest.raises(ValueError) as refused:
        loop.run_until_complete(accepted(server, prompt, {}, "me"))
    lines = str(refused.value).splitlines()
    assert len(lines) == 2 and all("node 3" in line for line in lines)
    assert "batch_size" in str(refused.value) and "width" in str(refused.value)


def test_what_is_known_is_told_once_and_counts_where_it_is_sure_or_the_server_agrees(
    loop: asyncio.AbstractEventLoop, server: PromptServer
) -> None:
    wrong = {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 64, "color": 0}}
    known = [Problem("too small", "1", "width", False), Problem("its class takes that", "1", "color", False)]
    known.append(Problem("no such setting"))
    with pytest.raises(ValueError) as refused:
        loop.run_until_complete(accepted(server, {"1": wrong, "2": save("1")}, {}, "me", known))
    lines = str(refused.value).splitlines()
    assert lines[:2] == ["too small", "no such setting"] and len(lines) == 3 and "batch_size" in lines[2]
    assert loop.run_until_complete(accepted(server, {"1": IMAGE, "2": save("1")}, {}, "me", known[1:2]))
    missing = {"1": IMAGE, "2": save("1"), "3": {"class_type": "NoSuch", "inputs": {}}}
    with pytest.raises(ValueError, match="^its class takes that$"):
        loop.run_until_complete(accepted(server, missing, {}, "me", known[1:2]))


def test_nodes_are_told_as_a_browser_gets_them(loop: asyncio.AbstractEventLoop, server: PromptServer) -> None:
    assert loop.run_until_complete(object_info(server))["EmptyImage"]["input"]["required"]["width"][0] == "INT"


def test_a_comfyui_without_the_route_is_named(loop: asyncio.AbstractEventLoop, server: PromptServer) -> None:
    server.routes = []
    with pytest.raises(StartError, match="answers no GET /object_info"):
        loop.run_until_complete(object_info(server))
