"""LoRA files as they lie about: with more in them than layers, gone, no files at all, or not to be mapped."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import pytest
import torch
from harness.calls import loaded, pack_nodes, relative_error, run_node
from harness.kinds import loha, lora
from harness.links import link
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.stack.rows import Row
from lora_loom.nodes.bridge.host.folders import lora_state
from lora_loom.nodes.bridge.host.lora_files import read_lora
from lora_loom.nodes.bridge.host.lora_list import listed, pictured
from lora_loom.nodes.bridge.model.names import NameTable
from lora_loom.nodes.bridge.stack.entries import check_rows, rows_state
from lora_loom.nodes.bridge.training.continue_from import read_start
from lora_loom.nodes.change_format import ChangeFormat
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.health import LoraHealth
from lora_loom.nodes.interference import LoraInterference
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.passport import LoraPassport
from lora_loom.nodes.resize_lora import ResizeLora
from lora_loom.nodes.train_lora import TrainLora
from safetensors.torch import save_file
from torch import Tensor

import nodes

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = Q[:-1] + "k"
STRAYS = {"emb_params": torch.ones(2, 768), "step": torch.tensor(100), "x.diff_m": torch.ones(1, 6, 8)}


def saved(folder: Path, tensors: dict[str, Tensor], name: str = "a.safetensors") -> str:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    folder_paths.filename_list_cache.clear()
    return name


# ---- more than layers ------------------------------------------------------------------------------------------------

RUNS: dict[str, Callable[[Any, str], str]] = {
    "stack": lambda model, name: run_node(LoadLoraStack, model=model, rows=f"<lora:{name}:1>")[3],
    "merge": lambda model, name: run_node(MergeLora, model=model, rank=0, strengths="",
                                          lora_stack=[Row(name, 1.0, 1.0)])[2],
    "convert": lambda model, name: run_node(ConvertLora, model=model, lora=name, rank=0, energy=1.0)[2],
    "resize": lambda model, name: run_node(ResizeLora, model=model, lora_name=name, rank=2, energy=1.0, size_mb=0.0,
                                           strength=1.0, text_strength=1.0)[3],
    "interference": lambda model, name: run_node(LoraInterference, model=model, strengths="",
                                                 lora_stack=[Row(name, 1.0, 1.0)])[1],
    "continue_from": lambda model, name: read_start(name, model, None, True, 0, 0.0).note([]),
}  # fmt: skip


MAKES: dict[type, Callable[[Any], Adapter]] = {
    MergeLora: lambda model: run_node(MergeLora, model=model, rank=0, strengths="",
                                      lora_stack=[Row("a.safetensors", 1.0, 1.0)])[0],
    ConvertLora: lambda model: run_node(ConvertLora, model=model, lora="a.safetensors", rank=0, energy=1.0)[0],
    ResizeLora: lambda model: run_node(ResizeLora, model=model, lora_name="a.safetensors", rank=2, energy=1.0,
                                       size_mb=0.0, strength=1.0, text_strength=1.0)[0],
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_what_is_beside_the_layers_is_named_by_every_node(models, loras: Path, run: str) -> None:
    model = models("sd15").model
    report = RUNS[run](model, saved(loras, lora(Q, (320, 320)) | STRAYS))
    assert "3 tensors besides the layers not used: " in report and "counter ('step')" in report
    assert "embedding for prompts ('emb_params')" in report
    assert "change of a modulation ('x.diff_m')" in report
    assert "layers not used" not in RUNS[run](model, saved(loras, lora(Q, (320, 320)), "b.safetensors"))


FOUR = {key: value for part in ("q", "k", "v", "out_0") for key, value in lora(Q[:-1] + part, (320, 320)).items()}
ELSEWHERE = "lora_unet_somewhere_else"
NOT_THERE = {
    "a layer that the model lacks": (lora(ELSEWHERE, (320, 320)), "1 not applied (not in this model, for example "
                                     f"{ELSEWHERE})", ELSEWHERE),
    "a bias of a layer that has none": ({f"{Q}.lora_B.bias": torch.ones(320)}, "1 not applied (biases that this model "
                                        f"does not have, for example {Q}.bias)", f"{Q}.bias"),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", NOT_THERE)
def test_what_has_no_place_in_the_model_is_named_by_every_node(models, loras: Path, run: str, kind: str) -> None:
    model, (more, words, _) = models("sd15").model, NOT_THERE[kind]
    report = RUNS[run](model, saved(loras, FOUR | more))
    assert ("A has 1 layers that the connected models do not have." if run == "interference" else words) in report
    assert "not applied" not in RUNS[run](model, saved(loras, FOUR, "b.safetensors"))


@pytest.mark.parametrize("kind", NOT_THERE)
@pytest.mark.parametrize("node", [MergeLora, ConvertLora, ResizeLora])
def test_what_is_made_of_the_rest_says_what_it_lacks(models, loras: Path, node: type, kind: str) -> None:
    """And is what is made of the rest alone."""
    model, (more, _, name), made = models("sd15").model, NOT_THERE[kind], []
    for tensors in (FOUR | more, FOUR):
        saved(loras, tensors)
        made.append(MAKES[node](model))
    told = [json.loads(adapter.metadata["lora_loom.merge"]) for adapter in made]
    assert told[0].pop("left_out") == [{"name": "a", "layers": [name]}] and "left_out" not in told[1]
    assert told[0] == told[1] and made[0].layers.keys() == made[1].layers.keys() and not made[0].others
    assert all(torch.equal(layer.lora_B, made[1].layers[key].lora_B) for key, layer in made[0].layers.items())


def test_biases_of_layers_that_have_none_are_no_sign_of_another_model(models, loras: Path) -> None:
    """A file of PEFT has one beside every layer, and three of four layers of attention have none."""
    trio = models("sd15")
    table = NameTable(trio.model)
    names = [name for name in table.targets if re.fullmatch("lora_unet_.*attn[12]_to_[qkv]", name)][:6]
    shapes = {name: tuple(table.shapes[table.targets[name].layer]) for name in names}
    tensors = {key: value for name, shape in shapes.items() for key, value in lora(name, shape).items()}
    tensors |= {f"{name}.lora_B.bias": torch.ones(shape[0]) for name, shape in shapes.items()}
    assert "6 not applied (biases that this model does not have" in RUNS["merge"](trio.model, saved(loras, tensors))


def test_the_rest_does_what_comfyuis_loader_does(models, loras: Path) -> None:
    model = models("sd15").model
    name = saved(loras, lora(Q, (320, 320)) | STRAYS)
    ours = run_node(LoadLoraStack, model=model, rows=f"<lora:{name}:0.7>")[0]
    theirs, _ = nodes.LoraLoader().load_lora(model, None, name, 0.7, 0.0)
    before, by_us, by_core = loaded(model), loaded(ours), loaded(theirs)
    changed = [key for key in before if not torch.equal(before[key], by_core[key])]
    assert len(changed) == 1
    assert all(relative_error(by_us[key], by_core[key]) < 1e-6 for key in before if before[key].is_floating_point())


@pytest.mark.parametrize("make", [lora, loha], ids=["LoRA", "LoHa"])
def test_a_layer_that_its_file_switches_off_changes_nothing_anywhere(models, loras: Path, make) -> None:
    """Beside one that is on, and alone; as ComfyUI's loader has it, and in everything that is made of it."""
    model = models("sd15").model
    off = make(Q, (320, 320)) | {f"{Q}.alpha": torch.tensor(0.0)}
    both = saved(loras, off | lora(K, (320, 320)))
    before, after = loaded(model), loaded(run_node(LoadLoraStack, model=model, rows=f"<lora:{both}:1>")[0])
    assert len([key for key in before if not torch.equal(before[key], after[key])]) == 1
    for run in RUNS:
        if run != "continue_from" or make is lora:
            assert "layers not used" not in RUNS[run](model, both)
    alone = saved(loras, off, "alone.safetensors")
    after = loaded(run_node(LoadLoraStack, model=model, rows=f"<lora:{alone}:1>")[0])
    assert all(torch.equal(after[key], before[key]) for key in before)
    for run in RUNS:
        if run != "continue_from" and (run != "interference" or make is lora):  # which measures plain LoRA
            assert RUNS[run](model, alone)
    if make is lora:
        assert "1 of them switched off in the file" in RUNS["stack"](model, both)
        assert "1 are switched off in the file (alpha 0) and left out" in RUNS["continue_from"](model, both)
        with pytest.raises(ValueError, match="no layers to continue from: 1 are switched off"):
            RUNS["continue_from"](model, alone)


def test_training_goes_on_beside_biases_that_are_not_trained(models, loras: Path) -> None:
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    name = saved(loras, lora(conv, (320, 320, 3, 3)) | {f"{conv}.lora_B.bias": torch.ones(320)})
    note = RUNS["continue_from"](models("sd15").model, name)
    assert "1 biases and norms are left out, such as diffusion_model." in note


# ---- no files --------------------------------------------------------------------------------------------------------


def _sparse(path: Path, rank: int = 2**17) -> None:
    """512 GiB of holes, or as the rank has it, under a header that says they are factors."""
    rows, columns = 2**20, 4
    end, whole = rank * columns * 4, rank * columns * 4 + rank * rows * 4
    header = {
        f"{Q}.lora_down.weight": {"dtype": "F32", "shape": [rank, columns], "data_offsets": [0, end]},
        f"{Q}.lora_up.weight": {"dtype": "F32", "shape": [rows, rank], "data_offsets": [end, whole]},
    }
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + whole)


def _metadata(about: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        raw = f'{{"__metadata__":{about},"{Q}.alpha":{{"dtype":"F32","shape":[],"data_offsets":[0,4]}}}}'.encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))

    return write


def _unreadable(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    path.chmod(0)


POSIX = {
    "link to nothing": lambda path: path.symlink_to("/mnt/unplugged/odd.safetensors"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": lambda path: os.mkfifo(path),
    "not to be read": _unreadable,
    "sparse, 512 GiB": _sparse,
    "sparse, 16 GiB": lambda path: _sparse(path, 2**12),
} if sys.platform != "win32" else {}  # fmt: skip
ODD: dict[str, Callable[[Path], Any]] = POSIX | {
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "numbers of 400 digits": _metadata(f'{{"a":{"9" * 400}}}'),
    "numbers of 5,000 digits": _metadata(f'{{"a":{"9" * 5000}}}'),
    "300 deep": _metadata('{"a":' + "[" * 300 + "]" * 300 + "}"),
    "100,000 deep": _metadata('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "not text": _metadata('{"a":1.5}'),
}
CALLS: dict[str, Callable[[str], Any]] = {
    "stack, validate rows": lambda name: LoadLoraStack.validate_inputs(rows=f"<lora:{name}:1>"),
    "stack, validate rows off": lambda name: LoadLoraStack.validate_inputs(rows=f"<lora:{name}:1:off>"),
    "stack, validate fields": lambda name: LoadLoraStack.validate_inputs(lora_2=name),
    "stack, fingerprint rows": lambda name: LoadLoraStack.fingerprint_inputs(rows=f"<lora:{name}:1>"),
    "stack, fingerprint rows off": lambda name: LoadLoraStack.fingerprint_inputs(rows=f"<lora:{name}:1:off>"),
    "stack, fingerprint fields": lambda name: LoadLoraStack.fingerprint_inputs(lora_3=name),
    "train, validate": lambda name: TrainLora.validate_inputs(continue_from=name),
    "train, fingerprint": lambda name: TrainLora.fingerprint_inputs(continue_from=name),
    "convert, validate": lambda name: ConvertLora.validate_inputs(lora=name),
    "convert, fingerprint": lambda name: ConvertLora.fingerprint_inputs(lora=name),
    "resize, validate": lambda name: ResizeLora.validate_inputs(lora_name=name),
    "resize, fingerprint": lambda name: ResizeLora.fingerprint_inputs(lora_name=name),
    "health, validate": lambda name: LoraHealth.validate_inputs(lora_name=name),
    "health, fingerprint": lambda name: LoraHealth.fingerprint_inputs(lora_name=name),
    "format, validate": lambda name: ChangeFormat.validate_inputs(lora=name),
    "format, fingerprint": lambda name: ChangeFormat.fingerprint_inputs(lora=name),
    "passport, validate": lambda name: LoraPassport.validate_inputs(lora=name),
    "passport, fingerprint": lambda name: LoraPassport.fingerprint_inputs(lora=name),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_lora_is_a_sentence_everywhere(models, loras: Path, kind: str) -> None:
    """Before the graph runs, in the fingerprint twice the same, in the node itself and in the picker; nothing waits."""
    path = loras / "odd.safetensors"
    try:
        ODD[kind](path)
        folder_paths.filename_list_cache.clear()
        for what, call in CALLS.items():
            said = call("odd.safetensors")
            if "validate" not in what:
                assert json.dumps(said) == json.dumps(call("odd.safetensors")), what
            elif "off" in what:
                assert said is True
            else:
                assert isinstance(said, str) and "odd" in said and said.isprintable() and len(said) < 700, what
        assert check_rows([], "<lora:odd:0>") is True and len(rows_state("<lora:odd:0>")) == 1
        for run in RUNS:
            with pytest.raises(ValueError, match="odd"):
                RUNS[run](models("sd15").model, "odd.safetensors")
        assert all(told.get("fault") for told in listed(60.0)["loras"] if told["name"] == "odd.safetensors")
        assert pictured("odd.safetensors") is None
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
        folder_paths.filename_list_cache.clear()


def test_every_node_that_names_a_lora_is_among_them() -> None:
    """A further node with a list of LoRAs must be asked the same."""
    named = {
        node.__name__
        for node in pack_nodes()
        for field in node.GET_SCHEMA().inputs
        if re.fullmatch(r"lora|lora_name|lora_\d|continue_from|rows", field.id)
    }
    assert named == {
        "LoadLoraStack", "TrainLora", "ConvertLora", "ResizeLora", "LoraHealth", "LoraPassport", "ChangeFormat",
    }  # fmt: skip


def test_a_link_is_told_with_where_it_leads(loras: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has places of its own")
    link(loras / "far.safetensors", Path("/mnt/unplugged/far.safetensors"))
    folder_paths.filename_list_cache.clear()
    said = check_rows(["far.safetensors"])
    (loras / "far.safetensors").unlink()
    assert "the LoRA far.safetensors is a link to /mnt/unplugged/far.safetensors, which does not exist" in said
    assert lora_state("far.safetensors") == ("far.safetensors", 0, 0)


@pytest.mark.parametrize("strength", ["9" * 400, "1e999", "nan", "\u0661\u0660\u0660"])
def test_strengths_of_400_digits_are_a_sentence(strength: str) -> None:
    assert "write a number from -20 to 20" in str(LoadLoraStack.validate_inputs(rows=f"<lora:a:{strength}>"))
    with pytest.raises(ValueError, match="write a number from -20 to 20"):
        run_node(LoadLoraStack, model=None, lora_1="a", strength_1=10**400, rows="")
    with pytest.raises(ValueError, match="write a number from -20 to 20"):
        run_node(LoadLoraStack, model=None, rows="", lora_1="a", strength_1=10**5000)


# ---- mapped or not ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize("off", [False, True])
def test_disable_mmap_is_heeded(models, loras: Path, monkeypatch: pytest.MonkeyPatch, off: bool) -> None:
    """As ComfyUI sets it from its command line, in the reader and through the nodes."""
    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", off)
    path = loras / saved(loras, lora(Q, (320, 320)), f"mapped{off}.safetensors")
    adapter = read_lora(path)
    out = run_node(LoadLoraStack, model=models("sd15").model, rows=f"<lora:{path.stem}:1>")
    assert (str(path.resolve()) in Path("/proc/self/maps").read_text()) != off
    assert adapter.layers[Q].lora_A.dtype == torch.float32 and "1 weights changed" in out[3]


def test_an_older_comfyui_without_the_flag_maps(loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(comfy.utils, "DISABLE_MMAP")
    assert read_lora(loras / saved(loras, lora(Q, (320, 320)))).layers
