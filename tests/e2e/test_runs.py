"""Checks what a real server tells of runs, by its routes and to two clients at once."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from demo import shapes
from harness import run_folders
from harness.events import Event, EventListener
from harness.server import ComfyServer
from PIL import Image

from e2e import graphs

FOLDER, AT, EVENT = "e2e_runs", "/lora_loom/runs", "lora_loom.run"
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
WORKFLOW = {"id": "3f2b", "nodes": [], "links": [], "extra": {"ds": {"scale": 1}}}


@pytest.fixture(scope="module")
def other(server: ComfyServer) -> EventListener:
    """Another client, as a second tab or a phone."""
    listener = EventListener(server.url, uuid.uuid4().hex)
    listener.start()
    return listener


@pytest.fixture(scope="module")
def parent(server: ComfyServer) -> Path:
    return server.base / "output" / "lora_loom"


@pytest.fixture(scope="module")
def finished(server: ComfyServer, other: EventListener) -> Iterator[tuple[str, dict[str, Any]]]:
    """A prompt that has trained, and what came out of it."""
    shapes.write_dataset(server.base / "input" / FOLDER, "heart", 4, 64, 0)
    prompt = server.post_prompt(graph("ink"), WORKFLOW)
    entry = server.wait(prompt)
    assert entry["status"]["status_str"] == "success"
    yield prompt, entry


def graph(name: str, steps: int = 8, **choices: Any) -> graphs.Graph:
    made = graphs.training(FOLDER, name, steps, save_every=4, **choices)
    show = {"prompts": "a heart\na tree", "negative": "", "every": 4, "width": 64, "height": 64, "steps": 1, "cfg": 1.0}
    show |= {"sampler_name": "euler", "scheduler": "simple", "seed": 1, "strength": 1.0}
    made["show"] = graphs.node("LoraLoom_Previews", **show)
    made["watch"] = graphs.node(
        "LoraLoom_Validation", held_out=0.25, every=4, draws=2, patience=4, early_stop=False, keep="last", seed=0
    )
    made["train"]["inputs"] |= {"previews": ["show", 0], "validation": ["watch", 0]}
    del made["save"]
    return made


def run_of(server: ComfyServer, name: str) -> dict[str, Any]:
    until(lambda: server.get(AT)["unread"] == 0)
    (found,) = [each for each in server.get(AT)["runs"] if each["name"] == name]
    return found


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """The status and the sentence with which a request is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        call()
    body = caught.value.read()
    return caught.value.code, json.loads(body)["error"] if body else ""


def ended(event: Event, prompt: str) -> bool:
    return event.kind == EVENT and event.prompt_id == prompt and event.data["state"] != "running"


def test_both_clients_hear_how_a_run_goes_and_ends(
    server: ComfyServer, other: EventListener, finished: tuple[str, dict[str, Any]]
) -> None:
    prompt, entry = finished
    for listener in (server.events, other):
        last = listener.wait(lambda event: ended(event, prompt)).data
        heard = listener.all(EVENT, prompt)
        assert (last["state"], last["step"], last["total"], last["saved"], last["previewed"]) == (
            "finished",
            8,
            8,
            8,
            8,
        )
        assert last["phase"].startswith("8 steps, loss") and last["node"] == "train" and last["name"] == "ink"
        assert entry["outputs"]["train"]["run"] == [last["id"]]
        assert all(event.data["state"] == "running" for event in heard[:-1])
        begun = [event for event in heard if event.data["id"]]
        assert 1 < len(begun) <= 2 * last["seconds"] + 3, "no more than two a second, and one at the end"
        assert all(str(server.base) not in json.dumps(event.data) for event in heard)


def test_a_finished_run_is_told(server: ComfyServer, finished: tuple[str, dict[str, Any]]) -> None:
    prompt, entry = finished
    run = run_of(server, "ink")
    assert run["id"] == entry["outputs"]["train"]["run"][0]
    assert (run["state"], run["step"], run["total"], run["problem"], run["fault"]) == ("finished", 8, 8, "", "")
    assert (run["previews"], run["prompts"], run["saved"], run["kept"]) == ([0, 4, 8], 2, [4, 8], 8)
    assert (run["prompt_id"], run["node"], run["workflow"], run["workflow_id"]) == (prompt, "train", True, "3f2b")
    assert run["best"] in (4, 8) and run["loss"] > 0 and run["size"] > 0 and run["seconds"] > 0
    told = server.get(AT)
    assert (told["live"], told["unread"]) == ([], 0)
    again = server.get(AT, since=told["version"])
    assert "runs" not in again and again["version"] == told["version"]
    details = server.get(f"{AT}/{run['id']}")
    assert ["rank", "4"] in details["settings"] and details["prompts"] == [["a heart"], ["a tree"]]
    assert [each["kind"] for each in details["pictures"]] == ["base", "lora"] * 2 and details["unlike"] == []
    assert details["report"] and details["id"] == run["id"] and details["charts"]
    log = server.get(f"{AT}/{run['id']}/log", **{"from": 3})
    assert (log["from"], log["steps"], log["next"], log["total"]) == (3, [3, 4, 5, 6, 7, 8], 9, 8)
    assert [step for step, _ in log["validation"]] == [0, 4, 8]
    workflow = server.get(f"{AT}/{run['id']}/workflow")
    note = {"lora_loom": {"prompt_id": prompt, "node": "train"}}
    assert workflow == {**WORKFLOW, "extra": {"ds": {"scale": 1}, **note}}
    assert str(server.base) not in json.dumps([told, details, log])


def test_pictures_are_cut_out_and_kept_by_the_browser(server: ComfyServer, finished: object) -> None:
    at = f"{AT}/{run_of(server, 'ink')['id']}"
    pictures = [server.fetch(f"{at}/preview/8/{n}", side=32) for n in range(4)]
    assert {Image.open(BytesIO(each)).size for each in pictures} == {(32, 32)} and len(set(pictures)) == 4
    assert refusal(lambda: server.fetch(f"{at}/preview/8/4")) == (404, "")
    assert refusal(lambda: server.fetch(f"{at}/preview/5/0")) == (404, "")
    assert Image.open(BytesIO(server.fetch(f"{at}/charts"))).format == "PNG"
    with OPENER.open(f"{server.url}{at}/preview/4/1") as answer:
        headers = answer.headers
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")
    known = urllib.request.Request(f"{server.url}{at}/preview/4/1", headers={"If-None-Match": headers["ETag"]})
    with pytest.raises(urllib.error.HTTPError) as caught:
        OPENER.open(known)
    assert caught.value.code == 304


def test_a_step_is_put_among_the_loras_once(server: ComfyServer, finished: object) -> None:
    at = f"{AT}/{run_of(server, 'ink')['id']}/use"
    names = [server.post(at, body)["name"] for body in ({"step": 4}, {"step": 4}, {"step": 8}, {}, {"step": None})]
    assert names == ["ink_step_4.safetensors"] * 2 + ["ink_step_8.safetensors"] + ["ink.safetensors"] * 2
    assert {each["name"] for each in server.get("/lora_loom/loras")["loras"]} >= set(names)
    assert refusal(lambda: server.post(at, {"step": 5})) == (
        404, "ink has not kept the LoRA of step 5; saved steps: 4, 8"
    )  # fmt: skip
    assert refusal(lambda: server.post(at, {"step": "../8"}))[0] == 400


def test_a_run_is_paused_and_goes_on_and_is_not_deleted_meanwhile(
    server: ComfyServer, other: EventListener, finished: object
) -> None:
    long = graph("long", 100_000)
    prompt = server.post_prompt(long)
    waiting = server.post_prompt(graph("waits", 4))
    heard = other.wait(
        lambda event: event.kind == EVENT and event.prompt_id == prompt and (event.data["step"] or 0) > 8
    )
    name, run = heard.data["id"], run_of(server, "long")
    assert (run["id"], run["state"], run["prompt_id"]) == (name, "running", prompt) and run["total"] == 100_000
    (live,) = server.get(AT)["live"]
    assert (live["id"], live["state"]) == (name, "running") and live["seconds_left"] > 0 and live["learning_rate"] > 0
    until(lambda: len(server.get(f"{AT}/{name}/log")["validation"]) > 1)
    assert refusal(lambda: server.post(f"{AT}/{name}/delete", {})) == (409, "long is training now; stop it first")
    assert server.post(f"{AT}/{name}/pause", {}) == {"prompt_id": prompt}
    last = other.wait(lambda event: ended(event, prompt)).data
    assert last["state"] == "stopped" and last["phase"].startswith(f"stopped at {last['step']} of 100000, saved;")
    assert server.wait(waiting)["status"]["status_str"] == "success", "no other prompt is ended"
    run = run_of(server, "long")
    assert (run["state"], run["step"], run["workflow"]) == ("stopped", last["step"], False)
    assert run["saved"][-1] == last["saved"] == last["step"]
    assert refusal(lambda: server.post(f"{AT}/{name}/pause", {})) == (409, "this run is not training now")
    assert refusal(lambda: server.fetch(f"{AT}/{name}/workflow"))[0] == 404
    failing = server.post_prompt(graph("long", 100_000, rank=2))
    last = server.events.wait(lambda event: ended(event, failing)).data
    assert (last["state"], last["id"]) == ("failed", None) and "had other settings: rank 4, now 2" in last["phase"]
    server.post(f"{AT}/{name}/delete", {})
    assert [each for each in server.get(AT)["runs"] if each["name"] == "long"] == []
    assert refusal(lambda: server.get(f"{AT}/{name}")) == (404, "this run is not there any more")


def test_what_is_finished_already_is_told_for_the_new_prompt(server: ComfyServer, finished: object) -> None:
    again = graph("ink")
    again["train"]["inputs"]["save_every"] = 5  # no part of what a run is known by, and of what ComfyUI has cached
    prompt = server.post_prompt(again)
    server.wait(prompt)
    last = server.events.wait(lambda event: ended(event, prompt)).data
    assert (last["state"], last["step"], last["saved"]) == ("finished", 8, 8)
    assert run_of(server, "ink")["prompt_id"] == prompt


def test_hostile_folders_names_and_origins(server: ComfyServer, parent: Path) -> None:
    name = "styles/x%2F..%2F..-00000001"
    folder = run_folders.run(parent, name)
    run_folders.log(folder, run_folders.steps(range(1, 10_001)))
    run_folders.write(folder / "workflow.json", "[" * 10_000)
    run_folders.write(parent / "bad-00000002" / "run.json", "{")
    found = {each["id"]: each for each in server.get(AT)["runs"]}
    assert found[name]["state"] == "stopped" and found["bad-00000002"]["fault"] == "run.json cannot be read"
    at = f"{AT}/{urllib.parse.quote(name, safe='')}"
    assert len(server.get(f"{at}/log")["steps"]) <= 1000 and server.get(f"{at}/log")["next"] == 10_001
    assert refusal(lambda: server.fetch(f"{at}/workflow"))[0] == 404
    for wrong in ("..", "%2e%2e", "..%2F..%2Finput", "%2Fetc", "styles", "x%00-00000001", "a" * 5000):
        for path in ("", "/log", "/workflow", "/charts", "/preview/0/0"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                server.fetch(f"{AT}/{wrong}{path}")
            assert caught.value.code == 404
    foreign = {"Origin": "https://example.com", "Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server.url}{at}/delete", b"{}", foreign)
    with pytest.raises(urllib.error.HTTPError) as caught:
        OPENER.open(request)
    assert caught.value.code == 403 and folder.is_dir()
    server.post(f"{at}/delete", {})
    assert not folder.exists() and (parent / "bad-00000002").is_dir()


def until(done: Callable[[], bool], timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
