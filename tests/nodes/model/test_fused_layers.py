"""LoRAs beside layers that ComfyUI computes in fused kernels, without calling them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.ldm.minimax.model as minimax
import comfy.ops
import pytest
import tiny
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from harness.calls import encode, relative_error, run_node, sampled
from harness.session import training_session
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.merging.save import DTYPES, STYLES, save_proven
from lora_loom.nodes.bridge.model import fused_layers
from lora_loom.nodes.bridge.model.sampling import sampling_inside
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.stack.bypasses import Bypass
from lora_loom.nodes.load_stack import LoadLoraStack
from tiny.families import FAMILIES
from tiny.stored import dequantised, load_stored
from torch import nn

INT8 = ("int8_tensorwise", "int8_rowwise", "int8_convrot")


class DownFused(nn.Module):
    """Wan's feed-forward as ComfyUI 0.33 computes it: the second linear layer is not called."""

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return comfy.ops.linear_input_act(self.layers[2], self.layers[0](x), "gelu_tanh")


@pytest.fixture
def as_newer() -> Iterator[Any]:
    """Gives a Wan MODEL the feed-forward of newer versions."""
    changed: list[nn.Sequential] = []

    def change(model: Any) -> Any:
        for block in model.model.diffusion_model.blocks:
            block.ffn.forward = DownFused(block.ffn).forward
            changed.append(block.ffn)
        return model

    yield change
    for layers in changed:
        del layers.forward


def stacked(model: Any) -> Any:
    return run_node(LoadLoraStack, model=model, lora_1="down.safetensors", strength_1=1.0, text_strength_1=1.0)[0]


@pytest.mark.parametrize("form", INT8)
def test_a_lora_on_a_fused_layer_takes_effect(
    models: Any, random_adapter: Any, as_newer: Any, loras: Path, tmp_path: Path, form: str
) -> None:
    with torch.inference_mode():
        model = as_newer(load_stored("wan21", tmp_path, form))
    exact, trio = dequantised("wan21", model), models("wan21")
    layers = random_adapter(trio.model, preset="attention+mlp", size=0.5).layers
    down = Adapter({name: layer for name, layer in layers.items() if name.endswith("ffn.2")})
    save_proven(down, loras / "down.safetensors", STYLES["comfyui"], DTYPES["fp32"], trio.model)
    text, latent = encode(trio.clip, "a red heart"), torch.zeros(tiny.latent_shape(model))
    base, changed, again = (sampled(each, text, latent) for each in (model, stacked(model), model))
    plain, wanted = (sampled(each, text, latent) for each in (exact, stacked(exact)))
    assert relative_error(changed - base, wanted - plain) < 0.2  # INT8 activations
    assert torch.equal(base, again)


def test_previews_inside_training_show_it(models: Any, as_newer: Any, tmp_path: Path) -> None:
    with torch.inference_mode():
        model = as_newer(load_stored("wan21", tmp_path, "int8_convrot"))
    text, latent = encode(models("wan21").clip, "a red heart"), torch.zeros(tiny.latent_shape(model))
    with torch.inference_mode(), training_session(model, checkpointing=False) as patcher:
        layers = select(patcher.model.diffusion_model, LoraConfig(4, 4.0, "attention+mlp"), PREFIX)
        with torch.inference_mode(False):
            down = {name: layer for name, layer in layers.items() if name.endswith("ffn.2")}
            factors = Factors(down, 4, 4.0, torch.Generator().manual_seed(0))
            with torch.no_grad():
                for branch in factors.branches.values():
                    branch.lora_B.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        with attached(factors.branches), sampling_inside(patcher):
            changed = sampled(patcher, text, latent)
            with factors.silence():
                base = sampled(patcher, text, latent)
    assert relative_error(changed, base) > 0.01


def test_comfyui_itself_calls_a_layer_with_a_hook() -> None:
    """MiniMax H3's feed-forward, whose down projection the pinned version computes without calling it."""
    fused_layers.heed_hooks()
    layout, called = QUANT_ALGOS["int8_tensorwise"]["comfy_tensor_layout"], []
    with torch.inference_mode():
        mlp = minimax.MLP(64, 64, torch.float32, "cpu", comfy.ops.mixed_precision_ops({}, torch.float32))
        for layer in (mlp.fc1, mlp.fc2):
            weight = torch.randn(layer.out_features, layer.in_features) * 0.1
            quantised = QuantizedTensor.from_float(weight, layout, per_channel=True)
            layer.weight = nn.Parameter(quantised, requires_grad=False)
            layer.quant_format, layer.layout_type = "int8_tensorwise", layout
        x = torch.randn(3, 64)
        before = mlp(x)
        handle = mlp.fc2.register_forward_hook(lambda module, *_: called.append(module))
        hooked = mlp(x)
        handle.remove()
        assert called == [mlp.fc2]
        assert relative_error(hooked, before) < 0.02
        assert torch.equal(mlp(x), before)


def test_a_layer_with_a_hook_is_no_part_of_a_larger_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    lumina: ModuleType = sys.modules["comfy.ldm.lumina.model"]
    monkeypatch.setattr(lumina, "_int8_convrot_linear", lambda linear: True, raising=False)
    fused_layers.heed_hooks()
    layer = nn.Linear(2, 2)
    assert lumina._int8_convrot_linear(layer)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not lumina._int8_convrot_linear(layer)
    handle.remove()
    assert lumina._int8_convrot_linear(layer)


def test_heeding_twice_is_heeding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy.ops, "linear_input_act", lambda *_: None)
    fused_layers.heed_hooks()
    once = comfy.ops.linear_input_act
    fused_layers.heed_hooks()
    assert comfy.ops.linear_input_act is once


@pytest.mark.parametrize("family", FAMILIES)
def test_every_branch_runs_in_one_forward(
    models: Any, random_adapter: Any, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    trio = models(family)
    text, latent = encode(trio.clip, "a red heart", guidance=1.0), torch.zeros(tiny.latent_shape(trio.model))
    layers = random_adapter(trio.model, preset="all-linear").layers
    called = called_in_sampling(trio.model, text, latent)
    adapter = Adapter({name: layer for name, layer in layers.items() if name in called})
    save_proven(adapter, loras / "down.safetensors", STYLES["comfyui"], DTYPES["fp32"], trio.model)
    with torch.inference_mode():
        model = load_stored(family, tmp_path, "int8_convrot")
    run, hung, call, hang = set(), set(), Bypass.__call__, Bypass.hang
    monkeypatch.setattr(Bypass, "__call__", lambda self, *args: run.add(self) or call(self, *args))
    monkeypatch.setattr(Bypass, "hang", lambda self, module: hung.add(self) or hang(self, module))
    sampled(stacked(model), text, latent, steps=1)
    assert hung
    assert run == hung


def called_in_sampling(model: Any, text: list, latent: torch.Tensor) -> set[str]:
    """The linear layers that a forward of the unquantised model calls."""
    layers = select(model.model.diffusion_model, LoraConfig(4, 4.0, "all-linear"), PREFIX)
    called: set[str] = set()
    handles = [layer.register_forward_hook(lambda *_, n=name: called.add(n)) for name, layer in layers.items()]
    sampled(model, text, latent, steps=1)
    for handle in handles:
        handle.remove()
    return called
