"""Checks what a saved LoRA tells through the endpoints of a real server that the front end asks."""

from __future__ import annotations

import io
import json
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo import shapes
from harness.server import ComfyServer
from PIL import Image

from e2e import graphs

NAME = f"{graphs.FOLDER}/told.safetensors"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with the assets system on, and a LoRA saved with a preview."""
    base = tmp_path_factory.mktemp("assets")
    database = f"sqlite:///{base / 'assets.db'}"
    with ComfyServer(base, ("--enable-assets", "--database-url", database)) as server:
        shapes.write_dataset(server.base / "input" / "e2e_told", "heart", 4, 64, 0)
        graph = graphs.training("e2e_told", "told")
        graph["data"]["inputs"]["trigger"] = "Sks"
        graph["red"] = graphs.node("EmptyImage", width=640, height=320, batch_size=1, color=0xFF0000)
        graph["save"]["inputs"] |= {"preview": ["red", 0], "author": "me", "captions": "include"}
        server.run(graph)
        yield server


def test_view_metadata(told: ComfyServer) -> None:
    found = told.get("/view_metadata/loras", filename=NAME)
    assert (found["modelspec.trigger_phrase"], found["modelspec.author"]) == ("Sks", "me")
    assert found["ss_sd_model_name"] == "loom_demo.safetensors" and len(found["ss_new_sd_model_hash"]) == 64
    assert found["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert json.loads(found["ss_dataset_dirs"]) == {"e2e_told": {"n_repeats": 1, "img_count": 4}}


def test_model_browser(told: ComfyServer) -> None:
    (index,) = (each["pathIndex"] for each in told.get("/experiment/models/loras") if Path(each["name"]) == Path(NAME))
    picture = Image.open(io.BytesIO(told.fetch(f"/experiment/models/preview/loras/{index}/{NAME}")))
    assert picture.size == (512, 256) and picture.convert("RGB").getpixel((10, 10))[0] > 240


def scan(told: ComfyServer) -> None:
    """Not while another scan runs, as at the start of a server."""
    try:
        told.post("/api/assets/seed?wait=true", {"roots": ["models"]})
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise


def test_asset_scan(told: ComfyServer) -> None:
    found = told.get("/view_metadata/loras", filename=NAME)
    deadline = time.monotonic() + 120
    metadata: dict = {}
    while "trained_words" not in metadata and time.monotonic() < deadline:
        scan(told)
        assets = told.get("/api/assets", name_contains="told", limit=10)["assets"]
        metadata = next(({**a.get("metadata", {}), **a.get("user_metadata", {})} for a in assets), {})
        time.sleep(0.2)
    assert "Sks" in metadata["trained_words"] and metadata["base_model"] == found["ss_base_model_version"]
    assert metadata["has_preview_images"] is True and metadata["source_hash"] == found["sshs_model_hash"]
