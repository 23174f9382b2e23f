"""LoRA Report on the demo base: figures of LoRAs whose leakage is known, and pictures that were learned by heart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from demo import shapes
from harness.calls import encode, run_node
from harness.layers import apply_layers
from harness.runs import cancelled, on_forward
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.analysis.leakage import CLASS, CONCEPT, NEUTRAL
from lora_loom.lora_core.data.dataset import combined
from lora_loom.lora_core.families.blocks import parts
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.lineage import CONTENT
from lora_loom.lora_core.stack.weighted import exact_sum
from lora_loom.lora_core.training.bleeding import LEVELS, levels
from lora_loom.lora_core.trust.contract import contract_of
from lora_loom.lora_core.trust.statement import STATEMENT, opened
from lora_loom.nodes.bridge.analysis import bleeding
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.encoding import encode_images
from lora_loom.nodes.bridge.stack.apply_stack import apply_entries
from lora_loom.nodes.bridge.stack.entries import Connected, all_entries
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.report import LoraReport
from lora_loom.nodes.save_lora import SaveLora
from lora_loom.nodes.train_lora import TrainLora

import nodes

QUESTIONS = {
    "trigger": "heart", "prompts": "a red heart on a white background", "class_words": "circle",
    "neutral": "a blue square on a yellow background", "negative": "", "seeds": 2, "seed": 3, "width": 64, "height": 64,
    "steps": 6, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "strength": 1.0, "suggest_strength": False,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def output(comfy_base: Path) -> Iterator[Path]:
    folder = comfy_base / "output" / "lora_loom"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("report") / "heart"
    shapes.write_dataset(folder, "heart", 8, 64, 0)
    return run_node(LoraDataset, folder=str(folder), trigger="heart", resolution=64, repeats=1, bucket_step=16)[0]


def report(trio: Any, adapter: Adapter | None = None, **changes: Any) -> tuple[str, torch.Tensor, dict[str, Any]]:
    inputs = {**QUESTIONS, "adapter": adapter, **changes}
    text, page, figures, _ = run_node(LoraReport, model=trio.model, clip=trio.clip, vae=trio.vae, **inputs)
    return text, page, json.loads(figures)


@pytest.fixture(scope="module")
def trained(models, data) -> Callable[[float], Adapter]:
    """A LoRA by its weight of preservation."""
    trio = models("wan_demo")
    return cache(partial(_trained, trio, data))


def _trained(trio: Any, data: Any, preservation: float) -> Adapter:
    return run_node(
        TrainLora, model=trio.model, clip=trio.clip, vae=trio.vae, dataset=data, steps=50, rank=8, alpha=8.0,
        learning_rate=5e-3, targets="attention", seed=1, batch_size=2, accumulation=1, run_name="report",
        preserve="circle, square, ring", preservation=preservation, quiet="off", gradient_checkpointing=False,
    )[2]  # fmt: skip


def test_a_lora_that_does_nothing(models, random_adapter) -> None:
    trio = models("wan_demo")
    nothing = random_adapter(trio.model).map(lambda layer: replace(layer, lora_B=torch.zeros_like(layer.lora_B)))
    text, page, figures = report(trio, nothing)
    assert {name: row["latent"] for name, row in figures["leakage"].items()} == {CONCEPT: 0, CLASS: 0, NEUTRAL: 0}
    assert {row["latent_ratio"] for row in figures["leakage"].values()} == {0}
    assert "No leakage: neutral prompts are not changed at all." in text and page.shape[0] == 1 and page.shape[3] == 3


def test_a_lora_that_changes_everything_alike(models, random_adapter) -> None:
    trio = models("wan_demo")
    _, _, figures = report(trio, random_adapter(trio.model, size=0.3))
    for group in (CLASS, NEUTRAL):
        row = figures["leakage"][group]
        assert 0.6 < row["latent_ratio"] < 1.6 and row["latent"] > 0.1, group


def test_a_lora_that_drowns_the_weights_is_told(models, random_adapter) -> None:
    trio = models("wan_demo")
    text, *_ = report(trio, random_adapter(trio.model, size=30.0), seeds=1, steps=1)
    assert " is far too loud: its change of diffusion_model." in text and " is 30 times as large" in text


def test_preservation_leaks_less(models, trained) -> None:
    trio = models("wan_demo")
    free, held = (report(trio, trained(weight))[2]["leakage"] for weight in (0.0, 1.0))
    assert held[CONCEPT]["latent"] > 0.2, "it has learned something"
    for group in (CLASS, NEUTRAL):
        assert held[group]["latent_ratio"] < 0.8 * free[group]["latent_ratio"], group


def test_strength_and_seed_are_used(models, random_adapter) -> None:
    trio = models("wan_demo")
    adapter = random_adapter(trio.model, size=0.1)
    figures = [report(trio, adapter, **change)[2]["leakage"] for change in ({}, {"strength": 0.5}, {"seed": 4})]
    assert figures[1][CONCEPT]["latent"] < 0.8 * figures[0][CONCEPT]["latent"]
    assert figures[2][CONCEPT]["latent"] != figures[0][CONCEPT]["latent"]


def test_memorisation_names_the_planted_picture(models, random_adapter, data) -> None:
    """The LoRA's own picture, put into the data set, is found again; the data set alone is no reason for alarm."""
    trio = models("wan_demo")
    adapter = random_adapter(trio.model, size=0.3)
    _, _, figures = report(trio, adapter, dataset=data)
    found = figures["memorisation"]
    assert len(found["training"]) == len(found["pictures"]) == 8 and len(found["samples"]) == len(found["base"]) == 2
    planted = replace(data.examples[0], source="planted.png", pixels=sample_of(trio, adapter))
    text, _, figures = report(trio, adapter, dataset=replace(data, examples=(*data.examples, planted)))
    (near,) = [figures["memorisation"]["samples"][n] for n in figures["memorisation"]["near"]]
    assert figures["memorisation"]["pictures"][near["index"]] == "planted.png" and near["distance"] < 0.01
    assert "near" in text and "planted.png" in text


QUICK = {"seeds": 1, "steps": 1, "suggest_strength": True}


def test_the_strength_to_use_it_at(models, trained, data) -> None:
    """The curve is the LoRA's own, by pictures of the data set; a part of its blocks that does nothing can be left
    out, and the adapter that comes out says at which strength it is used."""
    trio, adapter = models("wan_demo"), trained(0.0)
    text, page, figures, stamped = run_node(
        LoraReport, model=trio.model, clip=trio.clip, vae=trio.vae, adapter=adapter, dataset=data,
        **{**QUESTIONS, **QUICK},
    )  # fmt: skip
    found = json.loads(figures)["strength"]
    assert found["by"] == "pictures" and [p["strength"] for p in found["points"]] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert [found["points"][i][kind] for kind in ("concept", "leak") for i in (0, 4)] == [0, 1, 0, 1]
    leaks = [p["leak"] for p in found["points"]]
    assert leaks == sorted(leaks) and 0.3 < leaks[2] < 0.8 and 0 < found["suggested"]["strength"] <= 1
    header = stamped.metadata
    assert header["modelspec.usage_hint"] == found["hint"] and f"{found['hint']}." in text
    assert float(header["lora_loom.strength"]) == found["suggested"]["strength"]
    assert {part["part"]: part["leak"] < 1 for part in found["parts"]} and page.shape[2] > 512


def test_concepts_are_compared_where_the_data_set_has_several(models, trained, data, tmp_path: Path) -> None:
    """By the textbook's loss of this flow model, under every caption."""
    trio, hearts = models("wan_demo"), trained(0.0)
    shapes.write_dataset(tmp_path / "arrow", "arrow", 4, 64, 0)
    other = run_node(
        LoraDataset, folder=str(tmp_path / "arrow"), trigger="arrow", resolution=64, repeats=1, bucket_step=16
    )[0]
    both, entries = combined([data, other]), all_entries(trio.model, trio.clip, (), [Connected(hearts, 1.0, 1.0)])
    changed = apply_entries(trio.model, trio.clip, entries)[:2]
    found = bleeding.bleeding((trio.model, trio.clip), changed, trio.vae, both, "")
    assert found.triggers == ("heart", "arrow") and found.pictures == 8 and not found.held_out
    first = both.examples[0]
    latent = encode_images(trio.vae, trio.model, replace(both, examples=(first,)), lambda *_: None)[0][None]
    own = [_textbook(model, encode(trio.clip, first.captions[0]), latent) for model in (trio.model, changed[0])]
    alone = replace(both, examples=(first, other.examples[0]))
    (gain, *_), _ = bleeding.bleeding((trio.model, trio.clip), changed, trio.vae, alone, "").gains
    assert gain == pytest.approx(own[0] - own[1], rel=1e-3) and gain > 0
    text, _, figures = report(trio, hearts, dataset=both, **QUICK)
    assert set(figures["bleeding"]["shares"]["heart"]) == {"heart", "arrow", "no trigger"}
    assert "| pictures of | with heart | with arrow | with no trigger |" in text
    assert bleeding.bleeding((trio.model, trio.clip), changed, trio.vae, data, "") is None, "one concept"


def _answer(network: Any, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return network.apply_model(x_t, t, c_crossattn=text).cpu()


@torch.inference_mode()
def _textbook(model: Any, text: Any, latent: torch.Tensor) -> float:
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    network, total = model.model, 0.0
    for at, u in enumerate(levels(ComfyDenoiser(model))):
        t = ComfyDenoiser(model).sigma(torch.tensor([u])).to(latent)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(at))
        level = t.view(-1, *(1 for _ in latent.shape[1:]))
        x_t = (1 - level) * latent + level * noise
        given = (each.to(model.load_device) for each in (x_t, t, text[0][0]))
        velocity = (x_t - _answer(network, *given)) / level
        total += float((velocity - (noise - latent)).square().mean()) / LEVELS
    return total


def test_a_cancel_is_heard_while_strengths_are_measured(models, random_adapter, data) -> None:
    trio = models("wan_demo")
    drawn = 2 * 3  # forwards of a step of each prompt, without and with the LoRA
    with cancelled(trio, drawn + 10), on_forward(trio) as forwards:
        report(trio, random_adapter(trio.model), dataset=data, **{**QUICK, "cfg": 1.0})
    assert len(forwards) < drawn + 14


def test_without_pictures_a_change_is_told_and_no_strength_suggested(models, random_adapter) -> None:
    trio = models("wan_demo")
    adapter = random_adapter(trio.model, size=0.1)
    first = next(iter(parts(adapter.layers)))
    still = set(parts(adapter.layers)[first])
    layers = {n: replace(layer, alpha=1e-9) if n in still else layer for n, layer in adapter.layers.items()}
    text, _, figures = report(trio, replace(adapter, layers=layers), **QUICK)
    found = figures["strength"]
    assert found["by"] == "change" and found["suggested"] is None and "connect them as dataset" in text
    (silent,) = [part for part in found["parts"] if part["part"] == first]
    assert silent["concept"] == pytest.approx(1, abs=1e-3) and silent["leak"] == pytest.approx(1, abs=1e-3)
    assert all(part["leak"] < 0.99 for part in found["parts"] if part["part"] != first)


def sample_of(trio: Any, adapter: Adapter) -> torch.Tensor:
    """The first sample with the trigger, by KSampler."""
    entries = all_entries(trio.model, trio.clip, (), [Connected(adapter, 1.0, 1.0)])
    model, _ = apply_layers(trio.model, trio.clip, exact_sum(entries))
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(64, 64)
        (samples,) = nodes.common_ksampler(
            model, 3, 6, 2.0, "euler", "simple", encode(trio.clip, QUESTIONS["prompts"]), encode(trio.clip, ""), latent
        )
        return nodes.VAEDecode().decode(trio.vae, samples)[0][0].half()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trigger": ""}, "the trigger word is unknown"),
        ({"adapter": None}, "connect an adapter or a lora_stack"),
        ({"width": 68}, "not a multiple"),
    ],
)
def test_refusals(models, random_adapter, changes: dict, words: str) -> None:
    trio = models("wan_demo")
    with pytest.raises(ValueError, match=words):
        report(trio, **{"adapter": random_adapter(trio.model), **changes})


def test_defaults_of_an_empty_form(models, random_adapter) -> None:
    """Prompts are made of the trigger in the LoRA's file."""
    trio = models("wan_demo")
    adapter = replace(random_adapter(trio.model), metadata={"modelspec.trigger_phrase": "sks"})
    empty = {"trigger": "", "prompts": "", "class_words": "", "neutral": "", "seeds": 1, "steps": 1}
    _, _, figures = report(trio, adapter, **empty)
    assert {name: row["pictures"] for name, row in figures["leakage"].items()} == {CONCEPT: 2, CLASS: 2, NEUTRAL: 3}


def test_what_it_measured_is_in_the_file_and_signed(models, random_adapter, loras: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    trio = models("wan_demo")
    inputs = {**QUESTIONS, "adapter": random_adapter(trio.model), "seeds": 1, "steps": 1, "strength": 0.7}
    *_, figures, tested = run_node(LoraReport, model=trio.model, clip=trio.clip, vae=trio.vae, **inputs)
    name, _ = run_node(
        SaveLora, adapter=tested, model=trio.model, name="tested", format="comfyui", dtype="fp16", sign=True
    )
    header = guard.inspect(loras / name).metadata
    said, rows = contract_of(header).tested, json.loads(figures)["leakage"]
    assert said.leakage == {group: round(rows[group]["latent_ratio"], 4) for group in (CLASS, NEUTRAL)}
    assert (said.seed, said.seeds, said.strength, said.samples) == (3, 1, 0.7, None)
    signed = opened(header[STATEMENT]).predicate["contract"]["tested"]
    assert signed["leakage"] == said.leakage and signed["content"] == header[CONTENT]
