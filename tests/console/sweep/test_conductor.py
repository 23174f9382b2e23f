"""A sweep goes on after crashes, of a run and of itself. A small program stands for headless.py, which
tests/e2e/test_headless_sweep.py runs."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.comfyui import ROOT
from PIL import Image

# It notes its arguments and its GPU, and does what the value of `do` says.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
arguments = sys.argv[1:]
here = Path(__file__).parent
value = lambda name: arguments[arguments.index(name) + 1] if name in arguments else ""
do = [each.split("=")[1] for each in arguments if each.startswith("do=")]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps({"arguments": arguments, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}) + chr(10))
if "--check" in arguments:
    sys.exit(2 if "refused" in value("--sweep") else 0)
if do == ["dies"] and not (here / "mended").exists():
    os._exit(9)
if do == ["waits"]:
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    (here / "waits").touch()
    while not ended:
        time.sleep(0.02)
    sys.exit(143)
picture = here / f"{do[0]}.png"
picture.write_bytes((here / "one.png").read_bytes())
told = {"status": 0, "outcome": "done", "problem": "", "seconds": 61.0, "files": [str(picture)], "runs": []}
Path(value("--result")).write_text(json.dumps(told))
"""


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "headless.py").write_text(PROGRAM)
    (folder / "flow.json").write_text('{"1": {"class_type": "A", "inputs": {}}}')
    Image.new("RGB", (40, 30), "red").save(folder / "one.png")
    return folder


def begun(pack: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The real command line, with that program in the place of headless.py."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import headless;"
        " headless.name_package(); from lora_loom.console.main import main; main(Path(sys.argv[2]), sys.argv[3:])"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(pack), str(pack / "flow.json"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def swept(pack: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = begun(pack, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def calls(pack: Path, check: bool = False) -> list[dict[str, Any]]:
    lines = map(json.loads, (pack / "calls.jsonl").read_text().splitlines())
    return [line for line in lines if ("--check" in line["arguments"]) == check]


def table(pack: Path) -> list[Mapping[str, str]]:
    with open(pack / "flow-sweep" / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_that_dies_is_told_and_made_by_the_next_call_alone(pack: Path) -> None:
    status, out, err = swept(pack, "--sweep", "do=one,dies,two", "--set", "3.steps=5", "--cpu")
    assert status == 1 and "1 of 3 runs; the same command tries them again" in err
    assert [row["outcome"] for row in table(pack)] == ["done", "crashed", "done"]
    assert "ended with 9" in table(pack)[1]["problem"] and table(pack)[0]["files"].endswith("one.png")
    assert "1    one   done" in out and "1:01" in out
    assert all({"--set", "3.steps=5", "--cpu"} <= set(call["arguments"]) for call in calls(pack))
    (pack / "mended").touch()
    before = len(calls(pack))
    status, _, err = swept(pack, "--sweep", "do=one,dies,two", "--set", "3.steps=5", "--cpu")
    assert status == 0 and "3 runs, 2 of them done before" in err
    assert ["do=dies" in call["arguments"] for call in calls(pack)[before:]] == [True]
    with Image.open(pack / "flow-sweep" / "sheet.png") as sheet:
        assert sheet.height > 3 * 140, "a row of pictures for each run"


def test_more_values_are_only_the_new_runs_and_what_is_gone_is_made_again(pack: Path) -> None:
    assert swept(pack, "--sweep", "do=a,b")[0] == 0
    (pack / "a.png").unlink()
    assert swept(pack, "--sweep", "do=a,b,c")[0] == 0
    made = [next(each for each in call["arguments"] if each.startswith("do=")) for call in calls(pack)]
    assert made == ["do=a", "do=b", "do=a", "do=c"]
    before = len(calls(pack, check=True))
    assert swept(pack, "--sweep", "do=a,b,c")[0] == 0
    assert len(calls(pack, check=True)) == before, "nothing is begun when everything is done"


def test_all_combinations_are_checked_before_the_first_run(pack: Path) -> None:
    status, _, _ = swept(pack, "--sweep", "do=one,refused")
    assert status == 2 and calls(pack) == [] and len(calls(pack, check=True)) == 1


def test_side_by_side_each_has_a_gpu_of_its_own(pack: Path) -> None:
    assert swept(pack, "--sweep", "do=a,b,c", "--parallel", "2", CUDA_VISIBLE_DEVICES="4,6")[0] == 0
    assert {call["gpu"] for call in calls(pack)} == {"4", "6"} and len(calls(pack)) == 3
    assert len(list((pack / "flow-sweep").glob("*.log"))) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_cancel_lets_runs_keep_what_they_have(pack: Path) -> None:
    process = begun(pack, "--sweep", "do=one,waits,two")
    while not (pack / "waits").exists():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on from here" in err
    assert [row["outcome"] for row in table(pack)] == ["done", "not begun", "not begun"]


@pytest.mark.parametrize(
    "arguments, problem",
    [(["--sweep", "rank"], "does not say which values"), (["--sweep", "rank=1", "--parallel", "0"], "--parallel is 0")],
)
def test_bad_input_begins_nothing(pack: Path, arguments: list[str], problem: str) -> None:
    status, _, err = swept(pack, *arguments)
    assert status == 2 and problem in err and not (pack / "calls.jsonl").exists()
