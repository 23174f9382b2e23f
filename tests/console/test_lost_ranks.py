"""headless.py through torchrun, two ranks on the loopback: a run of which one is killed, or hangs, ends as another."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from demo import shapes
from harness.headless import Headless, training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun and gloo are taken from Linux")

STEPS, SECONDS, TIMEOUT = 60, 120, 12
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Headless:
    found = Headless(tmp_path_factory.mktemp("ranks"))
    shapes.write_dataset(found.base / "input" / "hearts", "heart", 4, 64, 0)
    return found


@pytest.fixture(scope="module")
def whole(headless: Headless) -> Path:
    """The folder of a run to which nothing happened."""
    ended = headless.run(prompt("whole"), launcher=TORCHRUN)
    assert ended.status == 0, ended.err
    return folder(headless, "whole")


def prompt(name: str) -> dict:
    made = training("hearts", STEPS, run_name=name, save_every=10)
    made["save"]["inputs"]["name"] = name
    return made


def folder(headless: Headless, name: str) -> Path:
    (found,) = (headless.base / "output" / "lora_loom").glob(f"{name}-*")
    return found


def steps(headless: Headless, name: str) -> list[int]:
    """The steps of its log, in their order there."""
    lines = [line for log in (headless.base / "output" / "lora_loom").glob(f"{name}-*/log.jsonl")
             for line in log.read_text(encoding="utf-8").splitlines(keepends=True)]  # fmt: skip
    return [told["step"] for line in lines if line.endswith("\n") and "loss" in (told := json.loads(line))]


def rank(launcher: subprocess.Popen, number: int) -> psutil.Process:
    for each in psutil.Process(launcher.pid).children():
        if each.environ().get("RANK") == str(number):
            return each
    raise AssertionError(f"there is no rank {number}")


@contextmanager
def begun(headless: Headless, name: str, *more: str) -> Iterator[subprocess.Popen]:
    """No rank outlives a test."""
    with headless.begun(prompt(name), *more, launcher=TORCHRUN) as launcher:
        try:
            yield launcher
        finally:
            with suppress(psutil.NoSuchProcess):
                for each in psutil.Process(launcher.pid).children(recursive=True):
                    each.kill()


def wait(launcher: subprocess.Popen, until: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not until():
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def same_files(headless: Headless, name: str, whole: Path) -> None:
    """The LoRAs and the states, but for the headers, which tell when."""
    loras = headless.base / "models" / "loras"
    pairs = [(loras / "whole.safetensors", loras / f"{name}.safetensors")]
    pairs += [(each, folder(headless, name) / each.name) for each in whole.glob("*.safetensors")]
    assert len(pairs) > 3
    for wanted, found in pairs:
        assert tensors_of(found) == tensors_of(wanted), found.name


def tensors_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_a_run_of_which_ranks_hang_and_are_killed_ends_as_one_to_which_nothing_happens(
    headless: Headless, whole: Path
) -> None:
    host = socket.gethostname()
    with begun(headless, "lost", "--timeout", str(TIMEOUT)) as launcher:
        wait(launcher, lambda: len(steps(headless, "lost")) >= 7)
        first, hung = rank(launcher, 0), rank(launcher, 1)
        hung.suspend()
        wait(launcher, lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
        hung.kill()
        wait(launcher, lambda: len(steps(headless, "lost")) >= 27)
        rank(launcher, 0).kill()
        ended = headless.ended(launcher)
    assert ended.status == 0, ended.err
    assert steps(headless, "lost") == steps(headless, "whole") == list(range(1, STEPS + 1)), "each once"
    same_files(headless, "lost", whole)
    late, killed = (line for line in ended.err.splitlines() if "failed after" in line)
    assert f"rank 0 on {host}: " in late and f"rank 1 on {host} (last step " in late
    assert int(re.findall(r"has not come for (\d+) s", late)[0]) >= TIMEOUT - 1
    assert f"rank 1 on {host}: " in killed and f"rank 0 on {host} (last step " in killed and "has ended" in killed
