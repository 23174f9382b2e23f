"""Merge LoRA: the merge, saved and applied alone, is the live stack; a cut rank costs exactly what the report says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode, loaded, relative_error, run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.nodes.bridge.export import DTYPES, STYLES, save_proven
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.save_lora import SaveLora

Row = tuple[str, float, float]
FAMILIES = ["sd15", "flux1", "wan_demo"]
TINY = 1e-6  # fp32


def merge(
    model: Any,
    rows: Sequence[Row] = (),
    adapters: Sequence[Adapter] = (),
    strengths: str = "",
    rank: int = 0,
    clip: Any = None,
):
    connected = {f"adapter{index}": adapter for index, adapter in enumerate(adapters)}
    return run_node(
        MergeLora, model=model, clip=clip, lora_stack=list(rows), adapters=connected, strengths=strengths, rank=rank
    )


def apply(model: Any, rows: Sequence[Row], clip: Any = None) -> tuple[Any, Any]:
    off = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}
    return run_node(LoadLoraStack, model=model, clip=clip, lora_stack=list(rows), **off)[:2]


def save(adapter: Adapter, model: Any, dtype: str, clip: Any = None, format: str = "comfyui") -> str:
    return run_node(SaveLora, adapter=adapter, model=model, clip=clip, name="merged", format=format, dtype=dtype)[0]


@pytest.fixture
def rows(models, loras: Path, random_adapter) -> Callable[[str], list[Row]]:
    """Rows of three files in different formats, ranks and alphas; the second holds fewer layers."""

    def make(family: str) -> list[Row]:
        model, made = models(family).model, []
        third = "comfyui" if family in tiny.WITHOUT_DIFFUSERS else "diffusers"
        kinds = [("comfyui", 4, 3.0, 0.8), ("kohya", 6, 1.0, -0.6), (third, 2, 7.0, 1.7)]
        for seed, (style, rank, alpha, strength) in enumerate(kinds):
            adapter = random_adapter(model, rank, alpha, seed, "attention" if seed == 1 else "attention+mlp", size=0.2)
            titled = Adapter(
                adapter.layers, {"modelspec.title": f"part {seed}", "modelspec.trigger_phrase": f"word{seed}"}
            )
            save_proven(titled, loras / f"{seed}.safetensors", STYLES[style], DTYPES["fp32"], model)
            made.append((f"{seed}.safetensors", strength, 1.0))
        return made

    return make


@pytest.mark.verifies("Merge", "{dtype}")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, dtype) for family in FAMILIES for dtype in ("fp32", "fp16")),
        *((family, "fp32") for family in ("flux1_schnell", *tiny.MORE)),
    ],
)
def test_saved_merge_is_the_live_stack(models, rows, family: str, dtype: str, record_property) -> None:
    model, parts = models(family).model, rows(family)
    adapter, _, report = merge(model, parts)
    assert "the sum is exact" in report and f"{len(adapter.layers)} layers" in report
    before, live = loaded(model), loaded(apply(model, parts)[0])
    alone = loaded(apply(model, [(save(adapter, model, dtype), 1.0, 1.0)])[0])
    limit = TINY if dtype == "fp32" else 1e-3
    for key, weight in before.items():
        if key.removesuffix(".weight") not in adapter.layers:
            assert torch.equal(alone[key], weight), key
        else:
            change = (live[key].double() - weight, alone[key].double() - weight)
            assert relative_error(change[1], change[0]) < max(limit, 1e-5), key
            record_property("error", relative_error(alone[key], live[key]))
            assert relative_error(alone[key], live[key]) < limit, key


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_rows_add_up(models, rows, random_adapter, family: str) -> None:
    """Two connected adapters with strengths beside the rows; a merge of merges; and the LORA_MODEL for core's nodes."""
    model, parts = models(family).model, rows(family)
    extra = [random_adapter(model, rank, 2.0, seed) for seed, rank in ((7, 5), (8, 3))]
    adapter, lora_model, _ = merge(model, parts, extra, "0.5, -2")
    again, _, _ = merge(model, [], [merge(model, parts)[0], merge(model, [], extra, "0.5, -2")[0]])
    assert max(layer.rank for layer in adapter.layers.values()) == 4 + 6 + 2 + 5 + 3, "fused weights in slices, too"
    for name, layer in adapter.layers.items():
        assert again.layers[name].distance(layer) < TINY * layer.norm()
    assert len(lora_model) == 3 * len(adapter.layers)
    name = next(iter(adapter.layers))
    wanted = sum(s * a.layers[name].delta_weight().double() for s, a in zip((0.5, -2), extra, strict=True))
    assert relative_error(merge(model, [], extra, "0.5, -2")[0].layers[name].delta_weight(), wanted) < TINY


@pytest.mark.parametrize("rank", [1, 5])
def test_errors_of_a_cut_are_true(models, rows, rank: int) -> None:
    model, parts = models("flux1").model, rows("flux1")
    exact, (cut, _, report) = merge(model, parts)[0], merge(model, parts, rank=rank)
    told = {name: float(error) for error, name in re.findall(r"^  (\S+)  (\S+)$", report, re.MULTILINE)}
    assert told.keys() == exact.layers.keys() and list(told.values()) == sorted(told.values(), reverse=True)
    for name, layer in exact.layers.items():
        dense, kept = layer.delta_weight().double().flatten(1), cut.layers[name].delta_weight().double().flatten(1)
        singular = torch.linalg.svdvals(dense)
        best = float(singular[rank:].norm() / singular.norm())
        assert cut.layers[name].rank == min(rank, layer.rank)
        assert float((kept - dense).norm() / dense.norm()) == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert told[name] == pytest.approx(best, rel=0.01, abs=1e-6)


def test_lineage(models, loras: Path, rows) -> None:
    model, parts = models("sd15").model, rows("sd15")
    header = guard.inspect(loras / save(merge(model, parts)[0], model, "fp32")).metadata
    parents = json.loads(header["lora_loom.parents"])
    assert [(p["name"], p["strength"]) for p in parents] == [("0", 0.8), ("1", -0.6), ("2", 1.7)]
    assert [p["sha256"] for p in parents] == [data_hash(loras / name) for name, *_ in parts]
    assert header["modelspec.trigger_phrase"] == "word0, word1, word2"
    assert json.loads(header["ss_tag_frequency"])["trigger"].keys() == {"word0", "word1", "word2"}
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora" and header["ss_base_model_version"] == "sd_v1"
    assert header["modelspec.merged_from"] == "0, 1, 2"
    assert header["sshs_model_hash"] == data_hash(loras / "merged.safetensors")


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["comfyui", "kohya", "diffusers"])
def test_text_layers_are_merged_with_their_own_strength(
    models, loras: Path, random_adapter, add_text, format: str
) -> None:
    trio = models("sd15")
    parts = [("t0.safetensors", 0.5, 1.5), ("t1.safetensors", 1.0, 0.0)]
    for seed, (name, *_) in enumerate(parts):
        adapter = add_text(random_adapter(trio.model, seed=seed), trio.clip, seed)
        save_proven(adapter, loras / name, "kohya", torch.float32, trio.model, trio.clip)
    merged, _, _ = merge(trio.model, parts, clip=trio.clip)
    name = save(merged, trio.model, "fp32", trio.clip, format)
    (model, clip), (one, text) = apply(trio.model, parts, trio.clip), apply(trio.model, [(name, 1.0, 1.0)], trio.clip)
    live, alone, plain = (encode(c, "a red heart")[0][0] for c in (clip, text, trio.clip))
    assert relative_error(alone, live) < 1e-5 and relative_error(live, plain) > 1e-3
    by_stack, by_merge = loaded(model), loaded(one)
    assert all(relative_error(by_merge[key], by_stack[key]) < TINY for key in model.patches)


def test_text_layers_without_clip_are_refused(models, loras: Path, random_adapter, add_text) -> None:
    trio = models("sd15")
    adapter = add_text(random_adapter(trio.model), trio.clip)
    save_proven(adapter, loras / "t.safetensors", "kohya", torch.float32, trio.model, trio.clip)
    with pytest.raises(ValueError, match="t: 6 layers would be lost, for example lora_te_.*; connect CLIP"):
        merge(trio.model, [("t.safetensors", 1.0, 1.0)])
    with pytest.raises(
        ValueError, match="adapter 1: 6 layers would be lost, for example text_encoders.*; connect CLIP"
    ):
        merge(trio.model, [], [adapter])


# -- what cannot be merged ---------------------------------------------------------------------------------------------


def test_nothing_to_merge(models, random_adapter) -> None:
    model = models("sd15").model
    for arguments in ({}, {"adapters": [random_adapter(model)], "strengths": "0"}):
        with pytest.raises(ValueError, match="there is nothing to merge; connect"):
            merge(model, **arguments)


def test_count_of_strengths(models, random_adapter) -> None:
    model = models("sd15").model
    with pytest.raises(ValueError, match="2 strengths for 1 connected adapters"):
        merge(model, [], [random_adapter(model)], "1, 2")


def test_adapter_of_another_family(models, random_adapter) -> None:
    with pytest.raises(
        ValueError, match="is a LoRA for FLUX.1 dev, .* or Chroma and matches none of this SD 1.5 model's layers"
    ):
        merge(models("sd15").model, [], [random_adapter(models("flux1").model)])


def test_parts_of_sizes_that_do_not_fit(models, random_adapter) -> None:
    with pytest.raises(ValueError, match=r"corrects a weight of shape .* the file was made for another size of SD 1.5"):
        merge(models("sd15").model, [], [random_adapter(models("sd15_full").model)])
