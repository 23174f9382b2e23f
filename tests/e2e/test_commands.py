"""The README's other commands, run as they are written there: the demo, with few steps and pictures, and the server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from harness.comfyui import ROOT, free_port
from PIL import Image
from safetensors import safe_open

DEV = [sys.executable, str(ROOT / "dev.py")]


def test_demo_leaves_two_loras_their_merge_and_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    few = ("--steps", "2", "--prompts", "1")
    ended = subprocess.run([*DEV, "demo", *few, "--out", str(out)], capture_output=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in ("heart", "arrow", "merged"):
        with safe_open(out / "loras" / f"{name}.safetensors", "pt") as file:
            assert len(list(file.keys())) == 48 * 3
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 192 and sheet.height > 6 * 192
    assert "merged file against live stack 0.00" in ended.stdout


def test_serve_answers_with_the_pack_and_ends_when_told() -> None:
    port, quiet = free_port(), subprocess.DEVNULL
    server = subprocess.Popen([*DEV, "serve", "--port", str(port)], stdout=quiet, stderr=quiet)
    try:
        assert "LoraLoom_TrainLora" in answer(port, "/object_info/LoraLoom_TrainLora", server)
    finally:
        server.terminate()
        server.wait(120)


def answer(port: int, path: str, server: subprocess.Popen[bytes], seconds: int = 300) -> dict[str, Any]:
    for _ in range(seconds):
        assert server.poll() is None, "the server has ended"
        time.sleep(1)
        with suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path)
            return json.load(connection.getresponse())
    raise TimeoutError(f"{path} was not answered in {seconds} s")
