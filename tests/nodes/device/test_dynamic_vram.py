"""A MODEL of ComfyUI's dynamic VRAM, its weights in read-only pages of the file: all is as with a static one.

The patcher and the mapping are the real ones. Sampling is not tried: its regions of VRAM need a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy_aimdo.control
import pytest
import tiny
import torch
from harness.calls import run_node
from harness.host import FILL_AFTER_COPIES
from harness.layers import apply_layers
from harness.runs import train
from harness.streams import Streams, gradients
from lora_loom.lora_core.adapter import Adapter
from lora_loom.nodes.bridge.session.staging import COUNT
from lora_loom.nodes.extract_lora import ExtractLora
from lora_loom.nodes.interference import LoraInterference
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from torch import Tensor

TRIGGER = "sks"
FAMILY = "flux1"
pytestmark = pytest.mark.usefixtures("runs")


@pytest.fixture(scope="module")
def dynamic(models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tiny.Loaded]:
    """The family's trio with a MODEL of dynamic VRAM; its weights are the same at the end."""
    assert comfy_aimdo.control.lib is not None
    trio = models(FAMILY)
    path = tiny.write_model(tiny.FAMILIES[FAMILY], tmp_path_factory.mktemp("dynamic"))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
        model = comfy.sd.load_diffusion_model(str(path))
        patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        yield replace(trio, model=model)
        comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert model.is_dynamic() and all(torch.equal(value, after[name]) for name, value in before.items())


def pages_of(address: int) -> str:
    """Return what may be done with memory in RAM, as /proc/self/maps has it."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.split()[1]
    raise AssertionError("not in memory")


def test_the_weights_are_read_only_pages(dynamic) -> None:
    weights = dict(dynamic.model.model.diffusion_model.named_parameters())
    assert dynamic.model.is_dynamic() and str(dynamic.model.load_device) == "pretend:0"
    assert {pages_of(weight.data_ptr()) for weight in weights.values()} == {"r--p"}


@pytest.mark.parametrize(
    "choices",
    [{}, {"offload": 1.0, "memory": "as set"}, {"offload": 0.5, "memory": "as set"}, {"targets": "linear+conv"}],
    ids=str,
)
def test_training_gives_the_bytes_of_a_static_model(models, dynamic, data, choices: dict[str, Any]) -> None:
    same = {"steps": 2, "resume": "start over", **choices}
    static, own = (train(trio, data, **same).lora_model for trio in (models(FAMILY), dynamic))
    assert static.keys() == own.keys() and all(torch.equal(value, own[name]) for name, value in static.items())
    assert dynamic.model.is_dynamic()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_offloaded_weights_are_staged(models, dynamic, share: float) -> None:
    """By a driver that refuses to pin read-only pages; in the order that a GPU's streams would need."""
    streams = Streams()
    streams.driver.read_only = lambda address: pages_of(address) == "r--p"
    (kept,) = gradients(dynamic, models(FAMILY).model, 0.0, steps=1)
    found = gradients(dynamic, dynamic.model, share, streams)
    assert all(torch.equal(gradient, kept) for gradient in found)
    assert streams.waits[FILL_AFTER_COPIES] and not streams.races
    assert (streams.driver.tried, streams.driver.refused, streams.driver.pinned) == (COUNT, 0, {})
    assert any(launches > 20 for launches in streams.beside), "computing and copying overlap"


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_staged_run_gives_the_bytes_of_a_static_model(models, dynamic, data, share: float) -> None:
    choices, streams = {"steps": 2, "resume": "start over"}, Streams()
    static = train(models(FAMILY), data, **choices).lora_model
    with streams.installed():
        own = train(dynamic, data, offload=share, memory="as set", **choices).lora_model
    assert same(own, static) and streams.waits[FILL_AFTER_COPIES]
    assert (streams.driver.tried, streams.driver.pinned) == (COUNT, {}) and dynamic.model.is_dynamic()


def stacked(model: Any) -> Any:
    return run_node(LoadLoraStack, model=model, rows="<lora:first:0.8> <lora:second:-0.5>")[0]


@pytest.fixture
def files(make_lora, loras: Path) -> list[Adapter]:
    return [make_lora(FAMILY, loras / f"{name}.safetensors") for name in ("first", "second")]


def interference(model: Any, adapters: list[Adapter]) -> str:
    given = {f"adapter{number}": adapter for number, adapter in enumerate(adapters)}
    return run_node(LoraInterference, model=model, strengths="", adapters=given)[4]


def merged(model: Any, adapters: list[Adapter]) -> dict[str, Tensor]:
    given = {f"adapter{number}": adapter for number, adapter in enumerate(adapters)}
    made = run_node(MergeLora, model=model, rank=0, strengths="", adapters=given)[0]
    return {name: layer.delta_weight() for name, layer in made.layers.items()}


def extracted(model: Any, adapters: list[Adapter]) -> dict[str, Tensor]:
    tuned = apply_layers(model, None, adapters[0].layers)[0]
    made = run_node(ExtractLora, model_a=tuned, model_b=model, rank=4, energy=1.0)[0]
    return {name: layer.delta_weight() for name, layer in made.layers.items()}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return left == right


@pytest.mark.parametrize("measure", [interference, merged, extracted])
def test_measures_are_those_of_a_static_model(models, dynamic, files, measure: Callable) -> None:
    assert same(measure(models(FAMILY).model, files), measure(dynamic.model, files))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_training_on_top_of_a_stack(models, dynamic, files, data, share: float) -> None:
    choices = {"steps": 2, "resume": "start over", "offload": share, "memory": "as set"}
    trios = [replace(trio, model=stacked(trio.model)) for trio in (dynamic, models(FAMILY))]
    bare, on_top, wanted = (train(trio, data, **choices).lora_model for trio in (dynamic, *trios))
    assert same(on_top, wanted) and not same(on_top, bare)
