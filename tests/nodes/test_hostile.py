"""Hostile files through the nodes that read LoRAs: a sentence, and never ComfyUI's own parser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import comfy.sd
import comfy.utils
import pytest
import torch
from harness.calls import refusals, run_node
from harness.hostile import mutants
from lora_loom.lora_core.files.faults import UnsafeFileError
from lora_loom.nodes.interference import LoraInterference
from lora_loom.nodes.leave_one_out import LeaveOneOut
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora

CORPUS = list(mutants(1))
ROWS = [("mutant.safetensors", 1.0, 1.0)]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every call of ComfyUI's readers of weight files, by whatever name; they go on to work."""
    calls: list[str] = []
    for name in ("load_torch_file", "load_safetensors"):
        original = getattr(comfy.utils, name)

        def noted(*args, _original=original, _name=name, **named):
            calls.append(_name)
            return _original(*args, **named)

        for module in [each for each in list(sys.modules.values()) if getattr(each, name, None) is original]:
            monkeypatch.setattr(module, name, noted)
    monkeypatch.setattr(torch, "load", lambda *_, **__: calls.append("torch.load"))
    yield calls


def test_the_fixture_sees_comfyuis_own_loader(models, loras: Path, make_lora, parsed: list[str]) -> None:
    import nodes

    make_lora("flux1", loras / "sound.safetensors")
    parsed.clear()
    nodes.LoraLoader().load_lora(models("flux1").model, None, "sound.safetensors", 1.0, 0.0)
    assert parsed


def test_no_mutant_reaches_comfyuis_parser(models, loras: Path, parsed: list[str]) -> None:
    """Refused before the graph runs, and by the node itself when the file is replaced in between."""
    model = models("flux1").model
    path = loras / "mutant.safetensors"
    for what, raw, _ in CORPUS:
        path.write_bytes(raw)
        said = LoadLoraStack.validate_inputs(lora_1="mutant.safetensors")
        assert said is True or (isinstance(said, str) and said.startswith("'mutant.safetensors'")), what
        with pytest.raises(UnsafeFileError):
            run_node(LoadLoraStack, model=model, lora_1="mutant.safetensors")
    assert parsed == [] and len(CORPUS) >= 200


@pytest.mark.parametrize("node", [MergeLora, LoraInterference, LeaveOneOut], ids=lambda node: node.__name__)
def test_other_nodes_read_through_the_same_guard(models, loras: Path, parsed: list[str], node: type) -> None:
    trio = models("flux1")
    fields = {field.id: getattr(field, "default", None) for field in node.GET_SCHEMA().inputs if not field.optional}
    fields |= {"model": trio.model, "lora_stack": ROWS} | ({"vae": trio.vae} if "vae" in fields else {})
    for what, raw, _ in CORPUS[:: len(CORPUS) // 20]:
        (loras / "mutant.safetensors").write_bytes(raw)
        with pytest.raises(UnsafeFileError):
            run_node(node, **fields)
        assert parsed == [], what


def test_sound_files_do_not_need_it_either(models, loras: Path, make_lora, parsed: list[str]) -> None:
    model = models("flux1").model
    make_lora("flux1", loras / "sound.safetensors")
    parsed.clear()  # saving proves a file with ComfyUI's loader, on purpose
    run_node(LoadLoraStack, model=model, lora_1="sound.safetensors")
    run_node(LoraInterference, model=model, strengths="", lora_stack=[("sound.safetensors", 1.0, 1.0)])
    assert parsed == []


def test_a_graph_with_a_hostile_file_is_not_queued(models, loras: Path) -> None:
    (loras / "mutant.safetensors").write_bytes(next(raw for what, raw, _ in CORPUS if what.startswith("overlap")))
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "LoraLoom_LoadLoraStack", "inputs": {"model": ["1", 0], "lora_1": "mutant.safetensors"}},
        "3": {
            "class_type": "LoraLoom_Interference",
            "inputs": {"model": ["1", 0], "strengths": "", "lora_stack": ["2", 2]},
        },
    }
    assert "mutant.safetensors" in refusals(graph)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no resource module")
def test_claims_of_gigabytes_take_no_memory(models, loras: Path) -> None:
    import resource

    model, unit = models("flux1").model, 1 if sys.platform == "darwin" else 1024
    path = loras / "mutant.safetensors"
    claims = [
        raw
        for what, raw, _ in CORPUS
        if what.startswith(("zero-size", "huge", "size too", "giant", "offset", "nothing"))
    ]
    path.write_bytes(claims[0])
    with pytest.raises(UnsafeFileError):  # what is imported or made once
        run_node(LoadLoraStack, model=model, lora_1="mutant.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for raw in claims:
        path.write_bytes(raw)
        with pytest.raises(UnsafeFileError):
            run_node(LoadLoraStack, model=model, lora_1="mutant.safetensors")
    assert len(claims) > 15 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 64 * 2**20
