"""Layers whose weights a model uses without calling them, as in a kernel that nobody here knows of: they are told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from comfy_execution.utils import CurrentNodeContext
from harness.calls import encode, run_node, sampled
from harness.runs import train
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.nodes.bridge.merging.save import DTYPES, STYLES, save_proven
from lora_loom.nodes.bridge.model.fused_layers import insist, insisted
from lora_loom.nodes.bridge.stack.bypass_injection import uncalled
from lora_loom.nodes.load_stack import LoadLoraStack
from server import PromptServer
from torch import nn
from torch.nn import functional

TOLD = "no effect in 2 of the 4 layers that they run beside, first blocks.0.ffn.2: the model did not call them"


def unasked(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """A feed-forward that uses the weight of its second layer itself."""
    first, act, last = layers
    return functional.linear(act(first(x)), last.weight, last.bias)


@pytest.fixture
def loaded(models: Any) -> Iterator[tiny.Loaded]:
    """Wan, whose blocks do not call `ffn.2`."""
    trio = models("wan21")
    blocks = trio.model.model.diffusion_model.blocks
    for block in blocks:
        block.ffn.forward = MethodType(unasked, block.ffn)
    yield trio
    for block in blocks:
        del block.ffn.forward


@pytest.fixture
def stack(loaded: tiny.Loaded, random_adapter: Any, loras: Path) -> Any:
    """Load LoRA Stack with a LoRA on all feed-forward layers."""
    layers = random_adapter(loaded.model, preset="attention+mlp", size=0.5).layers
    mlp = Adapter({name: layer for name, layer in layers.items() if ".ffn." in name})
    save_proven(mlp, loras / "mlp.safetensors", STYLES["comfyui"], DTYPES["fp32"], loaded.model)
    return lambda apply: run_node(LoadLoraStack, model=loaded.model, lora_1="mlp.safetensors", apply=apply)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect what a browser would be sent."""
    sent: list[dict[str, Any]] = []
    listening = SimpleNamespace(
        client_id="browser", send_sync=lambda kind, what, _: sent.append({"kind": kind, **what})
    )
    monkeypatch.setattr(PromptServer, "instance", listening, raising=False)
    return sent


def drawn(loaded: tiny.Loaded, model: Any) -> torch.Tensor:
    return sampled(model, encode(loaded.clip, "a heart"), torch.zeros(tiny.latent_shape(loaded.model)), steps=2)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "lora_loom"]


def test_it_is_told_once_a_sampling_on_the_node_that_made_the_stack(
    loaded: tiny.Loaded, stack: Any, said: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "lora_loom")
    with CurrentNodeContext("prompt 1", "7", 0):
        model, _, _, report, _ = stack("beside")
    said.clear()
    for number in (1, 2):
        with CurrentNodeContext(f"prompt {number}", "9", 0):
            drawn(loaded, model)
        found = [each for each in said if each["kind"] == "lora_loom.said"]
        assert len(warnings(caplog)) == len(found) == number
        assert TOLD in warnings(caplog)[-1]
        assert (found[-1]["node"], found[-1]["prompt_id"], found[-1]["working"]) == ("7", f"prompt {number}", False)
        assert found[-1]["text"] == f"{report}\n{warnings(caplog)[-1]}"
    assert [TOLD in line for each in uncalled(model) for line in each.sentences()] == [True]


def test_what_it_says_to_do_helps(loaded: tiny.Loaded, stack: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The same rows in the weights reach the layers, and nothing is told; nor is it of a model that calls them all."""
    beside, weights = (drawn(loaded, stack(apply)[0]) for apply in ("beside", "weights"))
    assert "Set apply to weights" in warnings(caplog)[0]
    assert float((beside - weights).norm() / weights.norm()) > 1e-3
    caplog.clear()
    assert torch.equal(drawn(loaded, stack("weights")[0]), weights)
    for block in loaded.model.model.diffusion_model.blocks:
        block.ffn.forward = MethodType(nn.Sequential.forward, block.ffn)
    called = drawn(loaded, stack("beside")[0])
    assert float((called - weights).norm() / weights.norm()) < 1e-4
    assert not warnings(caplog)


@pytest.mark.usefixtures("runs")
def test_a_run_says_which_layers_learn_nothing(
    loaded: tiny.Loaded, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    done = train(loaded, data, targets="attention+mlp")
    told = (
        f"2 of {len(done.adapter.layers)} layers learn nothing (the first is diffusion_model.blocks.0.ffn.2): no "
        "gradient"
    )
    assert [line for line in warnings(caplog) if told in line] and told in done.report
    idle = [name for name, layer in done.adapter.layers.items() if not layer.norm()]
    assert idle == [f"diffusion_model.blocks.{number}.ffn.2" for number in range(2)]


def test_a_text_encoder_is_watched_too(
    models: Any, random_adapter: Any, add_text: Any, loras: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trio = models("sd15")
    text = add_text(random_adapter(trio.model), trio.clip)
    text = Adapter({name: layer for name, layer in text.layers.items() if name.startswith(TEXT_PREFIX)})
    save_proven(text, loras / "text.safetensors", STYLES["comfyui"], DTYPES["fp32"], trio.model, trio.clip)
    row = {"model": trio.model, "clip": trio.clip, "lora_1": "text.safetensors", "apply": "beside"}
    encode(run_node(LoadLoraStack, **row)[1], "a heart")
    assert not warnings(caplog)
    mlp = trio.clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp
    mlp.forward = lambda x, *_, **__: functional.linear(functional.gelu(mlp.fc1(x)), mlp.fc2.weight, mlp.fc2.bias)
    try:
        encode(run_node(LoadLoraStack, **row)[1], "a heart")
    finally:
        del mlp.forward
    (told,) = warnings(caplog)
    assert f"in 1 of the {len(text.layers)} layers" in told and "layers.0.mlp.fc2: the text encoder did" in told


def test_a_layer_that_a_hook_hangs_on_is_marked_until_the_last_is_off() -> None:
    layer, hook = nn.Linear(2, 2), lambda *_: None
    first, second = (layer.register_forward_hook(hook) for _ in range(2))
    off, other = insist(layer), insist(layer)
    assert layer.comfy_force_forward
    first.remove()
    off()
    assert layer.comfy_force_forward
    second.remove()
    other()
    assert not hasattr(layer, "comfy_force_forward")
    layer.comfy_force_forward = True  # as the bypass loader leaves it, which takes it off itself
    insist(layer)()
    assert layer.comfy_force_forward is True


def test_layers_with_hooks_are_marked_while_a_session_samples() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for layer in model[:2]:
        layer.register_forward_hook(lambda *_: None)
    insist(model[0])
    with insisted(model):
        assert [hasattr(layer, "comfy_force_forward") for layer in model] == [True, True, False]
    assert [hasattr(layer, "comfy_force_forward") for layer in model] == [True, False, False]
