"""Merge LoRA: the merge, saved and applied alone, is the live stack; a cut rank costs exactly what the report says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import tiny
import torch
from harness.calls import encode, loaded, refusals, relative_error, run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.rows import Row as StackRow
from lora_loom.nodes.bridge.merging.save import DTYPES, STYLES, save_proven
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
    **choices: Any,
):
    """Adapter, LORA_MODEL and report."""
    connected = {f"adapter{index}": adapter for index, adapter in enumerate(adapters)}
    parts = {"model": model, "clip": clip, "lora_stack": list(rows), "adapters": connected}
    *outputs, chart = run_node(MergeLora, **parts, strengths=strengths, rank=rank, **choices)
    assert chart.shape == (1, 320, 1280, 3) and 0 <= float(chart.min()) < float(chart.max()) <= 1
    return outputs


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
        third = "comfyui" if family in tiny.NOT_BY_COMFYUI else "diffusers"
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
    told = {name: float(error) / 100 for error, name in re.findall(r"^  (\S+) %  (\S+)$", report, re.MULTILINE)}
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


def test_an_adapter_that_was_never_saved_has_a_hash_too(models, loras: Path, random_adapter) -> None:
    """That of its content, which Save LoRA notes in the file, so that the two are found to be one. At strength 0 it is
    no parent."""
    model = models("sd15").model
    first, again, louder = (random_adapter(model, 4, alpha) for alpha in (3.0, 3.0, 4.0))
    silent = Adapter(first.layers, {"modelspec.license": "CC-BY-NC-4.0"})
    merged, _, report = merge(model, [], [first, again, silent, louder], "1, 0.5, 0, 1")
    parents = json.loads(merged.metadata["lora_loom.parents"])
    assert [(p["name"], p["hash_of"]) for p in parents] == [(f"adapter {n}", "adapter") for n in (1, 2, 4)]
    assert parents[0]["sha256"] == parents[1]["sha256"] != parents[2]["sha256"] and len(parents[0]["sha256"]) == 64
    assert "modelspec.license" not in merged.metadata and "adapter 3" not in report
    noted = guard.inspect(loras / save(first, model, "fp16")).metadata["lora_loom.content_hash"]
    assert noted == parents[0]["sha256"]
    assert "lora_loom.content_hash" not in merge(model, [("merged.safetensors", 1.0, 1.0)])[0].metadata


def test_what_is_not_a_number_is_named(models, random_adapter) -> None:
    model = models("sd15").model
    broken = random_adapter(model)
    name = list(broken.layers)[-1]
    broken.layers[name].lora_A[0, 0] = torch.nan
    for choices in ({}, {"rank": 2}, {"method": "ties"}, {"method": "auto"}):
        with pytest.raises(ValueError, match=rf"adapter 2 holds NaN or infinite values in {name}"):
            merge(model, [], [random_adapter(model), broken], **choices)


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
    with pytest.raises(
        ValueError, match="t: 6 layers of the text encoder would be lost, for example lora_te_.*; connect CLIP"
    ):
        merge(trio.model, [("t.safetensors", 1.0, 1.0)])
    with pytest.raises(
        ValueError,
        match="adapter 1: 6 layers of the text encoder would be lost, for example text_encoders.*; connect CLIP",
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


def test_what_was_added_is_subtracted_again(models, loras: Path, random_adapter) -> None:
    """A merge minus one of its parents is the other, also in layers that only the one had, and as fp16."""
    model = models("sd15").model
    small, large = random_adapter(model, seed=1), random_adapter(model, preset="attention+mlp")
    both = merge(model, [], [small, large])[0]
    left, _, report = merge(model, [], [both, large], "0.05, -0.05")
    gone = len(large.layers) - len(small.layers)
    assert gone > 0 and f"{gone} layers cancel out and are not in the LoRA" in report
    assert left.layers.keys() == small.layers.keys()
    save(left, model, "fp16")
    found = merge(model, [("merged.safetensors", 20.0, 1.0)])[0]
    for name, layer in small.layers.items():
        assert found.layers[name].distance(layer) < 2e-3 * layer.norm()
    with pytest.raises(ValueError, match="the merge is empty: in all .* layers the LoRAs cancel"):
        merge(model, [], [small, small], "1, -1", rank=2)


def test_adapter_of_another_family(models, random_adapter) -> None:
    with pytest.raises(
        ValueError, match="is a LoRA for FLUX.1 dev, .* or Chroma and matches none of this SD 1.5 model's layers"
    ):
        merge(models("sd15").model, [], [random_adapter(models("flux1").model)])


def test_parts_of_sizes_that_do_not_fit(models, random_adapter) -> None:
    with pytest.raises(ValueError, match=r"was made for another size of SD 1.5: .* changes a weight of shape"):
        merge(models("sd15").model, [], [random_adapter(models("sd15_full").model)])


# -- methods, sizes, and what the file tells ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ties", "karcher", "tsv", "k_lora"])
def test_a_method_through_the_node(models, rows, method: str) -> None:
    """A layer that only one file changes is as in the live stack; one that several change is not."""
    model, parts = models("sd15").model, rows("sd15")
    plain, (adapter, _, report) = merge(model, parts)[0], merge(model, parts, method=method, rank=5)
    made = json.loads(adapter.metadata["lora_loom.merge"])
    assert made["method"] == method and made["rank"] == 5 and made["departure"] > 0.01
    assert made.get("density") == {"ties": 0.2}.get(method), "what was taken, not that nothing was said"
    assert made["errors"].keys() <= plain.layers.keys() and f"{method} on {len(plain.layers)} layers" in report
    other = merge(model, parts, method=method, amount=0.0)[0]
    assert all(other.layers[name].distance(each) < 1e-5 * each.norm() for name, each in plain.layers.items())


@pytest.mark.parametrize("format", ["comfyui", "kohya"])
def test_a_size_for_the_whole_file(models, loras: Path, rows, format: str) -> None:
    """With all that the header tells."""
    model, parts = models("flux1").model, rows("flux1")
    full = loras / save(merge(model, parts)[0], model, "fp16", format=format)
    most = full.stat().st_size / 2e6
    full.unlink()
    adapter, _, report = merge(model, parts, size_mb=most)
    cut = loras / save(adapter, model, "fp16", format=format)
    assert 0.9 * most < cut.stat().st_size / 1e6 <= most
    told = json.loads(guard.inspect(cut).metadata["lora_loom.merge"])
    assert told["size_mb"] == most and told["error"] > 0
    assert float(re.search(r"relative error: (\S+) % in total", report)[1]) == pytest.approx(
        100 * told["error"], rel=0.1
    )


def test_text_strengths_of_adapters(models, random_adapter, add_text) -> None:
    trio = models("sd15")
    adapter = add_text(random_adapter(trio.model), trio.clip)
    merged = merge(trio.model, [], [adapter], "0.5", clip=trio.clip, text_strengths="2")[0]
    for name, layer in adapter.layers.items():
        assert merged.layers[name].norm() == pytest.approx(
            layer.norm() * (2 if name.startswith("text") else 0.5), rel=1e-5
        )


def test_rights_and_words_of_parents(models, loras: Path, random_adapter) -> None:
    """Also of a merge of merges; and a hash that a header tells wrongly is not believed."""
    model = models("sd15").model
    headers = [
        {
            "modelspec.author": "Ada",
            "modelspec.license": "CC-BY-4.0",
            "ss_tag_frequency": '{"a": {"ink": 3, "cat": 1}}',
        },
        {"modelspec.author": "Bo", "modelspec.license": "CC-BY-NC-ND-4.0", "modelspec.trigger_phrase": "bo style"},
    ]
    parts = []
    for seed, header in enumerate(headers):
        adapter = Adapter(random_adapter(model, seed=seed).layers, header)
        save_proven(adapter, loras / f"{seed}.safetensors", "native", torch.float32, model)
        parts.append((f"{seed}.safetensors", 1.0, 1.0))
    merged, _, report = merge(model, parts)
    again = merge(model, [], [merged, random_adapter(model, seed=5)])[0].metadata
    assert merged.metadata["modelspec.license"] == "CC-BY-4.0 AND CC-BY-NC-ND-4.0"
    assert again["modelspec.license"] == "CC-BY-4.0 AND CC-BY-NC-ND-4.0 AND LicenseRef-unknown"
    assert json.loads(again["lora_loom.rights"])["commercial"] == "no" and "does not allow derived works" in report
    assert merged.metadata["modelspec.author"] == again["modelspec.author"] == "Ada, Bo"
    assert merged.metadata["modelspec.trigger_phrase"] == "ink, bo style"
    assert json.loads(merged.metadata["ss_tag_frequency"])["a"] == {"ink": 3, "cat": 1}
    grandparents = json.loads(again["lora_loom.parents"])[0]["parents"]
    assert [p["sha256"] for p in grandparents] == [data_hash(loras / name) for name, *_ in parts]


def test_auto_says_what_it_takes_and_why(models, random_adapter) -> None:
    model = models("sd15").model
    twins = [random_adapter(model, seed=1), random_adapter(model, seed=1)]
    adapter, _, report = merge(model, [], twins, method="auto")
    assert (
        json.loads(adapter.metadata["lora_loom.merge"])["method"] == "orthogonal"
        and "auto: orthogonal, because" in report
    )
    told = json.loads(merge(model, [], twins, method="auto", amount=0.5)[0].metadata["lora_loom.merge"])
    assert told["amount"] == 0.5 and told["proposed"][-1].startswith("auto: orthogonal, because")
    _, _, report = merge(model, [], [twins[0], random_adapter(model, seed=2)], method="auto")
    assert "auto: exact sum at these strengths" in report and "the sum is exact" in report


def queued(adapters: int, stack: bool = False, **inputs: Any) -> str:
    """Return what ComfyUI says to a merge with so many adapters before it runs."""
    model = ["1", 0]
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "LoraLoom_MergeLora", "inputs": {"model": model, "rank": 0, "strengths": "", **inputs}},
        "3": {"class_type": "LoraLoom_SaveLora", "inputs": {"model": model, "adapter": ["2", 0], "name": "x"}},
        "stack": {"class_type": "LoraLoom_LoadLoraStack", "inputs": {"model": model}},
    }
    graph["3"]["inputs"] |= {"format": "comfyui", "dtype": "fp16"}
    for number in range(adapters):
        merged = {"model": model, "rank": 0, "strengths": "", "lora_stack": ["stack", 2]}
        graph[f"a{number}"] = {"class_type": "LoraLoom_MergeLora", "inputs": merged}
        graph["2"]["inputs"][f"adapters.adapter{2 * number}"] = [f"a{number}", 0]
    graph["2"]["inputs"] |= {"lora_stack": ["stack", 2]} if stack else {}
    return refusals(graph)


def test_what_can_be_told_before_the_graph_runs() -> None:
    """Before a training whose LoRA is to be merged, not after it."""
    assert "2 strengths for 1 connected adapters; give one for each" in queued(1, strengths="1, 0.5")
    assert "1 text_strengths for 2 connected adapters" in queued(2, text_strengths="0.5")
    assert "strengths is 'nan'; each must be between -20 and 20" in queued(1, strengths="nan")
    assert "there is nothing to merge; connect adapters or a lora_stack" in queued(0)
    assert queued(0, stack=True) == queued(2, strengths="1, -0.5", text_strengths="0, 1") == ""
    assert queued(1, strengths=["stack", 3]) == "", "a link is not known yet"


def test_strengths_that_are_no_numbers() -> None:
    assert "text_strengths is 'x'" in MergeLora.validate_inputs(strengths="1", text_strengths="x")
    assert MergeLora.validate_inputs(strengths=None, text_strengths=None) is True


def test_a_cancel_is_heeded_between_layers(models, rows) -> None:
    model, parts = models("sd15").model, rows("sd15")
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        merge(model, parts, rank=2)


@pytest.fixture(autouse=True)
def _no_cancel():
    yield
    comfy.model_management.interrupt_current_processing(False)


def test_block_strengths_are_merged_and_parts_of_sampling_are_not(models, rows) -> None:
    model, (first, second, _) = models("sd15").model, rows("sd15")
    parts = [StackRow(*first, blocks="IN=0, OUT=0.5"), StackRow(*second)]
    adapter = merge(model, parts)[0]
    one, two = merge(model, [first])[0], merge(model, [second])[0]
    for name, layer in adapter.layers.items():
        share = 0.0 if "input_blocks" in name else 0.5 if "output_blocks" in name else 1.0
        terms = [one.layers[name].scaled(share)] if share else []
        terms += [two.layers[name]] if name in two.layers else []
        assert layer.distance(LowRank.concat(terms)) < 1e-6 * layer.norm()
    assert not any("input_blocks" in name and name not in two.layers for name in adapter.layers)
    assert json.loads(adapter.metadata["lora_loom.parents"])[0]["blocks"] == "IN=0, OUT=0.5"
    with pytest.raises(ValueError, match="1 is on from 0.2 to 1 of sampling, which a file cannot contain"):
        merge(model, [first, StackRow(*second, start=0.2)])
