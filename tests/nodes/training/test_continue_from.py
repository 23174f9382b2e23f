"""Training goes on from a LoRA file: at its first step it is that file, and nothing of it is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness import runs as runs_of
from harness.calls import encode, relative_error, run_node
from harness.runs import cancelled, kept
from harness.session import training_session
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.nodes.bridge.merging.save import STYLES, save_proven
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import chosen_layers
from lora_loom.nodes.bridge.training.continue_from import read_start
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.train_lora import TrainLora
from safetensors.torch import save_file
from torch import Tensor

TRIGGER = "number"
pytestmark = pytest.mark.usefixtures("runs")
SETTINGS = {"steps": 3, "rank": 0, "alpha": 0.0, "targets": "auto", "continue_from": "first.safetensors"}
TINY_STEP = {"steps": 1, "learning_rate": 1e-9}


def train(trio: tiny.Loaded, data: Any, **changes: Any) -> Adapter:
    return runs_of.train(trio, data, **{**SETTINGS, **changes}).adapter


def losses_of(trio: tiny.Loaded, data: Any, **changes: Any) -> list[float]:
    return runs_of.train(trio, data, **{**SETTINGS, **TINY_STEP, **changes}).loss_map["loss"]


def predicted(patcher: Any, conditioning: list) -> Tensor:
    """Return the residual (output minus target) of the network in an open session, for one noisy picture."""
    draw = torch.Generator().manual_seed(3)
    denoiser = ComfyDenoiser(patcher)
    shape, device = tiny.latent_shape(patcher, 1, tall=2), denoiser.device
    x0, noise = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
    conditions = [denoiser.condition(conditioning, x0[0])]
    with torch.no_grad():
        return objective.residual(denoiser, x0, noise, denoiser.sigma(torch.tensor([0.4])).to(device), conditions)


def changes(adapter: Adapter, before: Adapter) -> dict[str, float]:
    assert adapter.layers.keys() == before.layers.keys()
    layers = before.layers.items()
    return {name: relative_error(adapter.layers[name].delta_weight(), layer.delta_weight()) for name, layer in layers}


@pytest.mark.parametrize(
    ("family", "style", "preset"),
    [
        ("sd15", "comfyui", "linear+conv"), ("sd15", "kohya", "linear+conv"), ("sd15", "diffusers", "linear+conv"),
        ("flux1", "comfyui", "attention"), ("flux1", "kohya", "attention"), ("flux1", "diffusers", "attention"),
    ],
)  # fmt: skip
def test_the_first_forward_is_the_live_stack(models, loras: Path, make_lora, family: str, style: str, preset: str):
    trio, file = models(family), loras / "first.safetensors"
    made = make_lora(family, file, style, rank=3, alpha=2.0, preset=preset, size=0.2)
    row = dict(lora_1=file.name, strength_1=1.0, text_strength_1=1.0)
    live, conditioning = run_node(LoadLoraStack, model=trio.model, **row)[0], encode(trio.clip, "a red heart")
    with torch.inference_mode():
        with training_session(trio.model, False) as patcher:
            bare = predicted(patcher, conditioning)
        with training_session(live, False) as patcher:
            wanted = predicted(patcher, conditioning)
        with training_session(trio.model, False) as patcher:
            start = read_start(file.name, trio.model, trio.clip, True, 8, 0.0)
            layers, kept = chosen_layers(patcher.model.diffusion_model, None, LoraConfig(8, 8.0), start)
            assert layers.keys() == made.layers.keys() and not kept
            factors = Factors(layers, 8, 8.0, torch.Generator(), start=start)
            with attached(factors.branches):
                found = predicted(patcher, conditioning)
    assert relative_error(found - bare, wanted - bare) < 1e-4 and relative_error(found, wanted) < 1e-6
    scalings = {round(layer.scaling, 6) for layer in factors.low_ranks().values()}
    assert scalings == ({1.0} if style == "diffusers" else {round(2 / 3, 6)})  # PEFT files have it in B
    assert max(layer.rank for layer in factors.low_ranks().values()) == 8
    assert max(changes(Adapter(factors.low_ranks()), made).values()) < 1e-5


def test_slices_of_a_fused_weight_keep_their_scaling(models, loras: Path) -> None:
    """q, k and v of a file that was trained apart, with their own A."""
    trio, draw, names = models("flux1"), torch.Generator().manual_seed(0), ("q", "k", "v")
    wide = trio.model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.shape[1]
    tensors = {}
    for name in names:
        key = f"transformer.transformer_blocks.0.attn.to_{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(2, wide, generator=draw)
        tensors[f"{key}.lora_B.weight"] = torch.randn(wide, 2, generator=draw)
        tensors[f"{key}.alpha"] = torch.tensor(3.0)
    save_file(tensors, loras / "first.safetensors")
    start = read_start("first.safetensors", trio.model, trio.clip, True, 0, 0.0)
    ((_, layer),) = start.layers.items()
    assert layer.rank == 6 and layer.scaling == 1.5
    parts = [tensors[f"transformer.transformer_blocks.0.attn.to_{name}.lora_B.weight"] for name in names]
    downs = [tensors[f"transformer.transformer_blocks.0.attn.to_{name}.lora_A.weight"] for name in names]
    wanted = torch.cat([1.5 * b @ a for b, a in zip(parts, downs, strict=True)])
    assert relative_error(layer.delta_weight(), wanted) < 1e-6


def test_a_run_keeps_ranks_and_alphas_and_tells_its_parent(models, loras: Path, data, runs: Path, make_lora) -> None:
    trio, file = models("sd15"), loras / "first.safetensors"
    made = make_lora("sd15", file, "kohya", rank=3, alpha=2.0, preset="attention+mlp")
    assert max(changes(train(trio, data, **TINY_STEP), made).values()) < 1e-5
    trained = train(trio, data)
    assert {(layer.rank, layer.alpha) for layer in trained.layers.values()} == {(3, 2.0)}
    assert min(changes(trained, made).values()) > 1e-3
    told = json.loads(trained.metadata["lora_loom.continued_from"])
    assert told == {"name": "first", "sha256": formats.read(file).metadata["sshs_model_hash"], "strength": 1.0}
    (settings,) = {json.loads(path.read_text())["settings"]["continue_from"]["file"] for path in runs.rglob("run.json")}
    assert settings == "first"


def test_chosen_targets_train_these_and_carry_the_rest(models, loras: Path, data, make_lora) -> None:
    """With targets typed in, layers beside them act in every forward and come out as they went in."""
    trio = models("sd15")
    made = make_lora("sd15", loras / "first.safetensors", rank=3, preset="attention+mlp")
    trained = train(trio, data, targets="attention", rank=2, include="time_embed*", exclude="*attn2*")
    outside = {name for name in made.layers if ".ff." in name or "attn2" in name}
    assert outside and {name for name in trained.layers if "time_embed" in name}
    for name, layer in made.layers.items():
        same = torch.equal(trained.layers[name].lora_B, layer.lora_B)
        assert same == (name in outside), name
        assert trained.layers[name].rank == 3, "a smaller rank cuts nothing"
    assert {layer.rank for name, layer in trained.layers.items() if "time_embed" in name} == {2}


@pytest.mark.parametrize("text_rank", [0, 6])
def test_text_layers_are_carried_or_trained(models, loras: Path, data, make_lora, add_text, text_rank: int) -> None:
    trio = models("sd15")
    made = add_text(make_lora("sd15", loras / "first.safetensors"), trio.clip)
    save_proven(made, loras / "first.safetensors", STYLES["kohya"], torch.float32, trio.model, trio.clip)
    text = {name for name in made.layers if name.startswith(TEXT_PREFIX)}
    start = train(trio, data, **TINY_STEP, text_rank=text_rank, text_learning_rate=1e-9)
    assert max(changes(start, made).values()) < 1e-5
    trained = train(trio, data, text_rank=text_rank)
    assert {trained.layers[name].rank for name in text} == {max(4, text_rank)}
    changed = {name for name, change in changes(trained, made).items() if name in text and change > 1e-6}
    assert len(changed) > len(text) / 2 if text_rank else not changed


def test_carried_text_layers_speak_in_training(models, loras: Path, data, make_lora, add_text) -> None:
    """The first loss is that of the captions as the file's text encoder reads them."""
    trio = models("sd15")
    made = add_text(make_lora("sd15", loras / "first.safetensors"), trio.clip)
    save_proven(made, loras / "first.safetensors", "native", torch.float32, trio.model, trio.clip)
    row = dict(lora_1="first.safetensors", strength_1=0.0, text_strength_1=1.0)
    clip = run_node(LoadLoraStack, model=trio.model, clip=trio.clip, **row)[1]
    unet = {name: layer for name, layer in made.layers.items() if not name.startswith(TEXT_PREFIX)}
    save_proven(Adapter(unet), loras / "unet.safetensors", "native", torch.float32, trio.model)
    runs = ((trio.clip, "first.safetensors"), (clip, "unet.safetensors"), (trio.clip, "unet.safetensors"))
    losses = [
        losses_of(trio, data, clip=clip, continue_from=file, run_name=f"run{number}")
        for number, (clip, file) in enumerate(runs)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[0][0] - losses[2][0]) > 1e-4 * losses[0][0]


def test_cut_off_it_goes_on_to_the_same_bytes_and_another_file_is_another_run(models, loras, data, runs, make_lora):
    trio, extra = models("flux1"), {"steps": 2, "caption_dropout": 0.5, "targets": "attention", "rank": 5}
    make_lora("flux1", loras / "first.safetensors", preset="attention+mlp")
    train(trio, data, **extra)
    whole = kept(runs)
    shutil.rmtree(runs)

    with cancelled(trio, 2):
        train(trio, data, **extra)
    train(trio, data, **extra)
    assert {name: kept(runs)[name] for name in whole} == whole
    make_lora("flux1", loras / "first.safetensors", preset="attention+mlp", seed=1)
    train(trio, data, **extra)
    assert len(list(runs.iterdir())) == 2


def test_another_familys_file_is_refused_with_a_sentence(models, loras: Path, data, make_lora) -> None:
    make_lora("flux1", loras / "first.safetensors")
    with pytest.raises(ValueError, match=r"first.safetensors is a LoRA for FLUX.1 dev.*use a LoRA made for SD 1.5"):
        train(models("sd15"), data)
    (loras / "first.safetensors").write_bytes(b"no safetensors")
    assert "first.safetensors" in TrainLora.validate_inputs(continue_from="first.safetensors")
    assert "gone.safetensors" in TrainLora.validate_inputs(continue_from="gone.safetensors")


def test_the_node_is_run_again_when_the_file_changes(loras: Path, make_lora) -> None:
    make_lora("flux1", loras / "first.safetensors")
    before = TrainLora.fingerprint_inputs(continue_from="first.safetensors")
    make_lora("flux1", loras / "first.safetensors", rank=8)
    assert TrainLora.fingerprint_inputs(continue_from="first.safetensors") != before
