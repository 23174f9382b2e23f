"""Checks what Lora-Manager's table of extractors is given, by a module that is built like its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from comfy_api.latest import io
from lora_loom.lora_core.stack.rows import Row
from lora_loom.nodes.bridge.host import lora_manager
from lora_loom.nodes.load_stack import LoadLoraStack

PATH = "/somewhere/custom_nodes/ComfyUI-Lora-Manager.py.metadata_collector.node_extractors"
GRAPH = {
    "1": {"class_type": "LoraLoom_LoadLoraStack", "inputs": {}},
    "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0]}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


@pytest.fixture
def pack() -> Iterator[ModuleType]:
    """A module of that name with a table and the category of LoRAs."""
    module = sys.modules[PATH] = ModuleType(PATH)
    module.NODE_EXTRACTORS, module.LORAS = {"LoraLoader": object}, "loras"
    yield module
    del sys.modules[PATH]


def told(rows: list[Row], graph: dict[str, Any]) -> dict[str, Any]:
    """Return what that pack would note, called as it calls its table: before the node runs and with what the node
    gave."""
    extractor = sys.modules[PATH].NODE_EXTRACTORS[LoadLoraStack.__name__]
    metadata = {"loras": {}, "models": {}, "current_prompt": SimpleNamespace(original_prompt=graph)}
    extractor.extract("1", {"rows": "<lora:ink>"}, None, metadata)
    extractor.update("1", [io.NodeOutput(None, None, rows, "report", "triggers")], metadata)
    return metadata["loras"]


def test_files_and_strengths_of_what_was_applied(pack: ModuleType) -> None:
    assert lora_manager.introduce({"prompt": {}}) == {"prompt": {}}
    rows = [Row("art\\ink.v2.safetensors", 0.1 + 0.2, 1), Row("oil.safetensors", 0, 0), Row("x/y.safetensors", -1, 1)]
    found = [{"name": "ink.v2", "strength": 0.3}, {"name": "y", "strength": -1.0}]
    assert told(rows, GRAPH) == {"1": {"lora_list": found, "node_id": "1"}}
    assert set(pack.NODE_EXTRACTORS) == {"LoraLoader", "LoadLoraStack"}


def test_nothing_of_a_stack_that_is_only_handed_on(pack: ModuleType) -> None:
    """The loader that takes it tells it."""
    lora_manager.introduce({})
    handed = {**GRAPH, "2": {"class_type": "KSampler", "inputs": {"lora_stack": ["1", 2]}}}
    rows = [Row("ink.safetensors", 1, 1)]
    assert told(rows, handed) == {} and told(rows, GRAPH) and told([], GRAPH) == {}


@pytest.mark.parametrize("outputs", [None, [], [None], [("model", [("ink", 1, 1)])], [io.NodeOutput()]])
def test_other_nodes_of_that_class_name_are_passed_over(pack: ModuleType, outputs: Any) -> None:
    lora_manager.introduce({})
    metadata: dict[str, Any] = {}
    pack.NODE_EXTRACTORS["LoadLoraStack"].update("1", outputs, metadata)
    assert metadata == {}


def test_another_entry_stays(pack: ModuleType) -> None:
    pack.NODE_EXTRACTORS["LoadLoraStack"] = object
    lora_manager.introduce({})
    assert pack.NODE_EXTRACTORS["LoadLoraStack"] is object


@pytest.mark.parametrize("change", [{"NODE_EXTRACTORS": ()}, {"LORAS": "adapters"}, {"NODE_EXTRACTORS": None}])
def test_a_pack_built_in_another_way_is_left_alone(
    pack: ModuleType, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    vars(pack).update(change)
    before = dict(vars(pack))
    lora_manager._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "lora_loom"):
        for _ in range(3):
            lora_manager.introduce({})
    assert vars(pack) == before and pack.NODE_EXTRACTORS == before["NODE_EXTRACTORS"]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "this version of Lora-Manager stores metadata differently"
    ]


def test_without_that_pack_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    lora_manager._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "lora_loom"):
        assert lora_manager.introduce({"prompt": 1}) == {"prompt": 1}
    assert not caplog.records
