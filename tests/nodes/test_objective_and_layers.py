"""Training Objective and LoRA Layers, through Train LoRA and ComfyUI's loader."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import tiny
import torch
from comfy_extras import nodes_preview_any
from harness.calls import encode, refusals, relative_error, run_node, sampled
from harness.runs import cancelled, kept, read
from harness.runs import train as run
from lora_loom.lora_core.data.dataset import combined
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.plan import Measures
from lora_loom.nodes.bridge.session.memory_plan import Planner
from lora_loom.nodes.bridge.session.rehearsal import Job
from lora_loom.nodes.layers import LoraLayers
from lora_loom.nodes.objective import TrainingObjective
from lora_loom.nodes.save_lora import SaveLora
from PIL import Image

import nodes

OBJECTIVE, LAYERS = (
    {field.id: field.default for field in node.GET_SCHEMA().inputs} for node in (TrainingObjective, LoraLayers)
)
pytestmark = pytest.mark.usefixtures("runs")
train = partial(run, rank=4, alpha=4.0, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_pictures: Callable[[Path], Path]) -> Any:
    """Pictures of the concept, two of them with a mask beside it, and a set of class images."""
    folders = [write_pictures(tmp_path_factory.mktemp(name) / "pictures") for name in ("concept", "class")]
    for index in (0, 1):
        with Image.open(folders[0] / f"{index}.png") as picture:
            mask = Image.new("L", picture.size)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        mask.save(folders[0] / f"{index}-mask.png")
    sets = [
        read(folder, "sks", **more)
        for folder, more in zip(folders, ({"masks": "auto"}, {"class_images": True}), strict=True)
    ]
    return combined(sets)


def objective(**changes: Any) -> ObjectiveConfig:
    return run_node(TrainingObjective, **{**OBJECTIVE, **changes})[0]


def layers(**changes: Any) -> LayersConfig:
    return run_node(LoraLayers, **{**LAYERS, **changes})[0]


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_as_they_come_they_change_nothing(models, data, runs: Path, family: str) -> None:
    train(models(family), data)
    without = kept(runs)
    shutil.rmtree(runs)
    train(models(family), data, objective=objective(), layers=layers())
    assert kept(runs) == without and without


def test_the_objective_replaces_what_train_lora_says(models, data, runs: Path) -> None:
    said = {"timesteps": "shifted", "shift": 2.0, "weighting": "min_snr"}
    train(models("flux1"), data, **said)
    by_train_lora = kept(runs)
    train(models("flux1"), data, objective=objective(**said), weighting="debiased", timesteps="uniform")
    assert kept(runs) == by_train_lora


COMBINATIONS = {
    "sd15": (
        "attn2",
        {"loss": "huber", "weighting": "min_snr", "noise_offset": 0.05, "unmasked": 0.1, "prior_weight": 0.5},
        {"lora_plus_ratio": 4.0, "rank_dropout": 0.2, "layer_dropout": 0.1, "max_norm": 0.01},
    ),
    "flux1": (
        "*qkv*",
        {"loss": "smooth_l1", "weighting": "cosmap", "timesteps": "resolution_shifted", "logit_std": 0.7},
        {"scaling": "alpha / sqrt(rank)", "rank_dropout": 0.3, "max_norm": 0.01},
    ),
}


@pytest.mark.parametrize("family", COMBINATIONS)
def test_a_combination_survives_a_cancel_and_loads_as_it_was_trained(models, data, runs, loras, family) -> None:
    """With text encoders where the family has any to train, and class words besides class images."""
    trio, (part, loss, size) = models(family), COMBINATIONS[family]
    rule = f"{part} = rank 2, alpha 3, rate 0.5"
    inputs = {
        "objective": objective(**loss), "layers": layers(**size, per_layer=rule), "preserve": "dog",
        "preservation": 0.5, "text_rank": 2 if family == "sd15" else 0,
    }  # fmt: skip
    _, losses, adapter, *_ = train(trio, data, **inputs)
    files = kept(runs)
    assert all(map(math.isfinite, losses["loss"]))
    ruled = [layer for name, layer in adapter.layers.items() if part.strip("*") in name]
    assert ruled and {layer.rank for layer in ruled} == {2}
    assert all(layer.norm() <= 0.01 * (1 + 1e-5) for layer in adapter.layers.values())
    assert max(layer.norm() for layer in adapter.layers.values()) > 0.0099
    assert adapter.metadata["ss_loss_type"] == loss["loss"] and adapter.metadata["ss_scale_weight_norms"] == "0.01"
    inputs_of_save = {"name": "x", "format": "comfyui", "dtype": "fp32"}
    report = run_node(SaveLora, adapter=adapter, model=trio.model, clip=trio.clip, **inputs_of_save)[1]
    assert "0 unmatched" in report
    shutil.rmtree(runs)
    with cancelled(trio, 6):
        train(trio, data, **inputs)
    train(trio, data, **inputs)
    again = kept(runs)
    assert {name: again[name] for name in files} == files


@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
def test_rslora_is_in_the_file_for_every_reader(models, data, loras: Path, style: str) -> None:
    """ComfyUI's loader applies alpha / rank; the picture is that of alpha / sqrt(rank) * B A added to the weights."""
    trio = models("sd15")
    adapter = train(trio, data, layers=layers(scaling="alpha / sqrt(rank)")).adapter
    assert {layer.scaling for layer in adapter.layers.values()} == {2.0}, "4 / sqrt(4)"
    name, _ = run_node(SaveLora, adapter=adapter, model=trio.model, name="rs", format=style, dtype="fp32")
    file, _ = comfy.sd.load_lora_for_models(
        trio.model, None, comfy.utils.load_torch_file(str(loras / name), safe_load=True), 1.0, 0.0
    )
    live = trio.model.clone()
    for layer, item in adapter.layers.items():
        delta = 4.0 / math.sqrt(4) * item.lora_B @ item.lora_A
        live.add_patches({f"{layer}.weight": ("diff", (delta.reshape(item.shape),))})
    start = torch.zeros(tiny.latent_shape(trio.model))
    words = encode(trio.clip, "sks")
    applied, wanted, base = (sampled(model, words, start) for model in (file, live, trio.model))
    assert relative_error(applied, wanted) < 1e-4 < 0.01 * relative_error(base, wanted)


@pytest.mark.parametrize(
    ("family", "inputs", "message"),
    [
        ("flux1", {"objective": {"noise_offset": 0.05}}, "noise_offset is 0.05 but this is a flow model"),
        (
            "sd15",
            {"objective": {"weighting": "cosmap"}},
            "weighting cosmap works only with flow models, and this is not one",
        ),
        ("sd15", {"layers": {"per_layer": "attn3 = rank 2"}}, r"per_layer: 'attn3 = rank 2' matches none of the \d+ "),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_encoded(models, data, family, inputs, message):
    made = {name: {"objective": objective, "layers": layers}[name](**choice) for name, choice in inputs.items()}
    hook = models(family).vae.first_stage_model.register_forward_pre_hook(lambda *_: pytest.fail("it was encoded"))
    with pytest.raises(ValueError, match=message):
        train(models(family), data, **made)
    hook.remove()


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        ("Objective", {"huber_c": 0.0}, "huber_c is 0.0; it must be between 0.0001 and 10000"),
        ("Objective", {"timesteps": "sigmoid"}, "choose one of auto, uniform"),
        ("Layers", {"rank_dropout": 1.0}, "rank_dropout is 1.0; it must be between 0 and 0.9"),
        (
            "Layers",
            {"per_layer": "attn2: rank 8"},
            "per_layer cannot read the line 'attn2: rank 8'; write it like this: ",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_the_graph_is_queued(node: str, changes: dict[str, Any], message: str) -> None:
    widgets = {"Objective": OBJECTIVE, "Layers": LAYERS}[node]
    graph = {
        "node": {"class_type": f"LoraLoom_{node}", "inputs": {**widgets, **changes}},
        "out": {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}},
    }
    nodes.NODE_CLASS_MAPPINGS["PreviewAny"] = nodes_preview_any.PreviewAny
    assert message in refusals(graph)


def test_the_planner_counts_the_ranks_of_single_layers(models) -> None:
    trio = models("sd15")
    conditioning, latent = encode(trio.clip, "sks"), tuple(tiny.latent_shape(trio.model)[1:])
    trained = {}
    for name, options in (("plain", layers()), ("larger", layers(per_layer="attn2 = rank 8"))):
        job = Job(LoraConfig(4, 4.0, options=options), TrainConfig(), latent, conditioning, 64)
        trained[name] = Planner(trio.model).trace(job, Measures()).trained
    assert trained["larger"] > trained["plain"]
