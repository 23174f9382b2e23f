"""DoRA: what is trained is what ComfyUI, diffusers and our own stack make of the file, and a run is as exact as any."""

from __future__ import annotations

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
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.tasks import add_gradient
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.model.weights import ComfyWeightReader, weight_of
from lora_loom.nodes.layers import LoraLayers
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora
from tiny.packed import load_packed
from tiny.stored import dequantised, load_stored
from tiny.twin import TWINS
from torch import Tensor

import nodes

LAYERS = {"scaling": "alpha / rank", "lora_plus_ratio": 1.0, "rank_dropout": 0.0, "layer_dropout": 0.0, "max_norm": 0.0,
          "per_layer": "", "dora": True}  # fmt: skip
TRIGGER = "number"
pytestmark = pytest.mark.usefixtures("runs")
SETTINGS = {"steps": 3, "alpha": 3.0, "learning_rate": 1e-2}


def train(trio: tiny.Loaded, data: Any, **changes: Any) -> Adapter:
    options = run_node(LoraLayers, **{**LAYERS, **changes.pop("options", {})})[0]
    return runs_of.train(trio, data, layers=options, **{**SETTINGS, **changes}).adapter


def problem(patcher: Any, conditioning: list) -> Tensor:
    return objective.residual(*step(patcher, conditioning))


def step(patcher: Any, conditioning: list) -> tuple[Any, ...]:
    """Denoiser, clean and noise latents, noise levels and conditions of one step."""
    draw = torch.Generator().manual_seed(3)
    denoiser = ComfyDenoiser(patcher)
    shape, device = tiny.latent_shape(patcher, 1, tall=2), denoiser.device
    x0, noise = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
    conditions = [denoiser.condition(conditioning, x0[0])]
    return denoiser, x0, noise, denoiser.sigma(torch.tensor([0.4])).to(device), conditions


def made(patcher: Any, preset: str) -> Factors:
    """DoRA on every layer, far from doing nothing."""
    draw = torch.Generator().manual_seed(1)
    layers = select(patcher.model.diffusion_model, LoraConfig(3, 2.0, preset), PREFIX)
    factors = Factors(layers, 3, 2.0, draw, options=LayersConfig(dora=True), frozen=ComfyWeightReader())
    with torch.no_grad():
        for branch in factors.branches.values():
            branch.lora_B.copy_(torch.randn(branch.lora_B.shape, generator=draw) * 0.05)
            value = branch.magnitude.value
            value.mul_(1 + 0.2 * torch.randn(value.shape, generator=draw).to(value.device))
    return factors


@pytest.mark.parametrize(("family", "preset"), [("sd15", "linear+conv"), ("flux1", "attention+mlp")])
def test_every_format_is_the_trained_forward(models, loras: Path, family: str, preset: str) -> None:
    trio = models(family)
    conditioning = encode(trio.clip, "a red heart")
    with torch.inference_mode(), training_session(trio.model, False) as patcher, torch.no_grad():
        factors = made(patcher, preset)
        bare, adapter = problem(patcher, conditioning), factors.adapter()
        with attached(factors.branches):
            wanted = problem(patcher, conditioning)
    assert relative_error(bare, wanted) > 0.02
    for style, dtype in (("comfyui", "fp32"), ("kohya", "fp32"), ("diffusers", "fp32"), ("kohya", "fp16")):
        inputs = {"adapter": adapter, "model": trio.model, "name": style + dtype, "format": style, "dtype": dtype}
        name, report = run_node(SaveLora, **inputs)
        assert ("ComfyUI's loader" in report) == (style != "diffusers"), report
        off = {"lora_1": name, "strength_1": 1.0, "text_strength_1": 1.0}
        live, *_, told, _ = run_node(LoadLoraStack, model=trio.model, **off)
        assert "DoRA" in told and "not applied" not in told
        shown = [live]
        if style != "diffusers":
            shown += nodes.LoraLoaderModelOnly().load_lora_model_only(trio.model, name, 1.0)
        for model in shown:
            with torch.inference_mode(), training_session(model, False) as patcher, torch.no_grad():
                error = relative_error(problem(patcher, conditioning), wanted)
            assert error < (1e-5 if dtype == "fp32" else 1e-3), (style, dtype)


@pytest.mark.parametrize("family", ["sd15_full", "flux1"])
def test_diffusers_reads_our_file(models, loras: Path, random_adapter, caplog, family: str) -> None:
    model = models(family).model
    with torch.inference_mode(), training_session(model, False) as patcher, torch.no_grad():
        adapter = made(patcher, "linear+conv").adapter()
    name = run_node(SaveLora, adapter=adapter, model=model, name="dora", format="diffusers", dtype="fp32")[0]
    twin = TWINS[family](model)
    plain = twin()
    twin.load_lora(loras / name)
    assert "unexpected keys" not in caplog.text and relative_error(twin(), plain) > 0.02
    row = {"lora_1": name, "strength_1": 1.0, "text_strength_1": 1.0}
    assert relative_error(twin.of_comfy(run_node(LoadLoraStack, model=model, **row)[0]), twin()) < 1e-5


def test_dora_that_diffusers_would_not_read_is_refused(models, loras: Path) -> None:
    model = models("wan21").model
    with torch.inference_mode(), training_session(model, False) as patcher, torch.no_grad():
        adapter = made(patcher, "attention").adapter()
    with pytest.raises(ValueError, match=r"diffusers does not read DoRA of Wan 2\.1; save in the 'comfyui' format"):
        run_node(SaveLora, adapter=adapter, model=model, name="dora", format="diffusers", dtype="fp32")
    assert not list(loras.iterdir())


@pytest.mark.parametrize("form", ["fp8_e4m3fn", "nvfp4", "of a third party"])
def test_weights_in_every_form(models, tmp_path: Path, form: str) -> None:
    """Forward and gradient are those of the same weights in fp32, through recomputed blocks; and of any quantised
    weight the third party's loader alone knows the values."""
    row, conditioning, found = tiny.FAMILIES["sd15"], encode(models("sd15").clip, "a red heart"), []
    with torch.inference_mode():
        foreign = form == "of a third party"
        model = (
            load_packed(row, tiny.built(row, "meta").diffusion_model)
            if foreign
            else load_stored("sd15", tmp_path, form)
        )
        for each in (model, dequantised("sd15", model)):
            with training_session(each, True) as patcher:
                factors = made(patcher, "attention+mlp")
                with attached(factors.branches):
                    out = problem(patcher, conditioning)
                    out.double().square().mean().backward()
                saved = torch.cat([items[0].magnitude for items in factors.adapter().others.values()])
                found.append((out.detach(), factors.flat.grad.clone(), saved))
    for one, two in zip(*found, strict=True):
        assert relative_error(one, two) < 1e-4


def test_preservation_holds_it_to_the_base(models) -> None:
    """Preservation adds the gradient of the mean squared change from the output without anything attached."""
    trio, found = models("sd15"), []
    conditioning = encode(trio.clip, "a red heart")
    with torch.inference_mode(), training_session(trio.model, True) as patcher:
        with torch.no_grad():
            bare = problem(patcher, conditioning)
        factors = made(patcher, "attention+mlp")
        with attached(factors.branches):
            (problem(patcher, conditioning) - bare).square().mean().backward()
            wanted = factors.flat.grad.clone()
            pieces = step(patcher, conditioning)
            for weight in (0.0, 2.0):
                factors.flat.grad.zero_()
                add_gradient(TrainConfig(preservation=weight), factors, *pieces, pieces[-1] if weight else [])
                found.append(factors.flat.grad.clone())
    assert relative_error(found[1] - found[0], 2.0 * wanted) < 1e-4


def test_a_run_cut_off_goes_on_to_the_same_bytes_and_from_its_file(models, loras, data, runs, caplog) -> None:
    """The second half with blocks in RAM; text encoders are trained along, and later come along as they are."""
    trio, extra = models("sd15"), {"caption_dropout": 0.5, "targets": "attention+mlp", "text_rank": 2}
    extra["options"] = {"rank_dropout": 0.3, "max_norm": 5.0, "lora_plus_ratio": 2.0}
    adapter = train(trio, data, **extra)
    assert "could not be predicted" not in caplog.text, "what it needs is foreseen"
    assert adapter.kinds() == {"DoRA": len(adapter.others)}
    assert '"dora_wd": "True"' in adapter.metadata["ss_network_args"] and adapter.metadata["ss_network_dim"] == "2"
    whole = kept(runs)
    shutil.rmtree(runs)
    with cancelled(trio, 2):
        train(trio, data, **extra)
    train(trio, data, offload=0.5, **extra)
    assert {name: kept(runs)[name] for name in whole} == whole
    inputs = {"adapter": adapter, "model": trio.model, "clip": trio.clip, "name": "first", "format": "kohya"}
    name = run_node(SaveLora, dtype="fp32", **inputs)[0]
    still = {"steps": 1, "learning_rate": 1e-9, "rank": 0, "targets": "auto"}
    again = train(trio, data, options={"dora": False}, continue_from=name, **still)
    assert again.others.keys() == adapter.others.keys() and not again.layers
    for layer, (dora,) in adapter.others.items():
        weight = weight_of(layer, trio.model, trio.clip)
        assert relative_error(again.others[layer][0].difference(weight), dora.difference(weight)) < 1e-4
    assert any(layer.startswith(TEXT_PREFIX) for layer in again.others)
