"""Base models in every type and layout that ComfyUI loads: the same gradient, and left bit for bit as they were."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import pytest
import tiny
import torch
from comfy.quant_ops import QuantizedTensor
from harness.calls import encode, relative_error, run_node, sampled
from harness.problem import Problem
from harness.runs import train as run
from harness.session import training_session
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.plan import Measures
from lora_loom.lora_core.training.targets import select, weight_shape
from lora_loom.nodes.bridge.model import attention as bridge_attention
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.session.session import loaded, trainable
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora
from tiny.packed import load_packed
from tiny.stored import LAYOUTS, dequantised, load_stored
from torch import Tensor

pytestmark = pytest.mark.usefixtures("runs")
train = partial(run, steps=2, targets="attention+mlp")
FAMILIES = ["sd15", "flux1", "flux1_schnell", *tiny.MORE]
PLAIN = [(family, form) for family in FAMILIES for form in ("fp16", "bf16", "fp8_e4m3fn")] + [("flux1", "fp8_e5m2")]
# One network of convolutions and one of transformer blocks in every layout; further ways to build blocks in some.
PACKED = [(family, form) for family in ("sd15", "flux1") for form in LAYOUTS]
PACKED += [
    (family, form)
    for family in ("sd35_large", "zimage", "wan21", "qwen_image")
    for form in ("scaled_fp8", "nvfp4", "int8_convrot", "convrot_w4a4")
]
DEFAULT = Measures()
WHOLE = [case for case in PLAIN + PACKED if case[0] in ("sd15", "flux1") or case[1] in ("fp8_e4m3fn", "nvfp4")]


def gradient(model: Any, clip: Any, measures: Measures = DEFAULT) -> Tensor:
    """Return the gradient of all factors, drawn from a seed and nowhere zero, on one batch of two."""
    conditioning = [encode(clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), trainable(model) as patcher, loaded(patcher, measures):
        layers = select(patcher.model.diffusion_model, LoraConfig(4, 4.0, "attention+mlp"), PREFIX)
        return Problem(ComfyDenoiser(patcher), layers, conditioning).gradient()


def stored(model: Any) -> dict[str, str]:
    """Hashes of the bytes that every parameter is made of, without the patches of whichever clone was loaded last."""
    comfy.model_management.unload_all_models()
    parameters = model.model.diffusion_model.named_parameters()
    whole = {name: b"".join(_bytes(part) for part in _parts(value)) for name, value in parameters}
    return {name: hashlib.sha256(each).hexdigest() for name, each in whole.items()}


def identities(model: Any) -> dict[str, int]:
    """Which object each parameter is. ComfyUI itself makes new ones of quantised layers whenever it moves them."""
    parameters = dict(model.model.named_parameters())
    quantised = any(isinstance(p, QuantizedTensor) for p in parameters.values())
    return {} if quantised else {name: id(p) for name, p in parameters.items()}


def _parts(value: Tensor) -> list[Tensor]:
    if not isinstance(value, QuantizedTensor):
        return [value]
    return [getattr(value, name) for name in value.__tensor_flatten__()[0]]


def _bytes(value: Tensor) -> bytes:
    return value.detach().as_subclass(Tensor).contiguous().flatten().view(torch.uint8).numpy().tobytes()


@torch.inference_mode()
def loaded_stored(models, family: str, folder: Path, form: str) -> tiny.Loaded:
    others = models(family)
    return tiny.Loaded(load_stored(family, folder, form), others.clip, others.vae, others.prior_vae)


def same_gradient(family: str, trio: tiny.Loaded, error: float = 1e-4) -> None:
    """As that of an fp32 model with the very same weights; the model is left as it was.

    On a CPU all types compute in fp32 unless told otherwise, so that nothing but the order of sums differs.
    """
    before, objects = stored(trio.model), identities(trio.model)
    found, wanted = gradient(trio.model, trio.clip), gradient(dequantised(family, trio.model), trio.clip)
    assert wanted.norm() > 0 and torch.isfinite(found).all()
    assert relative_error(found, wanted) < error
    assert stored(trio.model) == before and identities(trio.model) == objects


def trains_saves_and_stacks(trio: tiny.Loaded, data: Any) -> None:
    text, latent = encode(trio.clip, "a red heart"), torch.zeros(tiny.latent_shape(trio.model))
    before, picture = stored(trio.model), sampled(trio.model, text, latent)
    _, losses, adapter, *_ = train(trio, data)
    assert len(losses["loss"]) == 2
    assert sum(layer.norm() > 0 for layer in adapter.layers.values()) >= 0.7 * len(adapter.layers)
    assert stored(trio.model) == before
    assert torch.equal(sampled(trio.model, text, latent), picture)
    name, report = run_node(SaveLora, adapter=adapter, model=trio.model, name="a", format="comfyui", dtype="fp32")
    assert f"0 unmatched, {len(adapter.layers)} layers applied" in report
    patched = run_node(LoadLoraStack, model=trio.model, lora_1=name, strength_1=5.0, text_strength_1=1.0)[0]
    assert not torch.equal(sampled(patched, text, latent), picture)
    comfy.model_management.unload_model_and_clones(patched)
    assert stored(trio.model) == before


@pytest.mark.verifies("Base types", "{form}")
@pytest.mark.parametrize(("family", "form"), PLAIN)
def test_gradient_is_that_of_the_weights_in_fp32(models, tmp_path: Path, family: str, form: str) -> None:
    same_gradient(family, loaded_stored(models, family, tmp_path, form))


@pytest.mark.parametrize(("family", "form"), PACKED)
def test_gradient_is_that_of_the_weights_dequantised(models, tmp_path: Path, family: str, form: str) -> None:
    same_gradient(family, loaded_stored(models, family, tmp_path, form))


@pytest.mark.parametrize(("family", "form"), WHOLE)
def test_trains_saves_and_stacks(models, loras: Path, data, tmp_path: Path, family: str, form: str) -> None:
    trains_saves_and_stacks(loaded_stored(models, family, tmp_path, form), data)


@pytest.mark.parametrize("form", ["fp16", "bf16", "fp8_e4m3fn", "scaled_fp8", "nvfp4", "int8_convrot", "convrot_w4a4"])
def test_gradient_when_computing_in_bf16(models, tmp_path: Path, form: str) -> None:
    """As on a GPU. bf16 rounds to 2^-9, some dozens of times on the way."""
    trio = loaded_stored(models, "flux1", tmp_path, form)
    trio.model.set_model_compute_dtype(torch.bfloat16)
    same_gradient("flux1", trio, error=0.05)


@pytest.mark.parametrize("form", ["bf16", "nvfp4"])
def test_no_cast_weight_is_kept_for_the_backward_pass(models, tmp_path: Path, form: str) -> None:
    trio, kept = loaded_stored(models, "flux1", tmp_path, form), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        gradient(trio.model, trio.clip, Measures(False))
    exact = dict(dequantised("flux1", trio.model).model.diffusion_model.named_parameters())
    own = trio.model.model.diffusion_model.named_parameters()
    cast = [name for name, p in own if p.ndim == 2 and (isinstance(p, QuantizedTensor) or p.dtype != torch.float32)]
    weights = [exact[name] for name in cast]
    both_ways = [way for weight in weights for way in (weight, weight.T)]
    assert cast and kept and not any(torch.equal(tensor, way) for tensor in kept for way in both_ways)


@pytest.mark.parametrize(
    ("family", "form"), [("sd15", "fp16"), ("sd15", "nvfp4"), ("flux1", "fp16"), ("flux1", "int8_convrot")]
)
def test_weights_cast_once_give_the_same_bits(models, tmp_path: Path, monkeypatch, family: str, form: str) -> None:
    """And are cast once, of convolutions, too, where otherwise each is cast for every use."""
    trio, casts = loaded_stored(models, family, tmp_path, form), []
    original = comfy.ops.cast_bias_weight

    def counted(module, *args, **kwargs):
        casts.append(module)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
    each = gradient(trio.model, trio.clip)
    uses = Counter(casts)
    casts.clear()
    assert torch.equal(gradient(trio.model, trio.clip, Measures(keep_casts=True)), each)
    repeated = [module for module in trio.model.model.diffusion_model.modules() if uses[module] > 1]
    cast = [m for m in repeated if isinstance(m.weight, QuantizedTensor) or m.weight.dtype != torch.float32]
    heavy = [module for module in cast if module.weight.ndim in (2, 4)]
    assert len(heavy) > 10 and {Counter(casts)[module] for module in heavy} == {1}
    assert all("forward" not in vars(module) for module in heavy)


def test_fp16_models_are_not_computed_in_fp16(models, tmp_path: Path) -> None:
    trio = loaded_stored(models, "flux1", tmp_path, "fp16")
    trio.model.set_model_compute_dtype(torch.float16)
    usual = trio.model.model.manual_cast_dtype
    with torch.inference_mode(), training_session(trio.model, checkpointing=False) as patcher:
        assert patcher.model.get_dtype_inference() in (torch.bfloat16, torch.float32)
    assert trio.model.model.manual_cast_dtype == usual


@pytest.mark.parametrize("form", LAYOUTS)
def test_layers_have_their_logical_shape(models, tmp_path: Path, form: str) -> None:
    quantised = loaded_stored(models, "flux1", tmp_path, form).model.model.diffusion_model
    plain = dict(models("flux1").model.model.diffusion_model.named_modules())
    taken = select(quantised, LoraConfig(4, 4.0, "all-linear"))
    assert taken.keys() == select(models("flux1").model.model.diffusion_model, LoraConfig(4, 4.0, "all-linear")).keys()
    assert all(weight_shape(layer) == tuple(plain[name].weight.shape) for name, layer in taken.items())


@pytest.mark.parametrize("form", ["fp32", "int8_rowwise"])
def test_training_on_top_of_a_stack(models, make_lora, loras: Path, data, tmp_path: Path, form: str) -> None:
    """In the weights, which ComfyUI quantises again, or beside them: the LoRA below is in the loss and tells runs
    apart."""
    trio = models("flux1") if form == "fp32" else loaded_stored(models, "flux1", tmp_path, form)
    before = stored(trio.model)
    make_lora("flux1", loras / "below.safetensors", size=0.5)
    losses = [train(trio, data)[1]["loss"][0]]
    for apply in ("weights", "beside"):
        row = {"lora_1": "below.safetensors", "strength_1": 1.0, "text_strength_1": 1.0, "apply": apply}
        below = run_node(LoadLoraStack, model=trio.model, **row)[0]
        losses.append(train(replace(trio, model=below), data)[1]["loss"][0])
    bare, inside, beside = losses
    assert abs(inside - bare) > 1e-3 * bare
    assert beside == pytest.approx(inside, rel=1e-5 if form == "fp32" else 0.02) and beside != bare
    assert stored(trio.model) == before


# -- kernels without a backward ----------------------------------------------------------------------------------------


def test_fast_fp8_layers(models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of --fast fp8_matrix_mult, whose kernel has no backward and changes its input in place."""
    path = tiny.write_model(tiny.FAMILIES["flux1"], tmp_path)
    options = {"dtype": torch.float8_e4m3fn, "custom_operations": comfy.ops.fp8_ops}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path), model_options=options)
    same_gradient("flux1", replace(models("flux1"), model=model))
    assert "Exception during fp8 op" not in caplog.text


@pytest.fixture
def only_for_sampling() -> Iterator[Any]:
    """An attention kernel without a backward in the place of the chosen one, as SageAttention comes to be there."""

    @attention.wrap_attn
    def kernel(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert not q.requires_grad, "no backward"
        return attention.attention_basic(q, k, v, *args, **kwargs)

    names = ("optimized_attention", "optimized_attention_masked")
    everywhere = [(m, n) for key, m in list(sys.modules.items()) if key.startswith("comfy.") for n in names]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in everywhere:
            if hasattr(module, name):
                patch.setattr(module, name, kernel)
        yield kernel


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_without_backward(models, only_for_sampling, family: str) -> None:
    trio = models(family)
    assert gradient(trio.model, trio.clip).norm() > 0
    assert attention.optimized_attention is only_for_sampling
    assert sys.modules["comfy.ldm.flux.math"].optimized_attention is only_for_sampling


def test_attention_that_layers_prefer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI has it from 0.38 on: a node chooses a kernel for a model, and every attention of it calls that one."""
    own = bridge_attention.attention_pytorch

    def newer(*args: Any, preferred_attention: Any = None, **kwargs: Any) -> Tensor:
        return (preferred_attention.function if preferred_attention else own)(*args, **kwargs)

    monkeypatch.setattr(bridge_attention, "attention_pytorch", newer)
    q, chosen = torch.randn(1, 4, 8, requires_grad=True), SimpleNamespace(function=lambda q, *_, **__: q.detach())
    with bridge_attention.differentiable_attention():
        found = attention.optimized_attention(q, q, q, 2, preferred_attention=chosen)
    assert torch.equal(found, own(q, q, q, 2)) and found.requires_grad


def test_attention_that_the_model_brings_along(models) -> None:
    """Packs put their kernel into a MODEL's options."""
    trio, model = models("flux1"), models("flux1").model.clone()

    def kernel(chosen: Any, *args: Any, **kwargs: Any) -> Tensor:
        return chosen(*args, **kwargs).detach()

    model.model_options["transformer_options"]["optimized_attention_override"] = kernel
    assert torch.equal(gradient(model, trio.clip), gradient(trio.model, trio.clip))
    assert model.model_options["transformer_options"]["optimized_attention_override"] is kernel


class Opaque(comfy.ops.manual_cast):
    """Layers whose kernel autograd knows nothing of."""

    class Linear(comfy.ops.manual_cast.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())


def test_layers_without_backward_are_refused_before_the_first_step(
    models, comfy_base: Path, data, tmp_path: Path
) -> None:
    path = tiny.write_model(tiny.FAMILIES["flux1"], tmp_path)
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path), model_options={"custom_operations": Opaque})
    with pytest.raises(ValueError, match=r"img_in is a Linear of .*, which has no backward.*load the base model as"):
        train(replace(models("flux1"), model=model), data)
    assert not list((comfy_base / "output" / "lora_loom").rglob("*.safetensors"))


# -- loaders of third parties ------------------------------------------------------------------------------------------


@pytest.fixture(params=["flux1", "sd35_large", "wan21"])
def foreign(request: pytest.FixtureRequest, models) -> tuple[str, tiny.Loaded]:
    row = tiny.FAMILIES[request.param]
    with torch.inference_mode():
        model = load_packed(row, tiny.built(row, "meta").diffusion_model)
    assert model.cached_patcher_init is None
    return row.name, replace(models(row.name), model=model)


def test_gradient_of_a_foreign_loader(foreign) -> None:
    same_gradient(*foreign)


def test_foreign_loader_trains_saves_and_stacks(foreign, loras: Path, data) -> None:
    trains_saves_and_stacks(foreign[1], data)


def test_stack_on_a_foreign_loader_is_the_stack(foreign, make_lora, loras: Path) -> None:
    """Its own patcher applies our patches when it unpacks a weight: the same picture as on the unpacked weights."""
    family, trio = foreign
    make_lora(family, loras / "a.safetensors", size=0.5)
    text, latent = encode(trio.clip, "a red heart"), torch.zeros(tiny.latent_shape(trio.model))
    one, other = (
        sampled(
            run_node(LoadLoraStack, model=model, lora_1="a.safetensors", strength_1=1.0, text_strength_1=1.0)[0],
            text,
            latent,
        )
        for model in (trio.model, dequantised(family, trio.model))
    )
    assert relative_error(one, other) < 1e-4
    assert relative_error(one, sampled(trio.model, text, latent)) > 0.01


# -- dynamic VRAM ------------------------------------------------------------------------------------------------------


@pytest.fixture
def dynamic(models) -> Iterator[tiny.Loaded]:
    """A MODEL as dynamic VRAM holds it while it is not in VRAM: fp32 from the file where bf16 is meant, regions of VRAM
    kept for its layers, and no way to read it again. What needs the GPU's driver is left out."""
    row = tiny.FAMILIES["flux1"]
    with torch.inference_mode():
        model = tiny.patcher_of(tiny.built(row, "cpu", torch.bfloat16))
        fp32 = models("flux1").model.model.diffusion_model.state_dict()
        model.model.diffusion_model.load_state_dict({k: v.clone() for k, v in fp32.items()}, assign=True)
    model.model.diffusion_model.img_in._v, model.model.diffusion_model.img_in._v_signature = "region", 7
    model.__class__ = comfy.model_patcher.ModelPatcherDynamic
    yield replace(models("flux1"), model=model)
    model.__class__ = comfy.model_patcher.ModelPatcher


def test_dynamic_vram_steps_aside(dynamic) -> None:
    network = dynamic.model.model.diffusion_model
    before, objects = stored(dynamic.model), identities(dynamic.model)
    with torch.inference_mode(), training_session(dynamic.model, checkpointing=False) as patcher:
        assert type(patcher) is comfy.model_patcher.ModelPatcher and patcher.model is dynamic.model.model
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}, "what the model is meant to have"
        assert not hasattr(network.img_in, "_v")
    assert (network.img_in._v, network.img_in._v_signature) == ("region", None)
    assert stored(dynamic.model) == before and identities(dynamic.model) == objects
    assert dynamic.model.is_dynamic() and not dynamic.model.backup


def test_dynamic_vram_shares_its_memory(dynamic) -> None:
    network = dynamic.model.model.diffusion_model.to(torch.bfloat16)
    places = {name: p.data_ptr() for name, p in network.named_parameters()}
    with torch.inference_mode(), training_session(dynamic.model, checkpointing=False):
        assert {name: p.data_ptr() for name, p in network.named_parameters()} == places


def test_dynamic_vram_trains_on_top_of_a_stack(dynamic, make_lora, loras: Path, data) -> None:
    before, objects = stored(dynamic.model), identities(dynamic.model)
    make_lora("flux1", loras / "below.safetensors", size=0.5)
    bare = train(dynamic, data)[1]
    below = run_node(
        LoadLoraStack, model=dynamic.model, lora_1="below.safetensors", strength_1=1.0, text_strength_1=1.0
    )[0]
    below.__class__ = comfy.model_patcher.ModelPatcherDynamic
    assert train(replace(dynamic, model=below), data)[1] != bare
    below.__class__ = comfy.model_patcher.ModelPatcher
    assert stored(dynamic.model) == before and identities(dynamic.model) == objects


def test_dynamic_vram_of_a_quantised_model(models, loras: Path, data, tmp_path: Path) -> None:
    trio = loaded_stored(models, "flux1", tmp_path, "nvfp4")
    objects = {name: id(value) for name, value in trio.model.model.named_parameters()}
    trio.model.__class__ = comfy.model_patcher.ModelPatcherDynamic
    with torch.inference_mode(), training_session(trio.model, checkpointing=False):
        assert not any(id(value) in objects.values() for value in trio.model.model.parameters())
    same_gradient("flux1", trio)
    trio.model.__class__ = comfy.model_patcher.ModelPatcher
    trains_saves_and_stacks(trio, data)
