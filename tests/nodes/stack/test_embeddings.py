"""Embeddings that come with a LoRA: prompts know them after Load LoRA Stack, and files keep them, in and out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from harness.calls import encode, run_node
from harness.kinds import lora
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.stack.rows import Row
from lora_loom.nodes.change_format import ChangeFormat
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.resize_lora import ResizeLora
from lora_loom.nodes.save_lora import SaveLora
from safetensors.torch import load_file, save_file

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
INK = torch.randn(2, 768, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def embeddings(comfy_base: Path, loras: Path):
    """The first embeddings folder, emptied afterwards, and beside it a LoRA with the embedding ink."""
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    save_file({**lora(Q, (320, 320)), "bundle_emb.ink.clip_l": INK}, loras / "a.safetensors")
    folder_paths.filename_list_cache.clear()
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()
    folder_paths.filename_list_cache.clear()


def stacked(model: Any, clip: Any) -> tuple[Any, str]:
    out = run_node(LoadLoraStack, model=model, clip=clip, rows="<lora:a.safetensors:1>")
    return out[1], out[3]


def with_folder(clip: Any, folder: Path) -> Any:
    """The CLIP as ComfyUI's loaders make it, with the embeddings folder in its tokenizer."""
    made = clip.clone()
    made.tokenizer = copy.copy(clip.tokenizer)
    made.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    made.tokenizer.clip_l.embedding_directory = [str(folder)]
    return made


def test_a_prompt_knows_it_as_comfyui_knows_one_of_its_folder(models, embeddings: Path, loras: Path) -> None:
    loaded = models("sd15")
    before = with_folder(loaded.clip, embeddings)
    clip, report = stacked(loaded.model, before)
    assert "a: comes with embeddings for prompts; to use them, write embedding:ink" in report
    found = encode(clip, "a photo of embedding:ink on paper")[0][0]
    plain = encode(before, "a photo of embedding:ink on paper")[0][0]
    save_file({"clip_l": INK}, embeddings / "drawn.safetensors")
    wanted = encode(before, "a photo of embedding:drawn on paper")[0][0]
    assert torch.equal(found, wanted) and not torch.equal(plain, wanted)
    assert "connect CLIP, and write embedding:ink" in stacked(loaded.model, None)[1]


def test_one_of_the_same_name_stays_what_it_is(models, embeddings: Path) -> None:
    """That of the folder keeps its name; the LoRA's has its own before it."""
    loaded = models("sd15")
    save_file({"clip_l": -INK}, embeddings / "ink.safetensors")
    folder_paths.filename_list_cache.clear()
    before = with_folder(loaded.clip, embeddings)
    clip, report = stacked(loaded.model, before)
    assert "write embedding:a.ink" in report
    own, bundled = (encode(clip, f"a embedding:{word}")[0][0] for word in ("ink", "a.ink"))
    assert torch.equal(own, encode(before, "a embedding:ink")[0][0]) and not torch.equal(own, bundled)


MAKES = {
    "merge": lambda model: run_node(MergeLora, model=model, rank=0, strengths="", lora_stack=[Row("a", 1.0, 1.0)])[0],
    "convert": lambda model: run_node(ConvertLora, model=model, lora="a.safetensors", rank=0, energy=1.0)[0],
    "resize": lambda model: run_node(ResizeLora, model=model, lora_name="a.safetensors", rank=2, energy=1.0,
                                     size_mb=0.0, strength=1.0, text_strength=1.0)[0],
}  # fmt: skip


@pytest.mark.parametrize("make", MAKES)
def test_what_is_made_of_the_file_keeps_it(models, embeddings: Path, loras: Path, make: str) -> None:
    model = models("sd15").model
    adapter = MAKES[make](model)
    name, report = run_node(SaveLora, adapter=adapter, model=model, name="b", format="kohya", dtype="fp32")
    assert "with the embedding ink for prompts" in report and "0 unmatched" in report
    assert torch.equal(load_file(loras / name)["bundle_emb.ink.clip_l"], INK)


def test_save_lora_takes_more_from_the_folder(models, embeddings: Path, loras: Path, random_adapter) -> None:
    model = models("sd15").model
    save_file({"clip_l": INK[:1]}, embeddings / "sks.safetensors")
    torch.save({"string_to_param": {"*": INK}, "name": "old"}, embeddings / "old.pt")
    folder_paths.filename_list_cache.clear()
    given = {"adapter": random_adapter(model), "model": model, "name": "c", "format": "comfyui", "dtype": "fp16"}
    name, report = run_node(SaveLora, **given, embeddings="sks, embedding:old")
    held = load_file(loras / name)
    assert torch.equal(held["bundle_emb.sks.clip_l"], INK[:1])
    assert torch.equal(held["bundle_emb.old.string_to_param.*"], INK)
    assert "with the embeddings sks, old for prompts" in report
    with pytest.raises(ValueError, match="the embedding sk is not in any embeddings folder; similar names: sks"):
        run_node(SaveLora, **given, embeddings="sk")


@pytest.mark.parametrize("choice", ["keep", "save apart", "leave out"])
def test_change_format_keeps_it_or_saves_it_apart(embeddings: Path, loras: Path, choice: str) -> None:
    name, report = run_node(ChangeFormat, lora="a.safetensors", format="comfyui", name="d", embeddings=choice)
    assert set(formats.read(loras / name).embeddings) == ({"ink"} if choice == "keep" else set())
    apart = embeddings / "ink.safetensors"
    assert apart.exists() == (choice == "save apart")
    if apart.exists():
        assert torch.equal(load_file(apart)["clip_l"], INK)
        assert "ink.safetensors is in the embeddings folder; write embedding:ink in a prompt" in report
