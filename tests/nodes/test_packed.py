"""LoRAs beside quantised layers: right on every layout, and of few operators in sampling and in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import pytest
import tiny
import torch
from comfy.quant_ops import QuantizedTensor
from harness.calls import encode, relative_error, run_node, sampled
from harness.operators import cost
from harness.problem import Problem
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.chain import Step
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.plan import Measures
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.recast import cast_layers, recast_in_backward
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.session.session import blocks, loaded, trainable
from lora_loom.nodes.bridge.stack.apply_chain import apply_chain
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.save_lora import SaveLora
from tiny.stored import LAYOUTS, load_stored, one_layer
from torch import Tensor

WIDTH = 64


def terms(count: int) -> list[LowRank]:
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, WIDTH), (WIDTH, 4)))
        made.append(LowRank(down / 8, up / 8, 3.0 + seed))
    return made


@torch.inference_mode()
def beside(model: Any, loras: Sequence[LowRank]) -> Any:
    """A clone with the LoRAs, loaded; they are taken off when it is collected."""
    patcher = apply_chain(model, None, {"layer": [Step(tuple(loras))]})[0]
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    return patcher


def inputs(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(9)).to(dtype)


def added(loras: Sequence[LowRank], x: Tensor) -> Tensor:
    """Return what LoRAs add to a layer's output, in fp64."""
    return sum(x.double() @ each.to(torch.float64).delta_weight().T for each in loras)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", LAYOUTS)
def test_any_number_of_loras_is_two_operators(form: str) -> None:
    """A product with all A, and one with all B that is added where the output lies."""
    with torch.inference_mode():
        model, x = one_layer(form, WIDTH), inputs()
        layer = model.model.layer
        plain, least = layer(x), cost(lambda: layer(x)).names
        for count in (1, 4):
            on = beside(model, terms(count))
            more = cost(lambda: layer(x)).names - least
            assert more == Counter({"aten.linear": 1, "aten.addmm_": 1}), (count, more)
            change = layer(x).double() - plain.double()
            assert relative_error(change, added(terms(count), x)) < 0.02  # bf16
        del on
        assert torch.equal(layer(x), plain)


def test_an_output_that_another_hook_keeps_is_not_changed() -> None:
    with torch.inference_mode():
        model, x, kept = one_layer("int8_rowwise", WIDTH), inputs(), []
        layer = model.model.layer
        plain = layer(x)
        foreign = layer.register_forward_hook(lambda *args: kept.append(args[2]))
        on = beside(model, terms(2))
        found = layer(x)
        foreign.remove()
        assert torch.equal(kept[0], plain)
        assert torch.equal(found, layer(x)), "in place and out of place are the same bits"
        del on


def test_an_output_that_a_replaced_forward_keeps_is_not_changed() -> None:
    with torch.inference_mode():
        model, x = one_layer("int8_rowwise", WIDTH), inputs()
        layer = model.model.layer
        plain = layer(x)
        memory = plain.clone()
        layer.forward = lambda _: memory
        on = beside(model, terms(2))
        first, second = layer(x), layer(x)
        del layer.forward, on
        assert torch.equal(first, second) and not torch.equal(first, memory) and torch.equal(memory, plain)


@pytest.mark.parametrize("form", ["int8_tensorwise", "int8_rowwise", "int8_convrot", "float8_e4m3fn", "nvfp4", "mxfp8"])
def test_a_stack_on_every_layout(models, make_lora, loras: Path, tmp_path: Path, form: str) -> None:
    """Beside, for a part, in the weights, with other strengths, as a merged file, and taken off again."""
    with torch.inference_mode():
        model = load_stored("flux1", tmp_path, form)
    before = {name: value.clone() for name, value in _bytes(model).items()}
    text, latent = encode(models("flux1").clip, "a red heart"), torch.zeros(tiny.latent_shape(model))
    for seed, name in enumerate(("one", "two")):
        make_lora("flux1", loras / f"{name}.safetensors", seed=seed, preset="attention+mlp", size=0.3)

    def picture(rows: str, **choices: Any) -> Tensor:
        stacked = run_node(
            LoadLoraStack, model=model, rows=rows, lora_1="None", strength_1=1.0, text_strength_1=1.0, **choices
        )[0]
        return sampled(stacked, text, latent)

    base, live = sampled(model, text, latent), picture("<lora:one:1.0><lora:two:0.5>")
    assert relative_error(live, base) > 0.01
    assert relative_error(picture("<lora:one:0.2><lora:two:0.5>") - base, live - base) > 0.1
    assert torch.equal(picture("<lora:one:1.0><lora:two:0.5>"), live)
    part = picture("<lora:one:1.0:end=0.3><lora:two:0.5:end=0.3>")
    assert not torch.equal(part, base) and not torch.equal(part, live)
    assert not torch.equal(picture("<lora:one:1.0><lora:two:0.5>", apply="weights"), base)
    rows = [("one.safetensors", 1.0, 1.0), ("two.safetensors", 0.5, 0.5)]
    merged = run_node(MergeLora, model=model, lora_stack=rows, adapters={}, strengths="", rank=0)[0]
    run_node(SaveLora, adapter=merged, model=model, name="merged", format="comfyui", dtype="fp32")
    assert relative_error(picture("<lora:merged:1.0>") - base, live - base) < 1e-3
    assert torch.equal(sampled(model, text, latent), base)
    comfy.model_management.unload_all_models()
    assert all(torch.equal(value, before[name]) for name, value in _bytes(model).items())


def _bytes(model: Any) -> dict[str, Tensor]:
    parameters = model.model.diffusion_model.named_parameters()
    return {
        name: value._qdata.view(torch.uint8) if isinstance(value, QuantizedTensor) else value.detach()
        for name, value in parameters
    }


# -- training ----------------------------------------------------------------------------------------------------------


def test_loras_below_a_training_are_not_copied() -> None:
    """They were made and loaded in inference mode, whose tensors autograd does not take."""
    with torch.inference_mode():
        model = one_layer("int8_rowwise", WIDTH, torch.float32)
        on = beside(model, terms(3))
    layer, x = model.model.layer, inputs(torch.float32).requires_grad_()
    with recast_in_backward(model.model, torch.float32):
        names = cost(lambda: layer(x).sum().backward()).names
        plain = layer.weight.dequantize().double()
    assert not {"aten.clone", "aten.copy_", "aten._to_copy"} & set(names), names
    delta = sum(each.to(torch.float64).delta_weight() for each in terms(3))
    assert relative_error(x.grad, torch.ones(2, 5, WIDTH).double() @ (plain + delta)) < 1e-5
    with torch.inference_mode():
        del on  # as ComfyUI takes it off


@pytest.mark.parametrize("form", LAYOUTS)
def test_a_quantised_weight_is_dequantised_once_a_use_and_not_copied(form: str) -> None:
    """Also where the layer was loaded for another type than it is trained in."""
    with torch.inference_mode():
        model = one_layer(form, WIDTH, torch.float16)
    layer, x = model.model.layer, inputs().requires_grad_()
    with recast_in_backward(model.model, torch.bfloat16):
        out = layer(x)
        names = cost(lambda: layer(x)).names + cost(lambda: out.backward(torch.ones_like(out))).names
        wanted = layer.weight.dequantize().double()
    assert not {"aten.clone", "aten.copy_"} & set(names), names
    if "convrot_w4a4" not in form:  # which a CPU unpacks in many operators
        assert names["aten.addmm"] + names["aten.mm"] == 2
        assert sum(number for name, number in names.items() if "dequantize" in name) == 2, names
    assert relative_error(out.detach(), x.detach().double() @ wanted.T) < 0.02


@pytest.mark.parametrize(("family", "form"), [("sd15", "nvfp4"), ("flux1", "int8_convrot"), ("flux1", "fp8_e4m3fn")])
def test_the_cast_of_a_recomputed_block_serves_its_backward_pass(
    models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, form: str
) -> None:
    """Same bits; of three casts of a weight two are left, and one block's are held."""
    with torch.inference_mode():
        model = load_stored(family, tmp_path, form)
    conditioning = [encode(models(family).clip, "blue", guidance=1.0)] * 2
    casts, cast = [], comfy.ops.cast_bias_weight

    def counted(module: Any, *args: Any, **kinds: Any) -> Any:
        casts.append(module)
        return cast(module, *args, **kinds)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)

    def gradient(measures: Measures) -> tuple[Tensor, Counter]:
        casts.clear()
        with torch.inference_mode(), trainable(model) as patcher, loaded(patcher, measures):
            layers = select(patcher.model.diffusion_model, LoraConfig(4, 4.0, "attention+mlp"), PREFIX)
            return Problem(ComfyDenoiser(patcher), layers, conditioning).gradient(), Counter(casts)

    (each, uses), (held, fewer) = gradient(Measures()), gradient(Measures(hold_casts=True))
    network = model.model.diffusion_model
    recomputed = {module for block in blocks(network) for module in block.modules()}
    inside = [module for module in cast_layers(network, torch.float32) if module in recomputed]
    thrice = [module for module in inside if uses[module] == 3]
    assert torch.equal(each, held)
    assert len(thrice) >= 5 and {fewer[module] for module in thrice} == {2}
    assert all(fewer[module] == uses[module] for module in uses.keys() - set(inside))
