"""LoRA Health in a real ComfyUI: faults that were put into LoRAs are found, named and mended, on every family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from harness.calls import run_node
from harness.runs import train
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.analysis.repair import Moved
from lora_loom.lora_core.families.blocks import strengths
from lora_loom.lora_core.kinds import LoHa
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.model.base_figures import Base
from lora_loom.nodes.health import BLOCKS, LoraHealth
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora
from safetensors.torch import load_file, save_file
from tiny import FAMILIES

TRIGGER = "heart"
SMALL = {
    "lora_name": "None", "repair": "faults", "blocks": "parts", "trigger": "", "prompts": "", "negative": "",
    "seeds": 1, "seed": 3, "width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "simple",
}  # fmt: skip
Found = tuple[Adapter, str, str, dict[str, Any]]


@pytest.fixture(autouse=True)
def _not_interrupted() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


def health(model: Any, adapter: Adapter | None, **changes: Any) -> Found:
    """The repaired LoRA, report, strengths of blocks and figures."""
    inputs = {**SMALL, "model": model, "adapter": adapter, **changes}
    made, lora_model, page, report, blocks, figures = run_node(LoraHealth, **inputs)
    assert page.shape[0] == 1 and page.shape[3] == 3
    assert isinstance(made, ExecutionBlocker) or len(lora_model) >= 2 * len(made.layers)
    return made, report, blocks, json.loads(figures)


def at(adapter: Adapter, number: int, change: Callable[[LowRank], LowRank]) -> tuple[Adapter, str]:
    """The adapter with one layer changed, and the name of that."""
    name = list(adapter.layers)[number]
    return replace(adapter, layers={**adapter.layers, name: change(adapter.layers[name])}), name


def zeroed(layer: LowRank) -> LowRank:
    return replace(layer, lora_B=torch.zeros_like(layer.lora_B))


def holed(layer: LowRank) -> LowRank:
    return replace(layer, lora_B=layer.lora_B.index_fill(1, torch.tensor([0]), float("nan")))


def why(figures: dict[str, Any]) -> dict[str, str]:
    return {each["layer"]: each["why"] for each in figures["repairs"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_faults_in_every_family_are_found_and_mended(models, random_adapter, family: str) -> None:
    model = models(family).model
    sound = random_adapter(model, preset="attention+mlp")
    bad, broken = at(sound, 0, holed)
    bad, dead = at(bad, 1, zeroed)
    bad, loud = at(bad, -1, lambda layer: layer.scaled(40))
    made, report, _, figures = health(model, bad)
    assert why(figures) == {broken: "broken", dead: "dead", loud: "loud"}
    assert report.partition(": ")[2].startswith("Not sound: 1 broken, 1 loud and 1 dead, of ")
    assert made.layers.keys() == sound.layers.keys() - {broken, dead}
    assert all(made.layers[name] is bad.layers[name] for name in made.layers.keys() - {loud})
    assert made.layers[loud].distance(sound.layers[loud]) < 0.02 * sound.layers[loud].norm()
    assert json.loads(made.metadata["lora_loom.merge"])["repairs"] == figures["repairs"]


def test_a_sound_lora_is_left_as_it_is(models, random_adapter) -> None:
    model = models("flux1").model
    sound = random_adapter(model, preset="attention+mlp")
    made, report, blocks, figures = health(model, sound)
    assert figures["sound"] and report.startswith("adapter 1: Sound: none of its ") and blocks == ""
    assert "Nothing was repaired" in report and figures["repairs"] == [] and figures["moved"] == 0
    assert dict(made.layers) == dict(sound.layers), "the same objects"
    assert figures["share"] == pytest.approx(0.05, rel=1e-3)


def test_figures_are_those_of_the_weights(models, random_adapter) -> None:
    model = models("flux1").model
    adapter = random_adapter(model, preset="attention+mlp", size=0.2)
    layers = health(model, adapter)[3]["layers"]
    for name, layer in list(adapter.layers.items())[:4]:
        weight, delta = Base(model).dense(name).double(), layer.to(torch.float64).delta_weight()
        sigma, found = torch.linalg.svdvals(delta), layers[name]
        assert found["share"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-4)
        assert found["strongest"] == pytest.approx(float(sigma[0]), rel=1e-5)
        assert found["strongest_share"] == pytest.approx(float(sigma[0] / torch.linalg.svdvals(weight)[0]), rel=5e-3)
        p = sigma[: layer.rank] / sigma.sum()
        assert found["effective_rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-4)


def direction(layer: LowRank, size: float) -> LowRank:
    """The layer with one more direction, of that norm."""
    draw = torch.Generator().manual_seed(5)
    down = torch.randn(1, layer.lora_A.shape[1], generator=draw)
    up = torch.randn(layer.lora_B.shape[0], 1, generator=draw)
    one = LowRank(down, up * size / (down.norm() * up.norm()), 1.0, layer.kernel)
    return LowRank.concat([layer, one])


def test_a_direction_that_stands_out_is_held_and_the_rest_stays(models, random_adapter) -> None:
    model = models("flux1").model
    sound = random_adapter(model, rank=8, preset="attention+mlp")
    bad, name = at(sound, 3, lambda layer: direction(layer, 100 * layer.norm()))
    made, report, _, figures = health(model, bad)
    (repair,) = figures["repairs"]
    assert (repair["layer"], repair["why"], repair["factor"]) == (name, "outlier", 1.0)
    assert "A direction stands out: in 1 layer" in report
    left, sigma, right = torch.linalg.svd(bad.layers[name].to(torch.float64).delta_weight(), full_matrices=False)
    wanted = left * sigma.clamp(max=repair["singular_values_at_most"]) @ right
    assert torch.allclose(made.layers[name].to(torch.float64).delta_weight(), wanted, atol=1e-6 * float(wanted.norm()))
    assert made.layers[name].distance(sound.layers[name]) < 1.1 * sound.layers[name].norm() < 2 * float(sigma[0])
    assert figures["moved"] == pytest.approx(Moved.between(bad.layers, made.layers, ()).distance)


def test_a_lora_that_is_too_loud_as_a_whole_is_scaled_by_one_factor(models, random_adapter) -> None:
    model = models("flux1").model
    loud = random_adapter(model, preset="attention+mlp", size=3.0)
    made, report, _, figures = health(model, loud)
    assert "the whole far too loud" in report and "a strength near 0.02." in report
    assert len(figures["repairs"]) == len(loud.layers)
    assert [repair["factor"] for repair in figures["repairs"]] == pytest.approx([0.05 / 3] * len(loud.layers), rel=1e-3)
    assert made.norm() == pytest.approx(loud.norm() / 60, rel=1e-3)


def test_nothing_is_repaired_on_demand_and_nothing_drawn_that_is_black(models, random_adapter) -> None:
    trio = models("wan_demo")
    bad, name = at(random_adapter(trio.model), 0, holed)
    seen = {"clip": trio.clip, "vae": trio.vae, "prompts": "a red heart"}
    made, report, _, figures = health(trio.model, bad, repair="nothing", **seen)
    assert name in made.message and figures["repairs"] == [] and figures["pictures"] is None
    assert "was not looked at: it makes them black." in report and "drawn: they would be black." in report


def test_a_lora_of_nothing_but_faults(models, random_adapter) -> None:
    model = models("flux1").model
    with pytest.raises(ValueError, match=r"^nothing is left of adapter 1: all \d+ layers are broken or dead$"):
        health(model, random_adapter(model).map(holed))


def test_a_layer_of_another_kind_is_made_plain_or_goes(models, random_adapter) -> None:
    model = models("flux1").model
    plain = random_adapter(model, preset="attention+mlp")
    first, second, *_ = plain.layers

    def loha(name: str, value: float) -> tuple[LoHa]:
        out, inner = plain.layers[name].shape
        pairs = [torch.full(shape, value) for shape in ((out, 1), (1, inner)) * 2]
        return (LoHa(*pairs),)

    layers = {name: layer for name, layer in plain.layers.items() if name not in (first, second)}
    mixed = Adapter(layers, {}, {first: loha(first, 0.03), second: loha(second, float("inf"))})
    made, report, _, figures = health(model, mixed)
    assert first in made.layers and second not in made.layers and first in figures["layers"]
    assert "converted to plain LoRA" in report and f"and are left out: {second}" in report


def test_a_file_and_its_text_encoder(models, random_adapter, add_text, loras: Path) -> None:
    """Layers of text encoders are judged among themselves, and saved files tell of the repair."""
    trio = models("sd15_full")
    both = add_text(random_adapter(trio.model), trio.clip)
    text = [name for name in both.layers if name.startswith(TEXT_PREFIX)]
    loud = text[-1]
    bad = replace(both, layers={**both.layers, loud: both.layers[loud].scaled(30)})
    run_node(SaveLora, adapter=bad, name="bad", format="comfyui", dtype="fp32", model=trio.model, clip=trio.clip)
    with pytest.raises(ValueError, match="connect CLIP"):
        health(trio.model, None, lora_name="bad.safetensors")
    made, report, _, figures = health(trio.model, None, lora_name="bad.safetensors", clip=trio.clip)
    assert why(figures) == {loud: "loud"} and report.startswith("bad: Not sound: 1 loud, of ")
    made_of = json.loads(made.metadata["lora_loom.parents"])
    assert made_of[0]["name"] == "bad" and json.loads(made.metadata["lora_loom.merge"])["method"] == "repair"


def test_a_broken_file_is_read_here_and_nowhere_else(models, make_lora, loras: Path) -> None:
    """A file that every other node refuses, and that says where it is mended."""
    model, path = models("flux1").model, loras / "burnt.safetensors"
    sound = make_lora("flux1", path)
    tensors, name = load_file(path), list(sound.layers)[2]
    key = next(key for key in tensors if key.startswith(f"{name}.lora_up"))
    save_file({**tensors, key: torch.full_like(tensors[key], float("inf"))}, path)
    with pytest.raises(ValueError, match="NaN or infinite values .* repair it with LoRA Health"):
        run_node(LoadLoraStack, model=model, rows="<lora:burnt:1>")
    made, report, _, figures = health(model, None, lora_name="burnt.safetensors")
    assert why(figures) == {name: "broken"} and made.layers.keys() == sound.layers.keys() - {name}
    assert "Broken: 1 layer (" in report


@pytest.mark.parametrize(("given", "words"), [
    ({"adapter": None}, "no LoRA is given"), ({"lora_name": "some.safetensors"}, "both an adapter and the file"),
])  # fmt: skip
def test_one_lora_at_a_time(models, random_adapter, given: dict[str, Any], words: str) -> None:
    model = models("flux1").model
    with pytest.raises(ValueError, match=words):
        health(model, **{"adapter": random_adapter(model), **given})
    assert "not in any loras folder" in LoraHealth.validate_inputs(lora_name="no such.safetensors")
    assert "no LoRA is given" in LoraHealth.validate_inputs() and LoraHealth.validate_inputs(adapter=None) is True


# -- in use ------------------------------------------------------------------------------------------------------------


def test_what_each_block_does_in_figures_and_pictures(models, random_adapter) -> None:
    trio = models("wan_demo")
    adapter, loud = at(random_adapter(trio.model, size=0.2), 0, lambda layer: layer.scaled(30))
    seen = {"clip": trio.clip, "vae": trio.vae, "trigger": "heart", "prompts": "a red\na blue one", "blocks": BLOCKS}
    made, report, _, figures = health(trio.model, adapter, **seen)
    blocks = sorted({f"blocks.{name.split('.')[2]}" for name in adapter.layers})
    assert figures["pictures"].keys() == {"base model", "repaired", *(f"without {block}" for block in blocks)}
    assert {each["part"] for each in figures["effect"]["without"]} == set(blocks)
    before, after = figures["effect"]["before"], figures["effect"]["after"]
    assert before["loss"] is None and before["leak"] > after["leak"] > 0 and before["told"] > 0
    assert "Leakage: neutral prompts change by " in report and "Pictures: the change is largest without " in report
    assert figures["pictures"]["base model"]["latent"] > 0 and why(figures)[loud] == "loud"
    assert made.layers[loud].norm() < adapter.layers[loud].norm() / 5


@pytest.mark.parametrize("family", ["sdxl", "flux1", "qwen_image"])
def test_parts_are_left_out_in_pictures_of_every_kind_of_network(models, random_adapter, family: str) -> None:
    trio = models(family)
    adapter, loud = at(random_adapter(trio.model, size=0.2), 0, lambda layer: layer.scaled(30))
    seen = {"clip": trio.clip, "vae": trio.vae, "trigger": "heart", "prompts": "a red heart"}
    _, report, _, figures = health(trio.model, adapter, **seen)
    left_out = [name for name in figures["pictures"] if name.startswith("without ")]
    assert left_out and figures["pictures"].keys() == {"base model", "repaired", *left_out}
    assert len(left_out) == len(figures["effect"]["without"]) and "Pictures: the change is largest without " in report
    assert figures["effect"]["before"]["leak"] > 0 and why(figures)[loud] == "loud"


def test_strengths_of_blocks_are_proposed_by_the_concept_and_folded_in(models, random_adapter, data) -> None:
    """A LoRA one part of which does nothing but harm: its noise is turned down, and the file has that in it."""
    trio = models("wan_demo")
    adapter = noisy_last_part(trio, random_adapter, data)
    seen = {"clip": trio.clip, "vae": trio.vae, "dataset": data, "width": 64, "height": 64}
    made, report, blocks, figures = health(trio.model, adapter, repair="faults and blocks", **seen)
    assert blocks and f"Blocks: {blocks} in the repaired LoRA keeps " in report
    factors = strengths(blocks, adapter.layers)
    for name, layer in adapter.layers.items():
        left = made.layers[name].norm() if name in made.layers else 0.0
        assert left == pytest.approx(factors.get(name, 1.0) * layer.norm(), rel=1e-5)
    effect = figures["effect"]
    assert effect["after"]["leak"] < effect["before"]["leak"] and effect["with_blocks"]["leak"] < 0.95
    assert effect["after"]["loss"] < effect["base_loss"], "the concept is still there"
    told = health(trio.model, adapter, **seen)
    assert told[2] == blocks and f"Blocks: {blocks} in Load LoRA Stack keeps " in told[1]
    assert all(torch.equal(told[0].layers[name].lora_B, layer.lora_B) for name, layer in adapter.layers.items())


def noisy_last_part(trio: Any, random_adapter: Callable[..., Adapter], data: Any) -> Adapter:
    """A LoRA trained on the pictures, with noise in the place of its last blocks."""
    trained = train(trio, data, steps=30, rank=4, alpha=4.0, learning_rate=5e-3, quiet="off", run_name="health").adapter
    noise = random_adapter(trio.model, size=0.3).layers
    last = {name for name in trained.layers if name.split(".")[2] in ("4", "5")}
    return replace(trained, layers={**trained.layers, **{name: noise[name] for name in last if name in noise}})


def test_cancel_between_pictures(models, random_adapter) -> None:
    trio = models("wan_demo")
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        health(trio.model, random_adapter(trio.model), clip=trio.clip, vae=trio.vae, prompts="a red heart")


def test_a_model_that_draws_from_no_prompts_says_so(models, random_adapter) -> None:
    trio = models("kandinsky22_decoder")
    report = health(trio.model, random_adapter(trio.model), clip=trio.clip, trigger="heart")[1]
    assert "What it does to pictures was not looked at: Kandinsky 2.2" in report
    assert "No pictures were drawn: connect clip and vae" in report
