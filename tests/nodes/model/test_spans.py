"""Every kind for a part of sampling, beside layers of few bits, and in ComfyUI's memory planning."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_prefetch
import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import tiny
import tiny.packed
import tiny.stored
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import BypassInjectionManager
from comfy.weight_adapter.lora import LoRAAdapter
from harness.calls import encode, relative_error, sampled
from harness.kinds import MAKERS, randn, written
from lora_loom.lora_core.kinds import OFT, Difference, GLoRA, Padded
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.chain import Step, applied, chain
from lora_loom.lora_core.stack.rows import Row
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.bridge.model.spans import ALWAYS, Now, Timed
from lora_loom.nodes.bridge.model.weights import ComfyWeightReader
from lora_loom.nodes.bridge.stack import bypass_injection
from lora_loom.nodes.bridge.stack.apply_chain import apply_chain
from lora_loom.nodes.bridge.stack.apply_stack import Applied, apply_stack
from lora_loom.nodes.bridge.stack.entries import load_rows
from safetensors.torch import save_file
from torch import Tensor, nn

CPU = torch.device("cpu")
EARLY, LATE = (0.0, 0.5), (0.5, 1.0)
GLORA = ((24, 3), (3, 24), (32, 3), (3, 24))


@torch.inference_mode()
def forward(model: Any, clip: Any, share: float) -> Tensor:
    """Return what the model makes of pure noise at that share of its schedule."""
    latent, text = torch.zeros(tiny.latent_shape(model)), encode(clip, "a red heart")
    sigma = model.get_model_object("model_sampling").percent_to_sigma(share)
    noise = comfy.sample.prepare_noise(latent, 3)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0])
    return comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, text, text, latent)


def split(rows: Sequence[tuple[str, float]]) -> list[Row]:
    """Each row as two that meet in the middle of sampling."""
    return [Row(name, strength, 0.0, "", *span) for name, strength in rows for span in (EARLY, LATE)]


def on(model: Any, rows: Sequence[Row], apply: str = "auto") -> Applied:
    return apply_stack(model, None, rows, [], apply)


CASES = [
    *((kind, "sd15") for kind in MAKERS),
    *((kind, "flux1") for kind in ("DoRA per row", "LoKr", "full difference")),
]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_two_halves_of_sampling_are_the_whole(models, loras: Path, kind: str, family: str) -> None:
    """Rows in two parts are what rows in the weights are, in both parts; one part is that in its own and nothing else.
    The order of the rows counts as it does in the weights."""
    model, clip = models(family).model, models(family).clip
    plain, file = written(loras, "LoRA", model, family), written(loras, kind, model, family)
    rows = [(plain, 0.7), (file, 0.8), (file, -0.3), (plain, -0.5)]
    halves, first = on(model, split(rows)), on(model, split(rows)[::2])
    whole = on(model, [Row(name, strength, 0.0) for name, strength in rows], "weights").model
    assert "weights changed" not in halves.report and "on for part of sampling" in halves.report
    for share in (0.1, 0.9):
        wanted, base = forward(whole, clip, share), forward(model, clip, share)
        change = relative_error(base, wanted)
        assert change > 1e-3 and relative_error(forward(halves.model, clip, share), wanted) < 1e-4 * min(change, 1)
        early = forward(first.model, clip, share)
        assert relative_error(early, wanted) < 1e-4 if share < 0.5 else torch.equal(early, base)


def test_what_comfyui_has_captured_is_dropped_when_a_row_turns(models, loras: Path, monkeypatch) -> None:
    """Newer versions replay blocks as CUDA graphs, with what was on at their capture."""
    model, clip = models("sd15").model, models("sd15").clip
    rows = [Row(written(loras, "LoRA", model, "sd15"), 0.7, 0.0, "", *EARLY)]
    patched, network, seen = on(model, rows).model, model.model.diffusion_model, []
    dropped = {network: "dropped"}
    monkeypatch.setattr(
        comfy.model_prefetch, "_drop_graph", lambda m: seen.extend([dropped[m]] if m in dropped else []), raising=False
    )
    (stack,) = bypass_injection._owners(patched)[0]
    handle = network.register_forward_pre_hook(lambda *_: seen.append("off" if stack.clock.now.off else "on"))
    sampled(patched, encode(clip, "a red heart"), torch.zeros(tiny.latent_shape(model)), steps=4)
    handle.remove()
    first, turn, end = seen.index("on"), seen.index("off"), len(seen) - seen[::-1].index("off")
    assert set(seen[:first]) == {"dropped"} == {seen[turn - 1]}
    assert set(seen[first : turn - 1]) == {"on"} and set(seen[turn:end]) == {"off"}
    comfy.model_management.unload_all_models()
    assert seen[-1] == "dropped"


def test_parts_come_after_what_is_always_on(models, loras: Path) -> None:
    """A row that is on for a part finds the weight as the others have left it, wherever it stands."""
    model, clip = models("sd15").model, models("sd15").clip
    plain, file = written(loras, "LoRA", model, "sd15"), written(loras, "DoRA per row", model, "sd15")
    timed = on(model, [Row(file, 0.8, 0.0, "", 0.0, 0.99), Row(plain, 0.7, 0.0)])
    after, before = (
        on(model, [Row(name, strength, 0.0) for name, strength in rows]).model
        for rows in ([(plain, 0.7), (file, 0.8)], [(file, 0.8), (plain, 0.7)])
    )
    wanted, other = forward(after, clip, 0.3), forward(before, clip, 0.3)
    assert relative_error(forward(timed.model, clip, 0.3), wanted) < 1e-4 * relative_error(other, wanted)


def test_norms_and_biases_for_a_part_of_sampling(models) -> None:
    model, clip = models("flux1").model, models("flux1").clip
    names = ["single_blocks.0.norm.key_norm.weight", "double_blocks.0.img_mlp.0.bias", "final_layer.linear.bias"]
    held = model.model.state_dict()
    keys = [f"diffusion_model.{name}" for name in names]
    steps = {key: Step(Difference(randn(*held[key].shape, seed=seed)), 0.7) for seed, key in enumerate(keys)}
    timed = apply_chain(model, None, {}, spans={key: [Timed(step, EARLY)] for key, step in steps.items()})[0]
    whole = apply_chain(model, None, {key: [step] for key, step in steps.items()})[0]
    assert not timed.patches
    wanted, base = forward(whole, clip, 0.1), forward(model, clip, 0.1)
    assert relative_error(forward(timed, clip, 0.1), wanted) < 1e-5 < 1e-3 < relative_error(base, wanted)
    assert torch.equal(forward(timed, clip, 0.9), forward(model, clip, 0.9))


def test_what_no_layer_casts_is_refused(models) -> None:
    model = models("flux1").model
    shape = model.model.diffusion_model.img_in.weight.shape
    wider = Padded(LowRank(torch.ones(2, 2 * shape[1]), torch.ones(shape[0], 2), 2.0))
    with pytest.raises(
        ValueError, match=r"img_in.weight is in a Linear, where widening LoRA cannot be on for only part"
    ):
        apply_chain(model, None, {}, spans={"diffusion_model.img_in": [Timed(Step(wider), EARLY)]})
    wan = models("wan21").model
    raw = Step(Difference(torch.ones_like(wan.model.diffusion_model.head.modulation)))
    with pytest.raises(ValueError, match=r"head.modulation is in a Head, where full difference .* start to 0"):
        apply_chain(wan, None, {}, spans={"diffusion_model.head.modulation": [Timed(raw, EARLY)]})


# -- beside layers of few bits -----------------------------------------------------------------------------------------

SIZES = {"LoHa": 1.2, "LoKr": 1.0, "GLoRA": 0.4, "OFT": 0.05, "BOFT": 0.05, "full difference": 0.02}


class Layers:
    """Layers of few bits and what a row of a kind should make of them, in fp64."""

    def __init__(self, model: Any, row: Row):
        self.model, self.steps = model, {}
        for name, steps in chain(load_rows([row], names_of(model))).items():
            if not name.endswith(".bias"):
                self.steps[name] = steps
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model], force_full_load=True)
            weights = {name: self._module(name).weight for name in self.steps}
            self.bases = {
                n: (w.dequantize() if isinstance(w, QuantizedTensor) else w).cpu().double() for n, w in weights.items()
            }
            self.wanted = {name: applied(self.bases[name], steps) for name, steps in self.steps.items()}

    def loudness(self) -> float:
        """Return the size of the largest correction, relative to its weight."""
        return max(relative_error(self.wanted[name], base) for name, base in self.bases.items())

    def error(self, patched: Any) -> float:
        """How far the layers' outputs are from those with the corrected weight, relative to what that changes."""
        off, change = 0.0, 0.0
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([patched], force_full_load=True)
            for name, base in self.bases.items():
                module = self._module(name)
                x = torch.randn(1, 16, base.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
                bias = 0 if module.bias is None else module.bias.cpu().double()
                wanted = x.double() @ self.wanted[name].T
                off += float((module(x.to(patched.load_device)).cpu().double() - bias - wanted).square().sum())
                change += float((x.double() @ base.T - wanted).square().sum())
            comfy.model_management.unload_all_models()
        return (off / change) ** 0.5

    def _weight(self, name: str) -> Tensor:
        weight = self._module(name).weight
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def _module(self, name: str) -> nn.Module:
        return self.model.model.get_submodule(name)


@pytest.mark.parametrize(("form", "kinds"), [
    ("fp8_e4m3fn", MAKERS), ("float8_e4m3fn", ["LoKr"]), ("int8_rowwise", ["LoHa"]), ("nvfp4", ["DoRA per row"]),
])  # fmt: skip
def test_every_kind_beside_layers_of_few_bits(loras: Path, tmp_path: Path, form: str, kinds: Sequence[str]) -> None:
    with torch.inference_mode():
        model = tiny.stored.load_stored("flux1", tmp_path, form)
    for kind in kinds:
        row = Row(written(loras, kind, model, "flux1", SIZES.get(kind, 1.0)), 0.8, 0.0)
        layers = Layers(model, row)
        ways = on(model, [row]), on(model, [row], "weights"), on(model, [row], "beside")
        assert "weights changed" not in ways[0].report and "beside" not in ways[1].report
        assert [" of these are computed again" in each.report for each in ways] == [True, False, True]
        by_branch, by_weight, as_chosen = (layers.error(each.model) for each in ways)
        assert by_branch < 0.1 and by_branch == as_chosen and by_branch < 0.3 * by_weight, (kind, layers.loudness())


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_rowwise", "nvfp4"])
def test_a_quantised_layer_is_itself_while_a_row_is_off(models, loras: Path, tmp_path: Path, form: str) -> None:
    """Also where it multiplies quantised, which it does not with a weight that is corrected."""
    with torch.inference_mode():
        model, clip = tiny.stored.load_stored("flux1", tmp_path, form), models("flux1").clip
    row = Row(written(loras, "DoRA per row", model, "flux1"), 0.8, 0.0, "", *EARLY)
    timed, always = on(model, [row]).model, on(model, [Row(*row)]).model
    base = forward(model, clip, 0.9)
    assert torch.equal(forward(timed, clip, 0.9), base) and not torch.equal(forward(always, clip, 0.9), base)
    assert torch.equal(forward(timed, clip, 0.1), forward(always, clip, 0.1))


@pytest.mark.parametrize("kind", ["DoRA per row", "LoKr"])
def test_layers_of_third_parties(models, loras: Path, kind: str) -> None:
    """They apply other kinds to the weight that they unpack, where nothing is lost; a part of sampling is added."""
    clip, row = models("flux1").clip, tiny.FAMILIES["flux1"]
    with torch.inference_mode():
        model = tiny.packed.load_packed(row, tiny.built(row, "meta").diffusion_model)
    file, plain = written(loras, kind, model, "flux1"), written(loras, "LoRA", model, "flux1")
    rows = [(plain, 0.5), (file, 0.8)]
    whole = on(model, [Row(name, strength, 0.0) for name, strength in rows])
    timed = on(model, [Row(name, strength, 0.0, "", *EARLY) for name, strength in rows])
    assert "weights changed" in whole.report and "weights changed" not in timed.report
    wanted, base = forward(whole.model, clip, 0.1), forward(model, clip, 0.1)
    assert relative_error(forward(timed.model, clip, 0.1), wanted) < 0.02 * relative_error(base, wanted)
    assert torch.equal(forward(timed.model, clip, 0.9), forward(model, clip, 0.9))


@pytest.mark.parametrize("kind", ["LoKr", "DoRA per row"])
def test_text_encoders(models, loras: Path, kind: str) -> None:
    model, clip = models("sd15").model, models("sd15").clip
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    shape = names_of(model, clip).shapes[names_of(model, clip).targets[name].layer]
    save_file(MAKERS[kind](name, tuple(shape)) | {f"{name}.diff_b": randn(shape[0])}, loras / "text.safetensors")
    ways = [apply_stack(model, clip, [Row("text.safetensors", 0.0, 0.6)], [], apply) for apply in ("beside", "weights")]
    assert not ways[0].clip.patcher.patches and ways[1].clip.patcher.patches
    plain, by_branch, by_weight = (encode(each, "a heart")[0][0] for each in (clip, *(way.clip for way in ways)))
    assert relative_error(by_branch, by_weight) < 1e-5 < 1e-3 < relative_error(plain, by_weight)


# -- with other nodes --------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = comfy.ops.manual_cast.Linear(24, 32, dtype=torch.float32)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(randn(*parameter.shape))


def small() -> ModelPatcher:
    with torch.inference_mode():
        return ModelPatcher(Network(), CPU, CPU)


def low_rank(seed: int) -> LowRank:
    return LowRank(randn(3, 24, seed=seed), randn(32, 3, seed=seed + 1), 3.0)


def oft(seed: int) -> OFT:
    return OFT(randn(4, 8, 8, seed=seed))


def put(model: Any, *changes: Any, span: tuple[float, float] = ALWAYS) -> Any:
    steps = [Step((change,) if isinstance(change, LowRank) else change, 1.0) for change in changes]
    if span == ALWAYS:
        return apply_chain(model, None, {"layer": steps}, "beside")[0]
    return apply_chain(model, None, {}, spans={"layer": [Timed(step, span) for step in steps]})[0]


def test_stacks_add_up_with_each_other_and_with_other_nodes() -> None:
    """Corrections of the weight follow each other in the order of the stacks, after what other loaders have written;
    branches, ComfyUI's bypass among them, add to what comes of them."""
    model, other, theirs = small(), low_rank(5), low_rank(7)
    adapter = LoRAAdapter(set(), (theirs.lora_B, theirs.lora_A, theirs.alpha, None, None, None))
    manager = BypassInjectionManager()
    manager.add_adapter("layer.weight", adapter, 0.6)
    first = put(model, low_rank(1), oft(2), span=EARLY)
    first.set_injections("bypass_lora", manager.create_injections(model.model))
    every = put(put(first, other), oft(3))
    every.add_patches({"layer.weight": adapter}, 0.4)
    module, x = model.model.layer, randn(4, 24, seed=9)
    written = [Step((theirs.scaled(0.4),)), Step((low_rank(1),)), Step(oft(2)), Step(oft(3))]
    added = other.to(torch.float64).delta_weight() + 0.6 * theirs.to(torch.float64).delta_weight()
    wanted = x.double() @ (applied(module.weight.double(), written) + added).T
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        plain, bias = module(x), module.bias.double()
        for patcher in (every, model, first, every):
            comfy.model_management.load_models_gpu([patcher], force_full_load=True)
            assert (relative_error(module(x) - bias, wanted) < 1e-5) == (patcher is every)
        every.partially_unload(CPU, 1)
        assert len(module.weight_function) == 3 and relative_error(module(x) - bias, wanted) < 1e-5
        comfy.model_management.unload_all_models()
        assert torch.equal(module(x), plain) and not module.weight_function and not module._forward_hooks


def test_parts_of_two_stacks_keep_their_order() -> None:
    """However often they are switched."""
    model = small()
    early, late = put(model, oft(1), span=EARLY), (0.25, 0.75)
    both = put(put(early, oft(2)), oft(3), span=late)
    comfy.model_management.load_models_gpu([both])
    module, (one, two, three) = model.model.layer, [steps(each) for each in both.injections.values()]
    for sides in (({EARLY}, {late}), (set(), {late}), ({EARLY}, set()), (set(), set())):
        for owner, off in ((one, sides[0]), (three, sides[1])):
            owner._set(model.model, Now(frozenset(off)))
        wanted = [
            owner.ways["layer.weight"] for owner, off in ((one, sides[0]), (two, ()), (three, sides[1])) if not off
        ]
        assert module.weight_function == wanted
    comfy.model_management.unload_all_models()
    assert not module.weight_function


def steps(injections: Sequence[Any]) -> bypass_injection.Beside:
    return injections[0].inject.__self__


def test_copies_of_a_model_run_in_threads() -> None:
    """As with several GPUs: each copy in its own part of sampling, all from one set of factors."""
    model, change, x = small(), oft(1), randn(4, 24, seed=9)
    patcher = put(model, change, low_rank(2), span=EARLY)
    with torch.inference_mode():
        twin = patcher.clone(model_override=(Network(), ({}, {}, {}, set())))
    assert patcher.model_patches_models() == twin.model_patches_models()
    (owner,), started = [steps(each) for each in patcher.injections.values()], threading.Barrier(2)

    @torch.inference_mode()
    def run(each: Any, off: frozenset) -> Tensor:
        owner._set(each.model, Now(off))
        started.wait()
        return each.model.layer(x)

    with torch.inference_mode(), ThreadPoolExecutor(2) as pool:
        plain = model.model.layer(x)
        comfy.model_management.load_models_gpu([patcher, twin])
        on, off = (pool.submit(run, each, off) for each, off in ((patcher, frozenset()), (twin, frozenset({EARLY}))))
        assert torch.equal(off.result(), plain) and relative_error(plain, on.result()) > 0.1
        comfy.model_management.unload_all_models()
    assert not model.model.layer.weight_function and not twin.model.layer.weight_function


def test_dora_is_trained_on_the_weight_that_is_computed_with() -> None:
    model = small()
    patcher = put(model, GLoRA(*(randn(*each) for each in GLORA)))
    comfy.model_management.load_models_gpu([patcher])
    module, frozen = model.model.layer, ComfyWeightReader()
    weight = frozen.times(module, torch.eye(24)).T
    assert torch.allclose(frozen.norms(module), weight.norm(dim=1)) and not torch.allclose(weight, module.weight)
    comfy.model_management.unload_all_models()


def test_content_tells_corrections_apart() -> None:
    model = small()
    changes = [
        (oft(1),),
        (oft(2),),
        (OFT(oft(1).blocks, 0.5),),
        (low_rank(1),),
        (low_rank(1).scaled(2.0),),
        (low_rank(1), oft(1)),
    ]
    found = [bypass_injection.content(put(model, *each))[0] for each in changes]
    found += [bypass_injection.content(put(model, oft(1), span=EARLY))[0]]
    assert len(set(found)) == len(found) and bypass_injection.content(put(model, oft(1))) == found[:1]


# -- in ComfyUI's memory planning --------------------------------------------------------------------------------------


def planned(patcher: Any, monkeypatch) -> float:
    """Return how many bytes ComfyUI wants room for when it loads the MODEL."""
    wanted: list[float] = []
    own = comfy.model_management.LoadedModel.model_memory_required
    with monkeypatch.context() as patch:
        patch.setattr(
            comfy.model_management.LoadedModel, "model_memory_required",
            lambda self, device: wanted.append(own(self, torch.device("meta"))) or wanted[-1],
        )  # fmt: skip
        comfy.model_management.load_models_gpu([patcher])
    return sum(wanted)


def size(changes: Sequence[Any]) -> int:
    return sum(
        t.nbytes
        for each in changes
        for t in ((each.lora_A, each.lora_B) if isinstance(each, LowRank) else each.tensors())
    )


@pytest.mark.parametrize("changes", [(low_rank(1), low_rank(2)), (oft(1), Difference(randn(32, 24)))])
def test_comfyui_plans_for_the_factors_and_frees_them(changes: tuple, monkeypatch) -> None:
    model = small()
    base = planned(model, monkeypatch)
    comfy.model_management.unload_all_models()
    patcher = put(model, *changes)
    (factors,) = patcher.model_patches_models()
    assert planned(patcher, monkeypatch) == base + size(changes)
    assert factors.loaded_size() == factors.model_size() == size(changes)
    clone = patcher.clone()
    assert clone.model_patches_models() == [factors]
    assert copy.deepcopy(clone.model_options) == clone.model_options
    clone.add_patches({"layer.bias": (torch.ones(32),)}, 0.5)  # another loader after ours
    comfy.model_management.load_models_gpu([clone])
    assert factors.loaded_size() == size(changes)
    patcher.detach()
    assert factors.loaded_size() == 0
    comfy.model_management.load_models_gpu([patcher])
    assert factors.loaded_size() == size(changes)
    loaded_models = comfy.model_management.current_loaded_models
    del factors, patcher, clone
    comfy.model_management.load_models_gpu([model])
    gc.collect()
    assert [each.model for each in loaded_models] == [model], "with the MODEL's last clone the factors are gone"
    comfy.model_management.unload_all_models()
