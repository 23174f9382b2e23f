from __future__ import annotations

import pytest
from lora_loom.console.ranks import Rank, split_nodes, this


def test_alone_without_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert this() == Rank() and list(Rank().flags(["--cpu"])) == [] and Rank().name == ""


def test_a_rank_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert this() == Rank(rank=3, size=4, local=1, beside=2) and not this().first


@pytest.mark.parametrize(
    ("shown", "device"), [("", ["--cuda-device", "1"]), ("4,7", ["--cuda-device", "7"]), ("GPU-1", [])]
)
def test_each_rank_has_a_device_of_its_own(shown: str, device: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """That of its number among those that it is shown; a launcher that shows it one has chosen."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    rank = Rank(rank=1, size=2, local=1, beside=2)
    assert list(rank.flags([])) == ["--cache-classic", *device, "--verbose", "ERROR"]
    assert list(rank.flags(["--cpu", "--cache-lru=5", "--verbose"])) == []


def test_fewer_devices_than_ranks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match="3 ranks on this machine, and 2 devices"):
        list(Rank(rank=2, size=3, local=2, beside=3).flags([]))


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


PROMPT = {
    "9": node("LoraLoom_MergeLora", a=["5", 2], b=["7", 2]),
    "5": node("LoraLoom_TrainLora", model=["1", 0], steps=3),
    "7": node("LoraLoom_TrainLora", model=["8", 0]),
    "8": node("LoraLoom_LoadLoraStack", model=["1", 0], adapter=["5", 2]),
    "1": node("UNETLoader"),
    "4": node("LoraLoom_ExtractLora", model=["1", 0]),
    "2": node("LoraLoom_SaveLora", adapter=["9", 0]),
}


def test_nodes_that_split_their_work_come_after_those_that_they_need() -> None:
    found = split_nodes(PROMPT, ["2", "5"])
    assert found == ["5", "7", "9"], "and none that no output needs"
    assert split_nodes(PROMPT, ["4"]) == ["4"]


def test_a_file_that_every_rank_would_write_is_said() -> None:
    prompt = {**PROMPT, "8": node("LoraLoom_LoadLoraStack", model=["1", 0], rows=["2", 0]), "9": node("X", a=["5", 2])}
    with pytest.raises(ValueError, match="Save LoRA .node 2. writes"):
        split_nodes(prompt, ["7"])


def test_a_circle_is_said() -> None:
    with pytest.raises(ValueError):
        split_nodes({"1": node("A", a=["2", 0]), "2": node("B", a=["1", 0])}, ["1"])
