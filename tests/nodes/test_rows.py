"""Rows as text on Load LoRA Stack: the same as the fixed fields, and what other nodes get of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from harness.calls import loaded, refusals, run_node
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.files.save import save
from lora_loom.nodes.load_stack import LoadLoraStack
from PIL import Image
from safetensors.torch import load_file, save_file

import nodes

LAYER = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def model(models) -> Any:
    return models("wan_demo").model


@pytest.fixture
def two(loras: Path, model: Any) -> Path:
    """`styles/ink` and `oil`, one layer each, with triggers."""
    height, width = model.get_model_object(LAYER).weight.shape
    for seed, (name, words) in enumerate({"styles/ink": "sks, ink wash", "oil": "SKS, oil paint"}.items()):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{LAYER}.lora_down.weight": torch.randn(2, width, generator=generator),
            f"{LAYER}.lora_up.weight": torch.randn(height, 2, generator=generator),
        }
        (loras / name).parent.mkdir(exist_ok=True)
        save(loras / f"{name}.safetensors", tensors, {"modelspec.trigger_phrase": words})
    return loras


def change(model: Any, **inputs: Any) -> torch.Tensor:
    patched = run_node(LoadLoraStack, model=model, **inputs)[0]
    return loaded(patched)[f"{LAYER}.weight"] - loaded(model)[f"{LAYER}.weight"]


def test_text_is_the_same_as_fields(model: Any, two: Path) -> None:
    text = "a cat <lora:ink:0.8:0.5>\n# <lora:no:1>\n<lora:oil:-0.4>\n<lora:nowhere:1:off>"
    fields = {"lora_1": "styles/ink.safetensors", "strength_1": 0.8, "lora_2": "oil.safetensors", "strength_2": -0.4}
    by_text, by_fields = change(model, rows=text), change(model, **fields)
    assert torch.equal(by_text, by_fields) and by_text.norm() > 0.1
    _, _, rows, report, triggers = run_node(LoadLoraStack, model=model, rows=text)
    assert rows == [(str(Path("styles/ink.safetensors")), 0.8, 0.5), ("oil.safetensors", -0.4, -0.4)]
    assert [line.split(":")[0] for line in report.splitlines()[:2]] == ["ink", "oil"]
    assert triggers == "sks, ink wash, oil paint"


def test_a_row_may_name_its_own_trigger_words(model: Any, two: Path) -> None:
    """They take the place of those in the file's header, also behind the next stack; where there are none the row gives
    none."""
    text = "<lora:ink:1:words=ink wash,lines%2C fine>\n<lora:oil>"
    _, _, rows, _, triggers = run_node(LoadLoraStack, model=model, rows=text)
    assert triggers == "ink wash, lines, fine, SKS, oil paint"
    assert run_node(LoadLoraStack, model=model, lora_stack=rows, rows="<lora:oil:0.5:words=>")[4] == triggers
    assert run_node(LoadLoraStack, model=model, rows="<lora:ink:1:words=>")[4] == ""


def test_order_is_stack_then_fields_then_text(model: Any, two: Path) -> None:
    before = [{"lora": "oil", "strength": 0.1}, ("None", 1, 1)]
    _, _, rows, report, _ = run_node(
        LoadLoraStack, model=model, lora_stack=before, lora_3="oil.safetensors", rows="<lora:ink>"
    )
    assert rows == [
        ("oil.safetensors", 0.1, 0.1),
        ("oil.safetensors", 1, 1),
        (str(Path("styles/ink.safetensors")), 1, 1),
    ]
    assert "lora_stack entry 2 is ignored: it has no file name" in report.splitlines()


def test_a_full_path_is_that_of_a_file_below_a_loras_folder(model: Any, two: Path) -> None:
    """As Efficiency's stackers may write them; elsewhere there is nothing to load."""
    ink = str(two / "styles" / "ink.safetensors")
    assert [row.name for row in run_node(LoadLoraStack, model=model, lora_stack=[(ink, 1.0, 1.0)])[2]] == [
        str(Path("styles/ink.safetensors"))
    ]
    with pytest.raises(ValueError, match="not in any loras folder"):
        run_node(LoadLoraStack, model=model, lora_stack=[(str(two.parent / "oil.safetensors"), 1.0, 1.0)])


def test_at_strength_0_nothing_is_said_of_it(model: Any, two: Path) -> None:
    _, _, rows, report, triggers = run_node(LoadLoraStack, model=model, rows="<lora:ink:0>\n<lora:gone:0>")
    assert (report, triggers) == ("no LoRA is switched on", "") and [row.name for row in rows] == ["ink", "gone"]


def queued(text: str) -> dict[str, Any]:
    """A graph with an output at its end, so that all before it is validated."""
    model = {"model": ["1", 0]}
    merge = {"rank": 0, "strengths": "", "lora_stack": ["2", 2]}
    save = {"adapter": ["3", 0], "name": "x", "format": "comfyui", "dtype": "fp16"}
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "LoraLoom_LoadLoraStack", "inputs": {**model, "rows": text}},
        "3": {"class_type": "LoraLoom_MergeLora", "inputs": {**model, **merge}},
        "4": {"class_type": "LoraLoom_SaveLora", "inputs": {**model, **save}},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ok\n<lora:ink:x>", "line 2, <lora:ink:x>: a strength is 'x'"),
        ("<lora:nik>", "the LoRA nik is not in any loras folder; similar names: styles/ink.safetensors"),
        ("<lora:twice>", "the LoRA name twice fits 2 files"),
        ("<lora:broken>", "broken.safetensors"),
    ],
)
def test_faults_are_told_when_the_graph_is_queued(two: Path, text: str, words: str) -> None:
    for folder in ("a", "b"):
        (two / folder).mkdir()
        (two / folder / "twice.safetensors").touch()
    (two / "broken.safetensors").write_bytes(b"<html>")
    graph = queued(text)
    assert words in refusals(graph).replace("\\", "/")
    for part in (":off>", ":0>"):
        graph["2"]["inputs"]["rows"] = text.replace(">", part) if "x" not in text else "<lora:ink>"
        assert refusals(graph) == ""


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e30])
def test_a_strength_by_link_is_a_number_in_its_bounds(model: Any, two: Path, strength: float) -> None:
    """ComfyUI compares what a graph holds with the bounds, which NaN passes, and does not look at links."""
    for key in ("strength_1", "text_strength_1"):
        with pytest.raises(ValueError, match=r"strength of oil.safetensors is .*; write a number from -20 to 20"):
            run_node(LoadLoraStack, model=model, lora_1="oil.safetensors", **{key: strength})


def test_a_changed_file_runs_again(two: Path) -> None:
    state = LoadLoraStack.fingerprint_inputs(rows="<lora:ink>")
    assert state == LoadLoraStack.fingerprint_inputs(rows="<lora:ink>")
    file = two / "styles" / "ink.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    assert state != LoadLoraStack.fingerprint_inputs(rows="<lora:ink>")


def test_adapters_are_listed_on_the_model(model: Any, two: Path) -> None:
    """Through clones, ComfyUI's own loader and a second stack; each with the hash of its file's data."""
    first = run_node(LoadLoraStack, model=model, rows="<lora:ink:0.5>")[0]
    core = nodes.LoraLoader().load_lora(first.clone(), None, "oil.safetensors", 1.0, 1.0)[0]
    second = run_node(LoadLoraStack, model=core, rows="<lora:oil:2:1>\n<lora:ink:0>")[0]
    found = second.get_attachment("lora_loom_adapters")
    assert [(each["name"], each["strength"], each["text_strength"]) for each in found] == [
        ("styles/ink.safetensors", 0.5, 0.5),
        ("oil.safetensors", 2.0, 1.0),
    ]
    assert [each["sha256"] for each in found] == [
        data_hash(two / "styles" / "ink.safetensors"),
        data_hash(two / "oil.safetensors"),
    ]
    assert len(first.get_attachment("lora_loom_adapters")) == 1 and model.get_attachment("lora_loom_adapters") is None


def test_a_stack_that_comes_with_its_model_is_told(model: Any, two: Path) -> None:
    """It is easy to connect both, and applies every LoRA twice."""
    first, _, rows, _, _ = run_node(LoadLoraStack, model=model, rows="<lora:ink:0.5>\n<lora:oil:0>")
    reports = [
        run_node(LoadLoraStack, model=below, rows="<lora:ink:0.5>", lora_stack=before)[3]
        for below, before in ((first, rows), (first, None), (model, rows))
    ]
    assert ["connect either MODEL or lora_stack, not both" in report for report in reports] == [True, False, False]
    assert "applied twice: styles/ink.safetensors. The connected MODEL already" in reports[0]


@pytest.mark.parametrize("stated", ["", "abc", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"])
def test_a_hash_that_says_nothing_is_read_from_the_file(model: Any, two: Path, stated: str) -> None:
    tensors = load_file(two / "oil.safetensors")
    save_file(tensors, two / "oil.safetensors", {"sshs_model_hash": stated})
    (found,) = run_node(LoadLoraStack, model=model, rows="<lora:oil>")[0].get_attachment("lora_loom_adapters")
    assert found["sha256"] == data_hash(two / "oil.safetensors")


@pytest.mark.parametrize(("row", "masks", "told"), [
    ("mask=2", [1], "a row has mask=2, but mask2 is not connected (mask1 is); connect it"),
    ("mask=-1", [], "a row has mask=1, but mask1 is not connected (no mask is)"),
    ("mask=1", [1], ""), ("mask=3:off", [], ""),
])  # fmt: skip
def test_a_row_without_its_mask_is_told_when_the_graph_is_queued(
    two: Path, row: str, masks: list[int], told: str
) -> None:
    picture = Path(folder_paths.get_input_directory(), "mask.png")
    Image.new("RGB", (8, 8)).save(picture)
    graph = queued(f"<lora:ink:1:{row}>")
    graph["2"]["inputs"] |= {f"masks.mask{number}": ["9", 0] for number in masks}
    graph["9"] = {"class_type": "LoadImageMask", "inputs": {"image": picture.name, "channel": "red"}}
    reasons = refusals(graph)
    picture.unlink()
    assert told in reasons if told else reasons == ""
