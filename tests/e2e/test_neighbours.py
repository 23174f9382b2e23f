"""Beside another pack, which reads prompts as such packs do; and our routes as a page and as others ask them."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.comfyui import ROOT, prepare_base
from harness.server import ComfyServer
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.files.save import save
from PIL import Image
from safetensors.torch import load_file, save_file

from e2e import graphs
from e2e.test_attribution import LAYER, WORKFLOW, demo_model

NAME = "made/ink.safetensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One with the other pack, and `ink`."""
    base = prepare_base(tmp_path_factory.mktemp("neighbours"))
    shutil.copy(ROOT / "tests" / "harness" / "neighbour.py", base / "custom_nodes")
    width = load_file(demo_model())["blocks.0.self_attn.q.weight"].shape[0]
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(2, width), f"{LAYER}.lora_up.weight": torch.ones(width, 2)}
    (base / "models" / "loras" / "made").mkdir()
    save(base / "models" / "loras" / NAME, tensors, {"modelspec.author": "Ada"})
    with ComfyServer(base) as running:
        yield running


def seen(server: ComfyServer) -> list[dict[str, Any]]:
    """Return what the other pack has found since it was asked last."""
    path = server.base / "custom_nodes" / "seen.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text("[]", encoding="utf-8")
    return found


def graph(rows: str, name: str) -> graphs.Graph:
    loader = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], clip=["clip", 0], rows=rows)
    made = {**graphs.base(), "stack": loader, **graphs.picture(["stack", 0], ["stack", 1], "a heart")}
    made["sampler"]["inputs"]["steps"] = 1
    made["picture"]["inputs"]["filename_prefix"] = name
    made["other"] = graphs.node("NeighbourSave", images=["decode", 0], name=name)
    return made


def told(server: ComfyServer, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what ComfyUI's own PNG of a run says."""
    (image,) = entry["outputs"]["picture"]["images"]
    return {key: json.loads(value) for key, value in Image.open(io.BytesIO(server.view(image))).text.items()}


@pytest.mark.parametrize("extra", [None, {"extra_data": {}}, {"extra_data": {"extra_pnginfo": None}}])
def test_a_programs_prompt_looks_to_others_as_without_us(server: ComfyServer, extra: dict[str, Any] | None) -> None:
    """The other pack's handler and saver find no workflow and say nothing; the picture tells its LoRAs all the same,
    also when only it is made anew."""
    name = f"api {json.dumps(extra)}".translate(str.maketrans('{}":', "____"))
    for turn in ("first", "again"):
        made = graph("<lora:ink:0.5>", f"{name} {turn}")
        if extra and extra["extra_data"]:  # a handler that asks whether there is one stops at this, with us or without
            del made["other"]
        prompt = server.post("/prompt", {"prompt": made, **(extra or {})})["prompt_id"]
        entry = server.wait(prompt)
        assert entry["status"]["status_str"] == "success", entry
        text = told(server, entry)
        assert text.keys() == {"prompt"} and text["prompt"]["stack"]["_meta"]["title"] == "Load LoRA Stack"
        (ink,) = text["prompt"]["stack"]["_meta"]["lora_loom_adapters"]
        assert (ink["name"], ink["strength"], ink["author"]) == (NAME, 0.5, "Ada")
        assert ink["sha256"] == data_hash(server.base / "models" / "loras" / NAME)
        found = seen(server)
        if "other" in made:
            assert (server.base / "output" / f"{name} {turn}.png").is_file()
            assert [each["extra"] for each in found if "handler" in each] == [extra is not None]
            assert [each for each in found if "saver" in each] == [
                {"saver": None, "names": [], "titles": ["Load LoRA Stack"]}
            ]
            assert "_meta" not in entry["prompt"][2]["stack"] and "extra_pnginfo" not in entry["prompt"][3]


def test_a_page_gives_its_workflow(server: ComfyServer) -> None:
    seen(server)
    text = told(server, server.run(graph("<lora:ink:0.5>", "page"), workflow=WORKFLOW))
    assert text.keys() == {
        "prompt",
        "workflow",
        "lora_loom_adapters",
        "Lora hashes",
        "lora_loom_credit",
        "XML:com.adobe.xmp",
    }
    assert "_meta" not in text["prompt"]["stack"]
    (saved,) = [each for each in seen(server) if "saver" in each]
    assert json.loads(saved["saver"]) == WORKFLOW and "lora_loom_adapters" in saved["names"]


def test_a_prompt_taken_from_a_picture_tells_what_is_true_now(server: ComfyServer) -> None:
    """A picture's prompt holds what was told of that picture, and the fingerprint of its files then."""
    old = told(server, server.run(graph("<lora:ink:0.25>", "old")))["prompt"]
    assert old["stack"]["is_changed"] and old["stack"]["_meta"]["lora_loom_adapters"]
    old["stack"]["inputs"]["rows"] = "<lora:ink:1:off>"
    off = told(server, server.run(old))["prompt"]
    assert off["stack"]["_meta"] == {"title": "Load LoRA Stack"}
    old["stack"]["inputs"]["rows"] = "<lora:ink:0.25>"
    path = server.base / "models" / "loras" / NAME
    save_file({key: value * 2 for key, value in load_file(path).items()}, path)
    (now,) = told(server, server.run(old))["prompt"]["stack"]["_meta"]["lora_loom_adapters"]
    assert now["sha256"] == data_hash(path) and now["author"] is None


def test_report_says_what_a_loader_of_another_pack_does_not_read(server: ComfyServer) -> None:
    made = graph("<lora:ink:0.75:blocks=blocks.0=0:end=0.5>", "blocks")
    (before,) = server.run(made)["outputs"]["stack"]["text"]
    assert "lora_stack" not in before
    made["theirs"] = graphs.node("NeighbourApply", lora_stack=["stack", 2])
    seen(server)
    (report,) = server.run(made)["outputs"]["stack"]["text"]
    assert (
        "blocks of made/ink.safetensors and start and end of made/ink.safetensors have no effect in Apply Their"
        in report
    )
    assert {"stack": [[str(Path(NAME)), 0.75, 0.75]]} in seen(server)
    made["theirs"] = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], lora_stack=["stack", 2])
    made["stack"]["inputs"]["rows"] += " "
    (ours,) = server.run(made)["outputs"]["stack"]["text"]
    assert "lora_stack" not in ours


# -- the list and the pictures of the picker -----------------------------------------------------------------------------


def ask(server: ComfyServer, path: str, **headers: str) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(
        server.url + path, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_list_is_sent_once(server: ComfyServer) -> None:
    end = time.monotonic() + 120
    while server.get("/lora_loom/loras")["unread"]:  # an answer takes a second at most
        assert time.monotonic() < end, "headers are left unread"
        time.sleep(0.05)
    status, headers, body = ask(server, "/lora_loom/loras", Accept_Encoding="gzip")
    whole = json.loads(gzip.decompress(body))
    assert (status, headers["Content-Encoding"], headers["Content-Type"]) == (
        200,
        "gzip",
        "application/json; charset=utf-8",
    )
    assert headers["X-Content-Type-Options"] == "nosniff" and whole["since"] == "" and whole["unread"] == 0
    assert [each["name"] for each in whole["loras"]] == [NAME] and str(server.base) not in json.dumps(whole)
    again, _, nothing = ask(server, "/lora_loom/loras", If_None_Match=headers["ETag"])
    assert (again, nothing) == (304, b"")
    same = server.get("/lora_loom/loras", since=whole["version"])
    assert same == {"version": whole["version"], "since": whole["version"], "loras": [], "gone": [], "unread": 0}
    folder = server.base / "models" / "loras"
    shutil.copy(folder / NAME, folder / "oil.safetensors")
    more = server.get("/lora_loom/loras", since=whole["version"])
    assert [each["name"] for each in more["loras"]] == ["oil.safetensors"] and more["gone"] == []
    assert ask(server, "/lora_loom/loras", If_None_Match=headers["ETag"])[0] == 200
    (folder / "oil.safetensors").unlink()
    assert server.get("/lora_loom/loras", since=more["version"])["gone"] == ["oil.safetensors"]


@pytest.mark.parametrize("path", ["loras", "picture?name=made/ink.safetensors"])
def test_pages_of_other_origins_get_nothing(server: ComfyServer, path: str) -> None:
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert ask(server, f"/lora_loom/{path}", **headers)[0] == 403


@pytest.mark.parametrize(
    "name",
    [
        "",
        "made",
        "ink",
        "../../input/a.png",
        "made/../made/ink.safetensors",
        "/etc/passwd",
        "made%5Cink.safetensors",
        "%00",
    ],
)
def test_only_listed_names_have_pictures(server: ComfyServer, name: str) -> None:
    Image.new("RGB", (8, 8), "red").save(server.base / "input" / "a.png")
    Image.new("RGB", (8, 8), "red").save(server.base / "models" / "loras" / "made" / "ink.png")
    status, headers, body = ask(server, "/lora_loom/picture?name=made/ink.safetensors")
    assert (status, headers["Content-Type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(server, f"/lora_loom/picture?name={name}")[::2] == (404, b"")
