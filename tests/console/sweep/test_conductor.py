"""A sweep goes on after crashes, of a run and of itself. A small program stands in for what a process does;
tests/console/test_headless.py has ComfyUI in it."""

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

import pytest
from harness.comfyui import ROOT
from PIL import Image

# In the processes of the sweep it notes its arguments, and does what the value of `do` says.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import headless
import lora_loom.console.main as ours

def stands_in(here, arguments):
    value = lambda name: arguments[arguments.index(name) + 1] if name in arguments else ""
    do = [each.split("=")[1] for each in arguments if each.startswith("do=")]
    with open(here / "calls.jsonl", "a") as file:
        file.write(json.dumps(arguments) + chr(10))
    if "--check" in arguments:
        sys.exit(2 if "refused" in value("--sweep") else 0)
    print("says", do)
    if do == ["dies"] and not (here / "mended").exists():
        os._exit(9)
    if do == ["waits"]:
        ended = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
        (here / "waits").touch()
        while not ended:
            time.sleep(0.02)
        sys.exit(143)
    picture = here / (do[0] + ".png")
    picture.write_bytes((here / "one.png").read_bytes())
    told = dict(status=0, outcome="done", problem="", seconds=61.0, files=[str(picture)], runs=[])
    Path(value("--result")).write_text(json.dumps(told))

if __name__ == "__main__":
    from lora_loom.console.sweep.command import main
    main(Path(__file__).parent, sys.argv[1:])
ours.main = stands_in
"""


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM.format(root=str(ROOT)))
    (folder / "flow.json").write_text('{"1": {"class_type": "A", "inputs": {}}}')
    Image.new("RGB", (40, 30), "red").save(folder / "one.png")
    return folder


def begun(pack: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The real command line; only what a process of the sweep does is the program's."""
    command = [sys.executable, str(pack / "program.py"), str(pack / "flow.json"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def swept(pack: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = begun(pack, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def calls(pack: Path, check: bool = False) -> list[list[str]]:
    lines = map(json.loads, (pack / "calls.jsonl").read_text().splitlines())
    return [line for line in lines if ("--check" in line) == check]


def table(pack: Path) -> list[Mapping[str, str]]:
    with open(pack / "flow-sweep" / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_that_dies_is_told_and_made_by_the_next_call_alone(pack: Path) -> None:
    more = "--set", "3.steps=5", "--cpu", "--result", str(pack / "result.json")
    status, out, err = swept(pack, "--sweep", "do=one,dies,two", *more)
    result = json.loads((pack / "result.json").read_text())
    assert [(each["settings"], each["status"]) for each in result["trials"]] == [
        (["do=one"], 0), (["do=dies"], 1), (["do=two"], 0),
    ]  # fmt: skip
    assert result["status"] == status == 1 and "1 of 3 runs; the same command tries them again" in err
    assert [row["outcome"] for row in table(pack)] == ["done", "crashed", "done"]
    assert "ended with 9" in table(pack)[1]["problem"] and table(pack)[0]["files"].endswith("one.png")
    assert "1    one   done" in out and "1:01" in out
    assert all({"--set", "3.steps=5", "--cpu"} <= set(call) for call in calls(pack))
    (pack / "mended").touch()
    before = len(calls(pack))
    status, _, err = swept(pack, "--sweep", "do=one,dies,two", "--set", "3.steps=5", "--cpu")
    assert status == 0 and "3 runs, 2 of them done before" in err
    assert ["do=dies" in call for call in calls(pack)[before:]] == [True]
    with Image.open(pack / "flow-sweep" / "sheet.png") as sheet:
        assert sheet.height > 3 * 140, "a row of pictures for each run"


def test_more_values_are_only_the_new_runs_and_what_is_gone_is_made_again(pack: Path) -> None:
    assert swept(pack, "--sweep", "do=a,b")[0] == 0
    (pack / "a.png").unlink()
    assert swept(pack, "--sweep", "do=a,b,c")[0] == 0
    made = [next(each for each in call if each.startswith("do=")) for call in calls(pack)]
    assert made == ["do=a", "do=b", "do=a", "do=c"]
    before = len(calls(pack, check=True))
    assert swept(pack, "--sweep", "do=a,b,c")[0] == 0
    assert len(calls(pack, check=True)) == before, "nothing is begun when everything is done"


def test_all_combinations_are_checked_before_the_first_run(pack: Path) -> None:
    status, _, _ = swept(pack, "--sweep", "do=one,refused")
    assert status == 2 and calls(pack) == [] and len(calls(pack, check=True)) == 1


def test_side_by_side_each_has_a_gpu_of_its_own(pack: Path) -> None:
    assert swept(pack, "--sweep", "do=a,b,c", "--parallel", "2", CUDA_VISIBLE_DEVICES="4,6")[0] == 0
    assert {call[call.index("--cuda-device") + 1] for call in calls(pack)} == {"4", "6"} and len(calls(pack)) == 3
    logs = [path.read_text() for path in (pack / "flow-sweep").glob("*.log")]
    assert sorted(logs) == [f"says ['{name}']\n" for name in "abc"]


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
