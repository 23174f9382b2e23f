"""How a stack gets onto a model: exchanged without drift, beside layers of few bits, for a part of sampling."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.ops
import pytest
import tiny
import tiny.packed
import tiny.stored
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.lora import LoRAAdapter
from harness.calls import encode, loaded, relative_error, run_node, sampled
from lora_loom.lora_core.families.blocks import strengths
from lora_loom.lora_core.files import store
from lora_loom.lora_core.kinds import DoRA
from lora_loom.lora_core.kinds.full import Difference
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.chain import Step, applied
from lora_loom.lora_core.weight_sum import write_sum
from lora_loom.nodes.bridge.model.names import NameTable
from lora_loom.nodes.bridge.model.spans import ALWAYS, Timed, is_on
from lora_loom.nodes.bridge.stack.apply_chain import apply_chain
from lora_loom.nodes.bridge.stack.quick_patchers import StaticPatcher
from lora_loom.nodes.load_stack import LoadLoraStack
from torch import Tensor, nn

import nodes

CPU = torch.device("cpu")


class Network(nn.Module):
    """Three layers in ComfyUI's own classes."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        ops, kinds = comfy.ops.manual_cast, {"dtype": dtype}
        self.first, self.second = ops.Linear(24, 32, **kinds), ops.Linear(32, 32, **kinds)
        self.conv = ops.Conv2d(2, 6, 3, padding=1, **kinds)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


LAYERS = {"first": (32, 24), "second": (32, 32), "conv": (6, 2, 3, 3)}


def small(dtype: torch.dtype = torch.float32) -> ModelPatcher:
    with torch.inference_mode():
        return ModelPatcher(Network(dtype), CPU, CPU)


def low_rank(layer: str, seed: int, rank: int = 3) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    out, columns, *kernel = LAYERS[layer]
    for size in kernel:
        columns *= size
    factors = [torch.randn(shape, generator=generator) for shape in ((rank, columns), (out, rank))]
    return LowRank(*factors, 0.1 * rank, tuple(kernel))


FILES = [{layer: low_rank(layer, 10 * number + place) for place, layer in enumerate(LAYERS)} for number in range(3)]


def stacked(model: Any, strengths: Sequence[float], apply: str = "auto", span: tuple[float, float] = ALWAYS) -> Any:
    """`model` with the files at these strengths; those at 0 are left out."""
    on = [(file, strength) for file, strength in zip(FILES, strengths, strict=False) if strength]
    terms = {layer: tuple(file[layer].scaled(strength) for file, strength in on) for layer in LAYERS if on}
    if span != ALWAYS:
        timed = {layer: [Timed(Step(parts), span)] for layer, parts in terms.items()}
        return apply_chain(model, None, {}, apply, timed)[0]
    return apply_chain(model, None, {layer: [Step(parts)] for layer, parts in terms.items()}, apply)[0]


def weights(patcher: Any) -> dict[str, Tensor]:
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        return {name: value.clone() for name, value in patcher.model.state_dict().items()}


def fresh(patcher: Any) -> dict[str, Tensor]:
    """Its weights, loaded from a model that nothing is on."""
    comfy.model_management.unload_all_models()
    return weights(patcher)


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


def branch(layer: str, strengths: Sequence[float], x: Tensor) -> Tensor:
    """Return what the files add to a layer's output, in fp64."""
    delta = sum(s * file[layer].to(torch.float64).delta_weight() for file, s in zip(FILES, strengths, strict=True))
    if delta.ndim == 2:
        return x.double() @ delta.T
    return nn.functional.conv2d(x.double(), delta, padding=1)


def inputs(layer: str, dtype: torch.dtype) -> Tensor:
    shape = (2, 2, 8, 8) if layer == "conv" else (2, 5, LAYERS[layer][1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


# -- changes of strength -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "turns"), [(torch.float32, 200), (torch.bfloat16, 1000), (torch.float16, 200)])
def test_many_changes_of_strength_have_the_bits_of_a_fresh_load(dtype: torch.dtype, turns: int, monkeypatch) -> None:
    model, draw, restored = small(dtype), random.Random(0), []
    unpatch = ModelPatcher.unpatch_model
    monkeypatch.setattr(
        ModelPatcher, "unpatch_model",
        lambda self, device=None, unpatch_weights=True: restored.append(unpatch_weights)
        or unpatch(self, device, unpatch_weights),
    )  # fmt: skip
    weights(stacked(model, [1.0]))
    restored.clear()
    for turn in range(turns):
        chosen = [draw.choice((0.0, 1.0, draw.uniform(-2, 2))) for _ in FILES]
        patcher = stacked(model, chosen)
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        if turn % 100 == 99:
            assert not any(restored), "the model was restored and loaded again"
            assert same(weights(patcher), fresh(stacked(model, chosen)))
            restored.clear()
    before = fresh(model)
    assert same(weights(stacked(model, [0.0])), before) and same(weights(model), before)


def effective(patcher: Any) -> dict[str, Tensor]:
    """Weights as a forward uses them, those that are patched only then included."""
    found = {}
    for name, module in patcher.model.named_modules():
        for kind, value in module.named_parameters(recurse=False):
            found[f"{name}.{kind}"] = value.detach().clone()
            for function in getattr(module, f"{kind}_function", ()):
                found[f"{name}.{kind}"] = function(found[f"{name}.{kind}"])
    return found


def drawn_steps(draw: random.Random, layer: str, seed: int, kinds: Sequence[str]) -> list[Step]:
    term, shape = low_rank(layer, seed), LAYERS[layer]
    size = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed))
    made = {
        "plain": Step((term.scaled(draw.uniform(-1, 1)),)),
        "difference": Step(Difference(0.1 * term.delta_weight()), draw.uniform(-1, 1)),
        "dora": Step(DoRA(term, size), draw.uniform(0, 1)),
    }
    return [made[kind] for kind in draw.choice(kinds).split(", ")]


def after_steps(weight: Tensor, steps: Sequence[Step], apply: str) -> Tensor:
    if apply == "beside":  # plain LoRAs are branches then, which leave the weight alone
        return applied(weight, steps) if any(not isinstance(step.change, tuple) for step in steps) else weight
    for step in steps:
        plain = isinstance(step.change, tuple)
        weight = (
            write_sum(weight, step.change, weight.clone()) if plain else step.change.apply_to(weight, step.strength)
        )
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_changes_of_a_model_that_is_loaded_in_parts(dtype: torch.dtype, monkeypatch) -> None:
    """Also of which layers are changed, which ComfyUI goes by when it chooses what stays off the device; in fp32, where
    nothing is rounded, of kinds, their order, and what runs beside."""
    model, draw, exchanged = small(dtype), random.Random(0), []
    kinds = ("plain", "difference", "plain, dora", "dora, plain") if dtype == torch.float32 else ("plain",)
    renew = StaticPatcher._renew_forward_patches
    monkeypatch.setattr(
        StaticPatcher, "_renew_forward_patches", lambda self: exchanged.append(self) or renew(self)
    )  # fmt: skip
    plain, whole, before = dict(model.model.state_dict()), model.model_size(), None
    plain = {name: value.clone() for name, value in plain.items()}
    with torch.inference_mode():
        for turn in range(1000):
            chosen = {layer: drawn_steps(draw, layer, turn, kinds) for layer in LAYERS if draw.random() < 0.6}
            apply = draw.choice(["auto", "auto", "beside"]) if kinds[1:] else "auto"
            patcher = apply_chain(model, None, chosen, apply)[0]
            if before:
                before.detach(unpatch_all=draw.random() < 0.1)
            patcher.partially_load(CPU, draw.choice([draw.uniform(0.1, 1.2) * whole, 1e32]))
            for _ in range(draw.randint(0, 2)):
                way = draw.choice([patcher.partially_load, patcher.partially_unload])
                way(CPU, draw.uniform(0.05, 0.5) * whole)
            for name, value in effective(patcher).items():
                steps = chosen.get(name.removesuffix(".weight"), [])
                assert torch.equal(value, after_steps(plain[name], steps, apply)), (turn, name, apply)
            before = patcher
        assert len(exchanged) > 50
        before.detach(unpatch_all=True)
    assert same(model.model.state_dict(), plain)


def test_an_exchange_that_is_broken_off_leaves_nothing_half_done(monkeypatch) -> None:
    """As when memory runs out: whatever is loaded next is whole."""
    model = small()
    old, new = stacked(model, [1.0]), stacked(model, [-1.0])
    wanted, other = fresh(old), fresh(new)
    comfy.model_management.unload_all_models()
    weights(old)
    rewrite, done = StaticPatcher._rewrite, []

    def broken(self: StaticPatcher, key: str, device: torch.device) -> None:
        rewrite(self, key, device)
        done.append(key)
        raise RuntimeError("no memory")

    monkeypatch.setattr(StaticPatcher, "_rewrite", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        weights(new)
    monkeypatch.setattr(StaticPatcher, "_rewrite", rewrite)
    assert done and not same(wanted, other)
    assert same(weights(old), wanted) and same(weights(new), other)


def test_only_what_changed_is_written(monkeypatch) -> None:
    model, written = small(), []
    rewrite = StaticPatcher._rewrite
    monkeypatch.setattr(
        StaticPatcher, "_rewrite", lambda self, key, device: written.append(key) or rewrite(self, key, device)
    )
    first = {"first": [Step((FILES[0]["first"],))], "second": [Step((FILES[0]["second"],))]}
    weights(apply_chain(model, None, first)[0])
    changed = first | {"second": [Step((FILES[0]["second"].scaled(0.5),))]}
    patcher = apply_chain(model, None, changed)[0]
    weights(patcher)
    assert written == ["second.weight"]
    weights(apply_chain(model, None, changed)[0])
    assert written == ["second.weight"], "the same stack again writes nothing"
    weights(apply_chain(model, None, {"first": changed["first"]})[0])
    assert written == ["second.weight"] * 2
    assert same(weights(patcher), fresh(patcher))


def others(model: Any, seed: int) -> Any:
    """`model` with patches of other nodes: a LoRA, a bias, a merge of models."""
    layer = low_rank("first", seed)
    patcher = model.clone()
    patcher.add_patches({"first.weight": LoRAAdapter(set(), (layer.lora_B, layer.lora_A, 0.3, None, None, None))}, 0.7)
    patcher.add_patches({"second.bias": (torch.full((32,), 0.25),)}, 0.5)
    patcher.add_patches({"second.weight": (torch.ones(32, 32),)}, 0.1, 0.9)
    return patcher


def test_any_order_of_loading_unloading_and_other_nodes() -> None:
    """Whatever was on the model before, the weights and the output are those of a fresh load."""
    model, draw = small(), random.Random(1)
    x = inputs("first", torch.float32)

    def forward(patcher: Any) -> Tensor:
        network = patcher.model
        return torch.cat([network.second(network.first(x)).flatten(), network.conv(inputs("conv", x.dtype)).flatten()])

    kinds = [
        lambda: model,
        lambda: stacked(model, [draw.uniform(-1, 1), 0.5]),
        lambda: stacked(others(model, 1), [draw.uniform(-1, 1)]),
        lambda: others(stacked(model, [draw.uniform(-1, 1), 1.0, 0.3]), 2),
        lambda: stacked(stacked(model, [0.4]), [0.0, draw.uniform(-1, 1)]),
    ]
    with torch.inference_mode():
        for _ in range(60):
            patcher = draw.choice(kinds)()
            way = draw.choice(["full", "full", "low", "unload", "none"])
            if way == "unload":
                comfy.model_management.unload_all_models()
            comfy.model_management.load_models_gpu([patcher], force_full_load=way != "low")
            if way == "low":
                patcher.partially_unload(CPU, draw.choice([1, 5000]))
            elif way == "full":
                assert not patcher.model.model_lowvram or way == "low"
            found = forward(patcher)
            comfy.model_management.unload_all_models()
            comfy.model_management.load_models_gpu([patcher], force_full_load=True)
            assert relative_error(found, forward(patcher)) < (1e-6 if way == "low" else 1e-9), way
    before = fresh(model)
    assert same(before, {name: value for name, value in small().model.state_dict().items()})


class Gained(LoRAAdapter):
    """Comes from a pack that keeps more in its adapters than ComfyUI asks for."""

    gain = 1.0

    def calculate_weight(self, weight, *args, **kwargs):
        return weight + self.gain * super().calculate_weight(weight.clone(), *args, **kwargs)


def test_other_packs_adapters_are_told_apart_by_all_that_they_hold() -> None:
    model, layer = small(), low_rank("second", 5)
    factors = (layer.lora_B, layer.lora_A, layer.alpha, None, None, None)

    def gained(gain: float) -> Any:
        patcher, adapter = stacked(model, [0.5]), Gained(set(), factors)
        adapter.gain = gain
        patcher.add_patches({"second.weight": adapter})
        return patcher

    one, other = fresh(gained(1.0)), fresh(gained(2.0))
    assert same(weights(gained(1.0)), one) and same(weights(gained(2.0)), other) and not same(one, other)


@pytest.mark.parametrize("first", [True, False])
def test_other_nodes_before_and_after_give_what_comfyui_gives(first: bool) -> None:
    model = small()
    plain = others(model, 1) if first else model
    ours = stacked(plain, [0.5, -0.4])
    theirs = plain.clone()
    for file, strength in zip(FILES, (0.5, -0.4), strict=False):
        adapters = {
            f"{name}.weight": LoRAAdapter(set(), (layer.lora_B, layer.lora_A, layer.alpha, None, None, None))
            for name, layer in file.items()
        }
        theirs.add_patches(adapters, strength)
    if not first:
        ours, theirs = others(ours, 1), others(theirs, 1)
    by_us, by_core = weights(ours), weights(theirs)
    assert all(relative_error(by_us[name], by_core[name]) < 1e-6 for name in by_us)
    assert relative_error(by_us["first.weight"], fresh(model)["first.weight"]) > 0.1


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_a_strength_of_a_row_changes_what_it_must(models, loras: Path, make_lora, monkeypatch, family: str) -> None:
    """The whole node: files are read once, and only weights of the row are written."""
    adapter = make_lora(family, loras / "a.safetensors", preset="attention")
    make_lora(family, loras / "b.safetensors", preset="linear+conv", seed=1)
    model, read, written = models(family).model, [], []
    before = loaded(model)
    found = [loaded(stack(model, "<lora:a:0.5>\n<lora:b:0.3>")[0])]
    rewrite = StaticPatcher._rewrite
    monkeypatch.setattr(store, "read", lambda path: read.append(path))
    monkeypatch.setattr(
        StaticPatcher, "_rewrite", lambda self, key, device: written.append(key) or rewrite(self, key, device)
    )
    found.append(loaded(stack(model, "<lora:a:-1>\n<lora:b:0.3>")[0]))
    assert not read and set(written) == {f"{name}.weight" for name in adapter.layers}
    comfy.model_management.unload_all_models()
    assert same(found[1], loaded(stack(model, "<lora:a:-1>\n<lora:b:0.3>")[0])) and not same(found[0], found[1])
    assert same(loaded(model), before)


def stack(model: Any, rows: str, apply: str = "auto", clip: Any = None, before: Any = None) -> tuple:
    return run_node(LoadLoraStack, model=model, rows=rows, apply=apply, clip=clip, lora_stack=before)


# -- beside the layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_branch_is_the_product_it_stands_for(layer: str, dtype: torch.dtype) -> None:
    model, x, chosen = small(dtype), inputs(layer, dtype), [0.5, -0.4, 2.0]
    module = model.model.get_submodule(layer)
    with torch.inference_mode():
        patcher = stacked(model, chosen, "beside")
        comfy.model_management.load_models_gpu([patcher])
        with_branch = module(x)
        comfy.model_management.load_models_gpu([model])
        plain = module(x)
    wanted = plain.double() + branch(layer, chosen, x)
    assert with_branch.dtype == dtype and relative_error(with_branch, wanted) < 4 * torch.finfo(dtype).eps
    assert relative_error(plain, wanted) > 0.1


def _into_its_own(adapter: LoRAAdapter, forward: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As ComfyUI's LoRAs from 0.38 on are run beside a layer: the sum is written over what the LoRA gave."""
    output = forward(x, *args, **kwargs)
    change = adapter.h(x, output)
    return adapter.g(torch.add(output, change, out=change))


@pytest.mark.parametrize("newer", [False, True])
def test_branches_add_up_and_with_comfyuis_bypass(newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of ours around one of ComfyUI's; then taken off, put on again, in parts, and off."""
    if newer:
        monkeypatch.setattr(LoRAAdapter, "bypass_forward", _into_its_own)
    model, x = small(), inputs("second", torch.float32)
    layer = low_rank("second", 77)
    manager = comfy.weight_adapter.BypassInjectionManager()
    adapter = LoRAAdapter(set(), (layer.lora_B, layer.lora_A, layer.alpha, None, None, None))
    manager.add_adapter("second.weight", adapter, 0.6)
    inner = stacked(model, [0.5], "beside")
    inner.set_injections("bypass_lora", manager.create_injections(model.model))
    all_three = stacked(inner, [0.0, 0.0, -0.8], "beside")
    module = model.model.second
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        plain = module(x)
        bypass = x.double() @ (0.6 * layer.to(torch.float64).delta_weight()).T
        wanted = {
            all_three: branch("second", [0.5, 0.0, -0.8], x) + bypass,
            inner: branch("second", [0.5, 0.0, 0.0], x) + bypass,
            model: torch.zeros_like(plain),
        }
        for patcher in (all_three, inner, model, all_three, model, inner, all_three):
            comfy.model_management.load_models_gpu([patcher], force_full_load=True)
            assert relative_error(module(x) + 1, plain + wanted[patcher] + 1) < 1e-6
        all_three.partially_unload(CPU, 1)
        assert relative_error(module(x), plain + wanted[all_three]) < 1e-6
        comfy.model_management.unload_all_models()
        assert torch.equal(module(x), plain) and not module._forward_hooks


def test_a_collected_clone_leaves_the_branches_hanging() -> None:
    model, x = small(), inputs("first", torch.float32)
    patcher = stacked(model, [1.0], "beside")
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        wanted = model.model.first(x)
        clone = patcher.clone()
        assert clone.is_injected
        del clone
        gc.collect()
        assert torch.equal(model.model.first(x), wanted) and len(model.model.first._forward_hooks) == 1
        comfy.model_management.unload_all_models()
    assert not model.model.first._forward_hooks


FORMS = ["fp8_e4m3fn", "fp8_e5m2", *tiny.stored.LAYOUTS]


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_few_bits(models, loras: Path, make_lora, tmp_path: Path, form: str) -> None:
    """`auto` runs beside them, and each layer's change is the product in fp64 to the precision of its output."""
    adapter = make_lora("flux1", loras / "a.safetensors", size=0.02)
    with torch.inference_mode():
        model = tiny.stored.load_stored("flux1", tmp_path, form)
        patched, _, _, report, _ = stack(model, "<lora:a:0.8>")
        assert f"{len(adapter.layers)} layers applied beside the weight" in report and "weights changed" not in report
        assert "computed again" not in report
        comfy.model_management.load_models_gpu([patched])
        for name, low_rank in list(adapter.layers.items())[::3]:
            module = patched.model.get_submodule(name)
            x = torch.randn(1, 7, module.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
            with_branch = module(x)
            (hook,) = module._forward_hooks.values()
            module._forward_hooks.clear()
            plain = module(x)
            added = 0.8 * x.double() @ low_rank.to(torch.float64).delta_weight().T
            error = (with_branch.double() - plain.double() - added).norm()
            assert error < 2**-8 * with_branch.double().norm(), (name, error / added.norm())
            assert added.norm() > 0.005 * plain.norm()
            module._forward_hooks[0] = hook
        comfy.model_management.unload_all_models()


def test_a_base_of_a_loader_of_its_own(models, loras: Path, make_lora) -> None:
    """As GGUF's: packed layers get branches, and the patcher stays what it is."""
    make_lora("flux1", loras / "a.safetensors")
    row = tiny.FAMILIES["flux1"]
    with torch.inference_mode():
        model = tiny.packed.load_packed(row, tiny.built(row, "meta").diffusion_model)
    patched, _, _, report, _ = stack(model, "<lora:a:0.8>")
    assert "beside the weight (uint8 weights)" in report and type(patched) is type(model)
    for parameter in model.model.parameters():
        if parameter.dtype == torch.uint8:
            parameter.tensor_type = SimpleNamespace(name="Q8_0")  # gguf's own enumeration has such names
    assert "layers applied beside the weight (GGUF (Q8_0))" in stack(model, "<lora:a:0.8>")[3]
    text, latent = encode(models("flux1").clip, "a red heart"), torch.zeros(tiny.latent_shape(model))
    by_weight = stack(model, "<lora:a:0.8>", "weights")
    assert "patches weights itself (PackedPatcher)" in by_weight[3]
    plain, beside, weighted = (sampled(each, text, latent) for each in (model, patched, by_weight[0]))
    assert relative_error(beside, weighted) < 0.2 * relative_error(plain, weighted)


# -- a part of sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_a_span_is_a_run_switched_by_hand(models, loras: Path, make_lora, family: str) -> None:
    trio, steps = models(family), 6
    for name in "ab":
        make_lora(family, loras / f"{name}.safetensors", seed=ord(name), size=0.3)
    model = trio.model
    percent = model.get_model_object("model_sampling").percent_to_sigma
    sigmas = nodes.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    switch = next(index for index, sigma in enumerate(sigmas) if float(sigma) <= percent(0.6))
    assert 0 < switch < steps
    text, latent = encode(trio.clip, "a red heart"), torch.zeros(tiny.latent_shape(model))
    spans = "<lora:a:0.8:end=0.6>\n<lora:b:0.7:start=0.6>"
    scheduled, _, _, report, _ = stack(model, spans)
    assert "a: " in report and "from 0 to 0.6 of sampling" in report and "on for part of sampling" in report
    found = sampled(scheduled, text, latent, steps)
    early, late = (stack(model, rows, "beside")[0] for rows in ("<lora:a:0.8>", "<lora:b:0.7>"))
    with torch.inference_mode():
        (half,) = nodes.common_ksampler(
            early, 5, steps, 1.0, "euler", "simple", text, text, {"samples": latent}, last_step=switch
        )
        (whole,) = nodes.common_ksampler(
            late, 5, steps, 1.0, "euler", "simple", text, text, half, disable_noise=True, start_step=switch
        )
    unswitched = sampled(early, text, latent, steps)
    assert relative_error(found, whole["samples"]) < 0.01 * relative_error(unswitched, found) > 1e-6


def test_spans_that_meet_share_no_step() -> None:
    for sigma in (1.0, 0.5, 0.4999, 0.0):
        on = [is_on(span, sigma, lambda percent: 1 - percent) for span in ((0.0, 0.5), (0.5, 1.0))]
        assert sum(on) == 1
    assert is_on((0.0, 0.3), 1e9, lambda percent: 1 - percent) and is_on((0.3, 1.0), 0.0, lambda percent: 1 - percent)


def test_a_span_keeps_its_place_through_the_chain(models, loras: Path, make_lora) -> None:
    """A row from another stack keeps its blocks and span."""
    make_lora("sd15", loras / "a.safetensors")
    model = models("sd15").model
    _, _, rows, _, _ = stack(model, "<lora:a:1:end=0.5>")
    patched = stack(model, "", before=rows)[0]
    assert not patched.patches and len(patched.injections) == 1


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_blocks_scale_layers(models, loras: Path, make_lora) -> None:
    adapter = make_lora("sd15", loras / "a.safetensors")
    model = models("sd15").model
    text = "IN=0.5, *attn2*=0"
    factors = strengths(text, NameTable(model).shapes)
    scaled = [(name, low_rank, factors[name]) for name, low_rank in adapter.layers.items()]
    assert {factor for *_, factor in scaled} == {0.0, 0.5}
    patched, _, _, report, _ = stack(model, f"<lora:a:0.8:blocks={text}>")
    off = sum(factor == 0 for *_, factor in scaled)
    assert f"with strengths per block ({off} layers off)" in report and len(patched.patches) == len(scaled) - off
    before, after = loaded(model), loaded(patched)
    for name, low_rank, factor in scaled:
        delta = 0.8 * factor * low_rank.to(torch.float64).delta_weight()
        wanted = before[f"{name}.weight"].double() + delta
        assert relative_error(after[f"{name}.weight"], wanted) < 1e-6
    with pytest.raises(ValueError, match=r"double is not a block of this model, which has IN0-1, OUT0-1"):
        stack(model, "<lora:a:1:blocks=double=0>")
