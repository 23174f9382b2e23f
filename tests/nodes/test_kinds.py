"""Files of every kind ComfyUI can load, with the names real files have: the stack changes weights as its loaders do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import pytest
import torch
from harness.calls import loaded, relative_error, run_node
from harness.kinds import MAKERS, NAMES, dora, loha, lora, randn, written
from harness.layers import apply_layers
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.stack.rows import Row
from lora_loom.lora_core.stack.weighted import Weighted, exact_sum
from lora_loom.nodes.bridge.model.names import NameTable
from lora_loom.nodes.bridge.stack.apply_chain import KindPatch
from lora_loom.nodes.bridge.stack.apply_stack import apply_stack
from lora_loom.nodes.bridge.stack.quick_patchers import StaticPatcher
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.save_lora import SaveLora
from safetensors.torch import load_file, save_file

import nodes


@pytest.mark.verifies("Stack", "")
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_stack_of_a_kind_is_a_chain_of_comfyuis_loaders(models, loras: Path, kind: str, family: str) -> None:
    """Plain, kind, kind again, plain: order matters for some."""
    model = models(family).model
    other, plain = written(loras, kind, model, family), written(loras, "LoRA", model, family)
    rows = [(plain, 0.7, 0.0), (other, 0.8, 0.0), (other, -0.3, 0.0), (plain, -0.5, 0.0)]
    applied = apply_stack(model, None, rows, [])
    ours, report = applied.model, applied.report
    theirs = model
    for name, strength, _ in rows:
        theirs, _ = nodes.LoraLoader().load_lora(theirs, None, name, strength, 0.0)
    assert (
        "not applied" not in report
        and kind.removesuffix(" per row").removesuffix(" per column") in report.splitlines()[1]
    )
    before, by_us, by_core = loaded(model), loaded(ours), loaded(theirs)
    changed = {key for key in before if not torch.equal(before[key], by_core[key])}
    assert len(changed) >= 3
    for key, weight in before.items():
        if key not in changed:
            assert torch.equal(by_us[key], weight), key
        else:
            assert relative_error(by_us[key], by_core[key]) < 1e-6, key
    after = loaded(model)
    assert all(torch.equal(after[key], before[key]) for key in before), "taken off without a trace"


def test_what_core_streams_is_rebuilt(models, loras: Path) -> None:
    """Streams rebuild a patch from `loaded_keys` and `weights` alone, with the tensors where they were moved."""
    model = models("flux1").model
    row = (written(loras, "DoRA per row", model, "flux1"), 1.0, 0.0)
    patched = apply_stack(model, None, [row], []).model
    for key, patches in patched.patches.items():
        for _, value, *_ in patches:
            rebuilt = comfy.lora.prefetch_prepared_value(value, [0], None, None, False)
            weight = torch.randn(NameTable(model).shapes[key.removesuffix(".weight")])
            assert type(rebuilt) is KindPatch and rebuilt is not value and len(rebuilt.weights[2]) >= 3
            made = [patch.calculate_weight(weight.clone(), key, 1.0, 1.0, None, None) for patch in (rebuilt, value)]
            assert torch.equal(*made) and not torch.equal(made[0], weight)


def test_a_control_lora_widens_the_input(models, loras: Path) -> None:
    """As Black Forest Labs write them for FLUX.1: no prefix, norms replaced, biases, an input of twice the width."""
    model = models("flux1").model
    table = NameTable(model)
    rows, columns = table.shapes["diffusion_model.img_in"]
    norm = "single_blocks.0.norm.key_norm"
    tensors = {"img_in.lora_A.weight": randn(4, 2 * columns), "img_in.lora_B.weight": randn(rows, 4, seed=1)}
    tensors |= {"img_in.lora_B.bias": randn(rows), f"{norm}.scale": randn(*table.shapes[f"diffusion_model.{norm}"])}
    save_file(tensors, loras / "control.safetensors")
    ours = apply_stack(model, None, [("control.safetensors", 0.8, 0.0)], [])
    theirs, _ = nodes.LoraLoader().load_lora(model, None, "control.safetensors", 0.8, 0.0)
    before, by_us, by_core = loaded(model), loaded(ours.model), loaded(theirs)
    assert by_us["diffusion_model.img_in.weight"].shape == (rows, 2 * columns) and "not applied" not in ours.report
    assert all(relative_error(by_us[key], by_core[key]) < 1e-6 for key in before)
    same = {key for key in before if torch.equal(before[key], by_us[key])}
    changed = {f"diffusion_model.{name}" for name in ("img_in.weight", "img_in.bias", f"{norm}.weight")}
    assert before.keys() - same == changed
    assert all(torch.equal(before[key], again) for key, again in loaded(model).items())
    with pytest.raises(ValueError, match="made larger"):
        run_node(ConvertLora, model=model, lora="control.safetensors", rank=4, energy=1.0)


def test_blocks_mean_biases_too(models, loras: Path) -> None:
    model = models("sd15").model
    file = written(loras, "full difference", model, "sd15")
    off = apply_stack(model, None, [Row(file, 1.0, 0.0, "IN=0")], []).model
    before, made = loaded(model), loaded(off)
    assert all(torch.equal(before[key], made[key]) for key in before)


@pytest.mark.parametrize("kind", ["LoKr", "DoRA per row"])
def test_text_encoders_take_every_kind_at_their_own_strength(models, loras: Path, kind: str) -> None:
    model, clip = models("sd15").model, models("sd15").clip
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    layer = NameTable(model, clip).targets[name].layer
    shape = tuple(NameTable(model, clip).shapes[layer])
    bias = {f"{name}.diff_b": randn(shape[0])}
    save_file(MAKERS[kind](name, shape) | bias, loras / "text.safetensors")
    applied = apply_stack(model, clip, [("text.safetensors", 0.0, 0.6)], [])
    _, theirs = nodes.LoraLoader().load_lora(model, clip, "text.safetensors", 0.0, 0.6)
    before, by_us, by_core = loaded(clip), loaded(applied.clip), loaded(theirs)
    assert "2 layers" in applied.report and "not applied" not in applied.report
    changed = [key for key in before if not torch.equal(before[key], by_core[key])]
    assert len(changed) == 2 and all(relative_error(by_us[key], by_core[key]) < 1e-6 for key in changed)
    assert all(torch.equal(before[key], by_us[key]) for key in before if key not in changed)
    if kind != "LoKr":
        return  # DoRA is of full rank, and converted in another test
    with pytest.raises(ValueError, match="connect CLIP"):
        run_node(ConvertLora, model=model, lora="text.safetensors", rank=256, energy=1.0)
    made, _, report = run_node(ConvertLora, model=model, lora="text.safetensors", rank=0, energy=1.0, clip=clip)
    key = f"{layer.removeprefix('text_encoders.')}.weight"
    plain = loaded(apply_layers(model, clip, {n: one.scaled(0.6) for n, one in made.layers.items()})[1])
    assert list(made.layers) == [layer] and relative_error(plain[key], by_us[key]) < 1e-5
    assert "left out, for example " + layer in report


def test_a_changed_strength_is_another_stack(models, loras: Path) -> None:
    """Patches are exchanged in place where a sum can take them off again; all others are put on anew."""
    model = models("sd15").model
    plain, file = written(loras, "LoRA", model, "sd15"), written(loras, "DoRA per row", model, "sd15")
    for strength in (0.5, 0.9, 0.5):
        rows = [(plain, strength, 0.0), (file, strength, 0.0)]
        theirs = model
        for name, *strengths in rows:
            theirs, _ = nodes.LoraLoader().load_lora(theirs, None, name, *strengths)
        by_us, by_core = loaded(apply_stack(model, None, rows, []).model), loaded(theirs)
        assert all(relative_error(by_us[key], by_core[key]) < 1e-6 for key in by_us)
    one, other = (apply_stack(model, None, [(file, strength, 0.0)], []).model for strength in (0.5, 0.9))
    direct = loaded(other)
    loaded(one)
    again = loaded(other)
    assert all(torch.equal(direct[key], again[key]) for key in direct)


def test_kinds_that_did_not_change_are_not_written_again(models, loras: Path, monkeypatch) -> None:
    """Ours and ComfyUI's, beside a row that did."""
    model = models("sd15").model
    first, second, third = NAMES["sd15"]
    table = NameTable(model)
    for kind, name in (("LoKr", first), ("LoHa", second)):
        save_file(MAKERS[kind](name, tuple(table.shapes[table.targets[name].layer])), loras / f"{kind}.safetensors")
    save_file(lora(third, tuple(table.shapes[table.targets[third].layer])), loras / "plain.safetensors")
    loader, written = nodes.LoraLoader(), []
    rewrite = StaticPatcher._rewrite
    monkeypatch.setattr(
        StaticPatcher, "_rewrite", lambda self, key, device: written.append(key) or rewrite(self, key, device)
    )

    def stacked(strength: float) -> Any:
        below = loader.load_lora(model, None, "LoHa.safetensors", 0.7, 0.0)[0]
        return apply_stack(
            below, None, [("LoKr.safetensors", 0.5, 0.0), ("plain.safetensors", strength, 0.0)], []
        ).model

    loaded(stacked(0.3))
    written.clear()
    changed = loaded(stacked(0.4))
    assert written == [f"{table.targets[third].layer}.weight"]
    comfy.model_management.unload_all_models()
    assert all(torch.equal(value, changed[key]) for key, value in loaded(stacked(0.4)).items())


def test_a_file_for_another_size_is_refused(models, loras: Path) -> None:
    model = models("sd15").model
    name = next(iter(NAMES["sd15"]))
    save_file(dora(name, (24, 16), 0), loras / "other.safetensors")
    with pytest.raises(ValueError, match=r"DoRA\), which changes a weight of shape \(24, 16\)"):
        NameTable(model).resolve(formats.read(loras / "other.safetensors"), "other")


@pytest.mark.parametrize("kind, rank, worst", [
    ("LoHa", 0, 1e-6), ("LoKr", 0, 1e-6), ("GLoRA", 0, 1e-6), ("DoRA per row", 320, 2e-5), ("LoHa", 2, 0.9),
])  # fmt: skip
def test_converted_it_does_what_it_did(models, loras: Path, kind: str, rank: int, worst: float) -> None:
    """Alone at strength 1, at the rank that holds all of it; with a smaller one, as near as the report says."""
    model = models("sd15").model
    name = written(loras, kind, model, "sd15")
    before = loaded(model)
    wanted = loaded(apply_stack(model, None, [(name, 1.0, 0.0)], []).model)
    adapter, _, report = run_node(ConvertLora, model=model, lora=name, rank=rank, energy=1.0)
    assert not adapter.others and f"{len(NAMES['sd15'])} {kind.split()[0]}" in report
    (parent,) = json.loads(adapter.metadata["lora_loom.parents"])
    assert (parent["name"], parent["sha256"]) == (kind, data_hash(loras / name))
    how = json.loads(adapter.metadata["lora_loom.merge"])
    assert (how["method"], how["rank"], how["energy"]) == ("convert", rank, 1.0)
    (cost,) = how["converted"]
    assert cost["kinds"] == {kind.split()[0]: len(NAMES["sd15"])}
    made = loaded(apply_layers(model, None, exact_sum([Weighted("", adapter, 1.0, 1.0)]))[0])
    stated = {line.split()[2]: float(line.split()[0]) / 100 for line in report.splitlines() if line.startswith("  ")}
    for layer, error in stated.items():
        key = f"{layer}.weight"
        found = float((made[key] - wanted[key]).norm() / (wanted[key] - before[key]).norm())
        assert found <= worst and found == pytest.approx(error, rel=0.01, abs=3e-6)
        assert cost.get("errors", {}).get(layer, 0.0) == pytest.approx(error, rel=0.06)
    assert min(stated.values()) <= cost["error"] * 1.06 and cost["error"] <= max(stated.values()) * 1.06
    others = [key for key in made if key.removesuffix(".weight") not in stated]
    assert set(stated) == set(adapter.layers) and all(torch.equal(made[key], before[key]) for key in others)


def test_a_merge_takes_other_kinds_at_a_stated_error(models, loras: Path) -> None:
    model = models("flux1").model
    rows = [(written(loras, "LoHa", model, "flux1"), 0.7, 0.0), (written(loras, "LoRA", model, "flux1"), -0.4, 0.0)]
    live = loaded(apply_stack(model, None, rows, []).model)
    adapter, _, report, *_ = run_node(MergeLora, model=model, rank=0, strengths="", lora_stack=rows)
    merged = loaded(apply_layers(model, None, exact_sum([Weighted("", adapter, 1.0, 1.0)]))[0])
    assert "LoHa: 5 layers (5 LoHa); 4 layers were converted to plain LoRA, relative error" in report
    assert all(relative_error(merged[key], live[key]) < 2e-6 for key in live)
    assert "the sum is exact except for the converted layers" in report
    converted = json.loads(
        run_node(MergeLora, model=model, rank=1, strengths="", lora_stack=rows)[0].metadata["lora_loom.merge"]
    )["converted"]
    together = {"LoHa": 5, "LoRA": 4}
    assert [(each["name"], each["kinds"]) for each in converted] == [("parts one after the other", together)]
    assert converted[0]["error"] > 0.1 and len(converted[0]["errors"]) == 4


def test_biases_have_no_place_in_a_lora(models, loras: Path) -> None:
    model = models("sd15").model
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    layer = NameTable(model).targets[name].layer
    bias = torch.ones(NameTable(model).parameters[f"{layer}.bias"])
    save_file({f"{name}.diff_b": bias}, loras / "bias.safetensors")
    with pytest.raises(ValueError, match="only biases and norms"):
        run_node(ConvertLora, model=model, lora="bias.safetensors", rank=4, energy=1.0)
    with pytest.raises(ValueError, match="bias: the file changes only biases and norms"):
        run_node(MergeLora, model=model, rank=0, strengths="", lora_stack=[("bias.safetensors", 1.0, 1.0)])
    shape = tuple(NameTable(model).shapes[layer])
    save_file({f"{name}.diff_b": bias, **loha(name, shape)}, loras / "both.safetensors")
    adapter, _, report = run_node(ConvertLora, model=model, lora="both.safetensors", rank=4, energy=1.0)
    assert "1 biases and norms are left out" in report and list(adapter.layers) == [layer]
    assert json.loads(adapter.metadata["lora_loom.merge"])["converted"][0]["left_out"] == [f"{layer}.bias"]


@pytest.mark.parametrize("rows", [
    [("OFT", 0.6)], [("full difference", -0.5)],
    [("LoRA", 0.5), ("DoRA per row", 0.7), ("LoHa", -0.3), ("OFT", 0.4)], [("BOFT", 0.8), ("GLoRA", -0.3)],
    [("LoKr", 0.8), ("LoRA", 0.6), ("LoHa", 1.0)],
])  # fmt: skip
@pytest.mark.parametrize("choices", [{}, {"rank": 6}, {"method": "auto"}])
def test_a_merge_of_kinds_is_the_live_stack_at_the_error_it_states(
    models, loras: Path, rows: list, choices: dict
) -> None:
    """Each at its strength, which for some is no factor, and on top of those before it."""
    model = models("flux1").model
    stack = [(written(loras, kind, model, "flux1"), strength, 0.0) for kind, strength in rows]
    before, live = loaded(model), loaded(apply_stack(model, None, stack, []).model)
    adapter, _, report, _ = run_node(
        MergeLora, model=model, lora_stack=stack, **{"rank": 0, "strengths": "", **choices}
    )
    made = loaded(apply_layers(model, None, adapter.layers)[0])
    told = json.loads(adapter.metadata["lora_loom.merge"])
    worst = max(part["error"] for part in told.get("converted", [{"error": 0.0}])) + told["error"]
    shown = re.findall(r"^  (\S+) %  (\S+)$", report, re.MULTILINE)
    assert {name for _, name in shown} >= {name for part in told["converted"] for name in part.get("errors", ())}
    if choices.get("rank") and len(rows) > 1:
        for name, layer in adapter.layers.items():
            dense = (live[f"{name}.weight"] - before[f"{name}.weight"]).double().flatten(1)
            best = float(torch.linalg.svdvals(dense)[6:].norm())
            assert float((layer.delta_weight().flatten(1) - dense).norm()) <= 1.01 * best, "cut once, from the whole"
    keys = [f"{name}.weight" for name in adapter.layers]
    lost, norm = (sum(float((live[key] - each[key]).square().sum()) for key in keys) ** 0.5 for each in (made, before))
    assert lost / norm <= 1.06 * worst + 2e-6 and (worst < 1e-6) == ("rank" not in choices)
    changed = {key for key in before if not torch.equal(before[key], live[key]) and not key.endswith(".bias")}
    assert changed == set(keys)


def test_biases_and_norms_are_added_up_and_saved(models, loras: Path) -> None:
    """Biases and norms of two files are added up at their strengths, also beside a cut, in every format that can hold
    them."""
    model = models("flux1").model
    norm = "diffusion_model.double_blocks.0.img_attn.norm.key_norm"
    table = NameTable(model)
    first = written(loras, "full difference", model, "flux1")
    more = {f"{norm}.diff": randn(*table.shapes[norm], seed=5), "diffusion_model.img_in.diff_b": randn(
        *table.parameters["diffusion_model.img_in.bias"], seed=6)}  # fmt: skip
    save_file({**load_file(loras / first), **more}, loras / first)
    stack = [(first, 0.7, 0.0), (first, -0.2, 0.0), (written(loras, "LoRA", model, "flux1"), 1.0, 0.0)]
    before, live = loaded(model), loaded(apply_stack(model, None, stack, []).model)
    changed = {key for key in before if not torch.equal(before[key], live[key])}
    adapter, lora_model, report, _ = run_node(MergeLora, model=model, lora_stack=stack, rank=0, strengths="")
    assert "biases and norms are added exactly" in report and len(adapter.others) == 4
    assert {f"{norm}.weight", "diffusion_model.img_in.bias"} < changed
    for format in ("comfyui", "kohya"):
        name = run_node(SaveLora, adapter=adapter, model=model, name=format, format=format, dtype="fp32")[0]
        made = loaded(nodes.LoraLoader().load_lora(model, None, name, 1.0, 0.0)[0])
        assert all(relative_error(made[key] - before[key], live[key] - before[key]) < 1e-5 for key in changed)
    cut = run_node(MergeLora, model=model, lora_stack=stack, rank=2, strengths="")[0].others
    assert all(torch.allclose(cut[n][0].values, each.values, atol=1e-6) for n, (each,) in adapter.others.items())
    assert set(lora_model) >= {f"{norm}.diff", "diffusion_model.img_in.diff_b"}
    again = run_node(MergeLora, model=model, lora_stack=[(name, 0.5, 0.0)], rank=0, strengths="")[0]
    assert torch.allclose(again.others[norm][0].values, 0.5 * adapter.others[norm][0].values)
    with pytest.raises(ValueError, match="4 biases and norms are changed, .* save in the 'comfyui' format"):
        run_node(SaveLora, adapter=adapter, model=model, name="d", format="diffusers", dtype="fp32")
