"""LoRA Interference and LoRA Leave-One-Out in a real ComfyUI, on tiny models of the real families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import pytest
import torch
from harness.calls import encode, loaded, run_node
from harness.layers import apply_layers
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.analysis.interference import measure
from lora_loom.lora_core.stack.rows import Row
from lora_loom.nodes.bridge.model.base_figures import Base
from lora_loom.nodes.bridge.stack.entries import all_entries
from lora_loom.nodes.interference import LoraInterference
from lora_loom.nodes.leave_one_out import LeaveOneOut
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from PIL import Image
from tiny import FAMILIES
from tiny.packed import load_packed
from tiny.stored import dequantised, load_stored

import nodes

HEADS = {  # of the tiny networks, as their configurations say, by the end of an attention's name
    "sd15_full": {"attn2": 8}, "sd35_medium": {"joint_blocks.0.attn": 2, "x_block.attn2": 2},
    "flux1": {"double_blocks.0.attn": 1}, "qwen_image": {"attn": 1}, "lumina2": {"layers.0.attention": 3},
    "anima": {"self_attn": 2}, "cascade_c": {"attention.attn": 2}, "wan21": {"cross_attn": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _not_interrupted() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


def run(model: Any, adapters: list[Adapter], strengths: str = "", **inputs: Any) -> tuple[Any, ...]:
    named = {f"adapter{number}": adapter for number, adapter in enumerate(adapters)}
    return run_node(LoraInterference, model=model, strengths=strengths, adapters=named, **inputs)


def merge(model: Any, adapters: list[Adapter], strengths: str) -> Adapter:
    named = {f"adapter{number}": adapter for number, adapter in enumerate(adapters)}
    return run_node(MergeLora, model=model, rank=0, strengths=strengths, adapters=named)[0]


@pytest.mark.parametrize("family", HEADS)
def test_every_attention_has_its_heads_and_unrelated_loras_no_finding(models, random_adapter, family: str) -> None:
    model = models(family).model
    picture, report, _, rows, figures = run(model, [random_adapter(model, seed=seed) for seed in (1, 2)])
    assert "No interference beyond chance: A and B" in report and "show a risk" in report
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and rows == []
    heads = json.loads(figures)["heads"]
    assert {head["kind"] for head in heads} == {"Q-K", "O-V"} and all(head["share_of_base"] > 0 for head in heads)
    for end, count in HEADS[family].items():
        mine = [head for head in heads if head["attention"].endswith(end) and head["kind"] == "Q-K"]
        assert mine and max(head["head"] for head in mine) == count - 1, end


def test_norms_and_products_of_the_base(models, random_adapter) -> None:
    model = models("sd15_full").model
    weights, base = loaded(model), Base(model)
    layers = list(random_adapter(model).layers)
    for name, (norm, top) in base.norms(layers[:6]).items():
        weight = weights[f"{name}.weight"].double().flatten(1)
        assert norm == pytest.approx(float(weight.norm()), rel=1e-5)
        assert top == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=0.03)
    found = base.attention(layers)
    home = next(home for home in found.heads if home.endswith("attn2"))
    q, k, v, o = (weights[f"{home}.to_{end}.weight"].double() for end in ("q", "k", "v", "out.0"))
    for head, (logits, values) in enumerate(zip(found.base[home, "Q-K"], found.base[home, "O-V"], strict=True)):
        rows = slice(head * len(q) // 8, (head + 1) * len(q) // 8)
        assert logits == pytest.approx(float((q[rows].T @ k[rows]).norm()), rel=1e-5)
        assert values == pytest.approx(float((o[:, rows] @ v[rows]).norm()), rel=1e-5)


@pytest.mark.parametrize(
    "form", ["bf16", "fp8_e4m3fn", "scaled_fp8", "float8_e4m3fn", "mxfp8", "nvfp4", "int8_convrot"]
)
def test_weights_of_every_form_are_measured_dense(tmp_path: Path, form: str) -> None:
    model = load_stored("flux1", tmp_path, form)
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    weight = dequantised("flux1", model).model.diffusion_model.state_dict()["double_blocks.0.img_attn.qkv.weight"]
    ((norm, _),) = Base(model).norms([name]).values()
    assert norm == pytest.approx(float(weight.double().norm()), rel=1e-3)


def test_a_loader_of_a_third_party(models, random_adapter) -> None:
    """Its tensors cannot be read; the rest is measured and the report says so."""
    model = load_packed(FAMILIES["flux1"], models("flux1").model.model.diffusion_model)
    adapter = random_adapter(models("flux1").model)
    _, report, *_ = run(model, [adapter, adapter])
    assert "make the same change" in report and "that only their loader can read" in report


def test_patches_are_not_the_base(models, random_adapter) -> None:
    """The model's weights are those before LoRAs, also while a patched clone is loaded."""
    model = models("flux1").model
    adapter = random_adapter(model, size=3.0)
    before = Base(model).dense("diffusion_model.double_blocks.0.img_attn.qkv").clone()
    clone, _ = apply_layers(model, None, adapter.layers)
    loaded(clone)
    assert torch.equal(Base(clone).dense("diffusion_model.double_blocks.0.img_attn.qkv"), before)
    loaded(model)


def test_rows_and_strengths(models, loras: Path, make_lora) -> None:
    """Suggested rows are as loud as the loudest member; a few-step LoRA is left alone and not counted."""
    model = models("flux1").model
    for seed, (name, size) in enumerate({"ink": 0.1, "dog": 0.07, "some_lightning": 0.5}.items()):
        make_lora("flux1", loras / f"{name}.safetensors", seed=seed, size=size)
    rows = [Row("ink.safetensors", 1.0, 0.5), Row("dog.safetensors", -0.9, 1.0)]
    rows.append(Row("some_lightning.safetensors", 1.0, 1.0))
    _, report, strengths, suggested, figures = run(model, [], lora_stack=rows)
    assert (
        json.loads(figures)["suggested_factor"] == pytest.approx(suggested[0][1], rel=1e-3) and "never on" not in report
    )
    assert "The strength of C is not changed: by its name it is made for few sampling steps (lightning)." in report
    before, after = (measure(all_entries(model, None, stack[:2], [])).total for stack in (rows, suggested))
    assert after.loudness() == pytest.approx(max(before.norms()), rel=1e-3) and before.loudness() > after.loudness()
    assert suggested[2] == rows[2] and suggested[0][1] == pytest.approx(2 * suggested[0][2], rel=1e-3)
    assert strengths == ", ".join(f"{row.strength:.4g}" for row in suggested)


def test_loras_that_are_never_on_together(models, loras: Path, make_lora) -> None:
    make_lora("flux1", loras / "ink.safetensors")
    spans = [(0.0, 0.5), (0.5, 1.0), (0.4, 0.6)]
    rows = [Row("ink.safetensors", 1.0, 1.0, "", *span) for span in spans]
    report = run(models("flux1").model, [], lora_stack=rows)[1]
    assert [line for line in report.splitlines() if "never on" in line] == [
        "A and B are never on at the same time, so their overlap does not matter."
    ]


def test_strengths_go_into_merge_lora(models, random_adapter) -> None:
    model = models("flux1").model
    adapters = [random_adapter(model, seed=seed, size=0.1) for seed in (1, 2)]
    _, _, strengths, _, _ = run(model, adapters, "1, 0.8")
    merged = merge(model, adapters, strengths)
    assert merged.norm() == pytest.approx(max(adapters[0].norm(), 0.8 * adapters[1].norm()), rel=1e-3)


def test_text_encoders(models, random_adapter, add_text) -> None:
    """Two LoRAs with the same text layers and unrelated others."""
    trio = models("sd15_full")
    one, other = (add_text(random_adapter(trio.model, seed=seed), trio.clip) for seed in (1, 2))
    _, report, _, _, figures = run(trio.model, [one, other], clip=trio.clip)
    found = json.loads(figures)
    blocks = {name: block["cosine"] for name, block in found["pairs"]["AB"].items()}
    assert [name for name, cosine in blocks.items() if cosine > 0.99] == ["TEXT"]
    assert any(TEXT_PREFIX in head["attention"] for head in found["heads"]) and "pull the same way" in report
    with pytest.raises(ValueError, match="connect an adapter or a lora_stack"):
        run(trio.model, [])


@pytest.mark.parametrize(("inputs", "words"), [
    ({"adapters": []}, "connect an adapter or a lora_stack"), ({"strengths": "1, 2, 3"}, "3 strengths for 2"),
])  # fmt: skip
def test_refusals(models, random_adapter, inputs: dict, words: str) -> None:
    model = models("flux1").model
    given = {"adapters": [random_adapter(model, seed=seed) for seed in (1, 2)], **inputs}
    with pytest.raises(ValueError, match=words):
        run(model, **given)
    assert "write numbers" in LoraInterference.validate_inputs(strengths="1, x")


def test_a_run_that_diverged_is_named(models, random_adapter) -> None:
    model = models("flux1").model
    fine = random_adapter(model)
    diverged = fine.map(lambda layer: replace(layer, lora_B=layer.lora_B * float("nan")))
    with pytest.raises(ValueError, match="holds NaN or infinite values in diffusion_model"):
        run(model, [fine, diverged])


def test_cancel(models, random_adapter) -> None:
    model = models("flux1").model
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, [random_adapter(model)])


# -- the stack's own lines ---------------------------------------------------------------------------------------------


def stack(model: Any, text: str) -> list[str]:
    return run_node(LoadLoraStack, model=model, rows=text)[3].splitlines()


def test_the_stack_says_who_is_alike_and_how_loud(models, loras: Path, make_lora) -> None:
    model = models("flux1").model
    for name, seed in (("ink", 1), ("dog", 2), ("ink2", 1)):
        make_lora("flux1", loras / f"{name}.safetensors", seed=seed)
    lines = stack(model, "<lora:ink:1> <lora:dog:1> <lora:ink2:0.5>")
    assert any("times as strong as the strongest one" in line for line in lines)
    assert any("most in A (ink) and C (ink2), cosine +1" in line for line in lines)
    assert not any("as strong" in line for line in stack(model, "<lora:ink:1>"))
    taking_turns = "<lora:ink:1:end=0.5> <lora:dog:1:start=0.5>"
    assert not any("as strong" in line for line in stack(model, taking_turns)), "they are never on at the same time"


def test_a_lora_that_drowns_the_weight_is_named(models, loras: Path, make_lora) -> None:
    model = models("flux1").model
    make_lora("flux1", loras / "loud.safetensors", size=30.0)
    make_lora("flux1", loras / "bold.safetensors", size=5.0)
    (line,) = [line for line in stack(model, "<lora:loud:1> <lora:bold:1>") if "as the weight" in line]
    assert line.startswith("loud is far too loud: its change of diffusion_model.")
    assert " is 30 times as large" in line and "strength near 0.03" in line
    assert not any("as the weight" in line for line in stack(model, "<lora:loud:0.2>"))
    assert any(" is 60 times as large" in line for line in stack(model, "<lora:loud:-2>"))


# -- pictures ----------------------------------------------------------------------------------------------------------

DRAWN = {
    "prompts": "a red heart", "negative": "", "seeds": 1, "seed": 3, "width": 64, "height": 64, "steps": 1, "cfg": 2.0,
    "sampler_name": "euler", "scheduler": "simple", "strengths": "",
}  # fmt: skip


def draw(trio: Any, adapters: list[Adapter], **changes: Any) -> tuple[torch.Tensor, str, dict[str, Any]]:
    named = {f"adapter{number}": adapter for number, adapter in enumerate(adapters)}
    inputs = {**DRAWN, "clip": trio.clip, "adapters": named, **changes}
    page, report, figures = run_node(LeaveOneOut, model=trio.model, vae=trio.vae, **inputs)
    return page, report, json.loads(figures)


def test_leaving_out_what_does_nothing_and_what_does_all(models, random_adapter) -> None:
    trio = models("wan_demo")
    loud = random_adapter(trio.model, seed=1, size=0.3)
    nothing = loud.map(lambda layer: replace(layer, lora_B=torch.zeros_like(layer.lora_B)))
    page, report, figures = draw(
        trio, [loud, nothing], seeds=2, prompts="a red heart\na blue square", cfg=1.0, width=32, height=32
    )
    changes = {name: change["latent"] for name, change in figures["changes"].items()}
    assert changes.keys() == {"without A", "without B", "none"} and figures["pictures"] == 4
    assert changes["without B"] == 0 and changes["without A"] == changes["none"] > 0.1
    assert "most without adapter 1 and least without adapter 2." in report and page.shape[2] > 4 * 64


def test_twins_are_not_told_apart(models, random_adapter) -> None:
    trio = models("wan_demo")
    twin = random_adapter(trio.model, seed=1, size=0.3)
    report = draw(trio, [twin, twin], seeds=1, prompts="a red heart", cfg=1.0, width=32, height=32)[1]
    assert report.startswith("All LoRAs matter equally: ")


def test_the_first_picture_is_that_of_the_stack(models, random_adapter) -> None:
    trio = models("wan_demo")
    adapters = [random_adapter(trio.model, seed=seed, size=0.2) for seed in (1, 2)]
    page, _, _ = draw(trio, adapters, strengths="1, -0.5")
    model, _ = apply_layers(trio.model, None, merge(trio.model, adapters, "1, -0.5").layers)
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(64, 64)
        positive, negative = (encode(trio.clip, text) for text in ("a red heart", ""))
        (samples,) = nodes.common_ksampler(model, 3, 1, 2.0, "euler", "simple", positive, negative, latent)
        wanted = nodes.VAEDecode().decode(trio.vae, samples)[0].reshape(-1, 64, 64, 3)[0]
    picture = Image.fromarray((wanted.clamp(0, 1) * 255).round().byte().numpy()).resize((256, 256))
    tile, whole = np.asarray(picture) / 255.0, page[0].numpy()
    apart = [np.abs(whole[top : top + 256, 8:264] - tile).mean() for top in range(whole.shape[0] - 255)]
    assert min(apart) < 0.01


def test_conditioning_takes_the_place_of_prompts(models, random_adapter) -> None:
    trio = models("wan_demo")
    adapters = [random_adapter(trio.model, seed=1, size=0.2)]
    by_prompt = draw(trio, adapters)[2]
    given = {"positive": encode(trio.clip, "a red heart"), "negative_conditioning": encode(trio.clip, "")}
    assert draw(trio, adapters, clip=None, prompts="", **given)[2]["changes"] == by_prompt["changes"]
    assert draw(trio, adapters, prompts="a blue square")[2]["changes"] != by_prompt["changes"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"prompts": ""}, "there is no prompt"), ({"clip": None}, "connect clip"), ({"width": 68}, "not a multiple"),
])  # fmt: skip
def test_what_cannot_be_drawn(models, random_adapter, changes: dict, words: str) -> None:
    trio = models("wan_demo")
    with pytest.raises(ValueError, match=words):
        draw(trio, [random_adapter(trio.model)], **changes)


def test_cancel_between_pictures(models, random_adapter) -> None:
    trio = models("wan_demo")
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        draw(trio, [random_adapter(trio.model)])
