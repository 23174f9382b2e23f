"""headless.py, whole: a workflow in a process of its own, without anything that listens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from demo import shapes
from harness.headless import Ended, Headless, training
from safetensors import safe_open

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Ctrl-C reaches a whole console there")

STEPS = 60
# A pack beside ours that keeps a thread which is no daemon, as servers of others do, and a node that looks who listens.
NEIGHBOUR = """
import json, threading
from pathlib import Path
import psutil

threading.Thread(target=threading.Event().wait).start()

class Look:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "look", True, "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}}

    def look(self, name):
        listening = [each.laddr.port for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"]
        Path(__file__).with_name("seen.json").write_text(json.dumps(listening))
        return {}

NODE_CLASS_MAPPINGS = {"Neighbour_Look": Look}
"""


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Headless:
    found = Headless(tmp_path_factory.mktemp("headless"))
    shapes.write_dataset(found.base / "input" / "hearts", "heart", 4, 64, 0)
    (found.base / "custom_nodes" / "neighbour.py").write_text(NEIGHBOUR, encoding="ascii")
    return found


@pytest.fixture(scope="module")
def cancelled(headless: Headless) -> Ended:
    """Ctrl-C in the middle."""
    return headless.cancelled(training("hearts", STEPS), 5)


@pytest.fixture(scope="module")
def gone_on(headless: Headless, cancelled: Ended) -> Ended:
    """The same command again, with a node that looks around, and a title that this terminal cannot write."""
    prompt = training("hearts", STEPS)
    prompt["train"]["_meta"]["title"] = "Trainer \u8bad\u7ec3"
    prompt["look"] = {"class_type": "Neighbour_Look", "inputs": {"name": "x"}}
    return headless.run(prompt)


def test_cancel_keeps_the_run_and_says_so(cancelled: Ended) -> None:
    assert cancelled.status == 130, cancelled.err
    assert "stopped at" in cancelled.err and "cancelled after" in cancelled.err.splitlines()[-1]
    (run,) = cancelled.result["runs"]
    assert cancelled.result["outcome"] == "cancelled" and run["state"] == "stopped" and 5 <= run["step"] < STEPS
    assert (Path(run["folder"]) / f"step_{run['step']:06d}.safetensors").exists() or list(Path(run["folder"]).iterdir())


def test_the_same_command_goes_on(cancelled: Ended, gone_on: Ended) -> None:
    assert gone_on.status == 0, gone_on.err
    (before,), (run,) = cancelled.result["runs"], gone_on.result["runs"]
    assert run["folder"] == before["folder"] and (run["state"], run["step"], run["total"]) == ("finished", STEPS, STEPS)
    steps = [json.loads(line).get("step") for line in (Path(run["folder"]) / "log.jsonl").open(encoding="utf-8")]
    assert sorted(set(steps) - {None}) == list(range(1, STEPS + 1))
    assert "Trainer ??: " in gone_on.err


def test_files_are_named_on_the_last_lines_of_stdout(headless: Headless, gone_on: Ended) -> None:
    lora = headless.base / "models" / "loras" / "headless.safetensors"
    assert gone_on.out.splitlines()[-2:] == [f"run folder: {gone_on.result['runs'][0]['folder']}", f"written: {lora}"]
    assert gone_on.result["files"] == [str(lora)]
    with safe_open(lora, "pt") as file:
        assert file.metadata()["ss_steps"] == str(STEPS)


def test_nobody_listens_and_threads_of_other_packs_keep_nothing_up(headless: Headless, gone_on: Ended) -> None:
    assert gone_on.status == 0 and json.loads((headless.base / "custom_nodes" / "seen.json").read_text()) == []


def test_nothing_is_left_in_temporary_folders(headless: Headless, gone_on: Ended) -> None:
    assert list((headless.base / "temp").iterdir()) == [] and gone_on.result["seconds"] > 0


def test_a_sweep_makes_a_run_of_each_value(headless: Headless) -> None:
    prompt = training("hearts", 3, run_name="swept")
    prompt["save"]["inputs"]["name"] = "swept_%rank%"
    ended = headless.run(
        prompt, "--sweep", "rank=2,4", "--parallel", "2", "--sweep-folder", str(headless.base / "sweep")
    )
    assert ended.status == 0, ended.err
    assert [trial["settings"] for trial in ended.result["trials"]] == [["rank=2"], ["rank=4"]]
    loras = [Path(file) for trial in ended.result["trials"] for file in trial["files"]]
    assert [path.name for path in loras] == ["swept_2.safetensors", "swept_4.safetensors"]
    for path, rank in zip(loras, "24", strict=True):
        with safe_open(path, "pt") as file:
            assert file.metadata()["ss_network_dim"] == rank
    assert (headless.base / "sweep" / "sheet.png").exists() and "3 of 3" in ended.out
    refused = headless.run(prompt, "--sweep", "rank=2,0.5", "--sweep-folder", str(headless.base / "refused"))
    assert refused.status == 2 and "0.5" in refused.err and "run 1" not in refused.err
