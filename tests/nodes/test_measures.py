"""The figures that nodes give the front end are those of their reports, and what is foreseen is what a run gives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from harness.calls import encode
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.drawing.measure import MOST_PICTURES
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.merging import outlooks
from lora_loom.nodes.interference import LoraInterference
from lora_loom.nodes.leave_one_out import LeaveOneOut
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.report import LoraReport
from lora_loom.nodes.resize_lora import ResizeLora

Measure = dict[str, Any]
SAMPLING = {
    "negative": "", "seed": 3, "width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "simple",
}  # fmt: skip


_outputs: list[Any] = []  # as ComfyUI keeps them


def run(node: type, **inputs: Any) -> tuple[Measure, str]:
    """The figures of a run and its report."""
    with torch.inference_mode():
        made = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
    _outputs.append(made)
    (sent,), (text,) = made.ui["lora_loom"], made.ui["text"]
    return json.loads(sent), text


def cells(table: Mapping[str, Any]) -> dict[str, list[str]]:
    return {line["name"]: [cell[0] for cell in line["cells"] if cell] for line in table["lines"]}


def merge(model: Any, parts: list[Any], rank: int = 0, **choices: Any) -> tuple[Measure, str]:
    named = {f"adapter{number}": each for number, each in enumerate(parts)}
    return run(MergeLora, model=model, rank=rank, adapters=named, **{"strengths": "", **choices})


def foreseen(measure: Measure, **settings: Any) -> Measure:
    return json.loads(
        outlooks.asked({"key": measure["live"]["key"], **{k: str(v) for k, v in settings.items()}}).as_json()
    )


@pytest.mark.parametrize("first", [{}, {"rank": 3}, {"size_mb": 0.4}], ids=["exact", "cut", "size"])
def test_a_merge_at_other_limits(models, random_adapter, first: dict[str, Any]) -> None:
    model = models("sd15").model
    parts = [random_adapter(model, rank, 2.0, seed) for seed, rank in ((1, 5), (2, 4))]
    measure, text = merge(model, parts, **first)
    limits = {name: measure["live"]["asked"][name] for name in ("rank", "energy", "size_mb")}
    assert limits == {"rank": 0, "energy": 1.0, "size_mb": 0.0, **first}
    for settings in ({"rank": 1}, {"rank": 4}, {"rank": 8}, {"energy": 0.8}, {"rank": 6, "size_mb": 0.25}, {}):
        wanted, text = merge(model, parts, **settings)
        found = foreseen(measure, **settings)
        assert found["verdict"] == wanted["verdict"] and found["tables"] == wanted["tables"]
        assert re.search(r"[\d.]+ MB as fp16", text)[0] in found["verdict"]
        if errors := dict(map(reversed, re.findall(r"^  (\S+ %)  (\S+)$", text, re.MULTILINE))):
            assert {name: row[0] for name, row in cells(found["tables"][0]).items()} == errors
            assert re.search(r"relative error: (.*) in total", text)[1] in found["verdict"]


def test_a_merge_at_other_strengths(models, random_adapter) -> None:
    model = models("sd15").model
    parts = [random_adapter(model, rank, 2.0, seed) for seed, rank in ((1, 5), (2, 4))]
    measure, _ = merge(model, parts)
    assert measure["live"]["parts"] == [["adapter 1", 1.0, 1.0], ["adapter 2", 1.0, 1.0]]
    wanted, _ = merge(model, parts, rank=3, strengths="0.5, -2")
    assert foreseen(measure, rank=3, factors="0.5:0.5,-2:-2")["verdict"] == wanted["verdict"]
    assert "parts" not in merge(model, parts, method="auto")[0]["live"]
    assert "strengths" not in merge(model, parts, method="orthogonal")[0]["live"]["asked"]


def test_a_resize_at_other_strengths(models, random_adapter) -> None:
    model, choices = models("sd15").model, {"lora_name": "None", "energy": 1.0, "text_strength": 1.0}
    adapter = random_adapter(model, 5, 2.0, 1)
    measure, _ = run(ResizeLora, model=model, adapter=adapter, rank=2, size_mb=0.0, strength=0.5, **choices)
    wanted, _ = run(ResizeLora, model=model, adapter=adapter, rank=0, size_mb=0.2, strength=-1.0, **choices)
    assert foreseen(measure, size_mb=0.2, factors="-2:1")["verdict"] == wanted["verdict"]
    for query in ({"size_mb": 1e-6}, {"rank": "x"}, {"factors": "1"}):
        with pytest.raises(ValueError):
            foreseen(measure, **query)
    for query in ({"factors": "nan:1"}, {"factors": "1:inf"}, {"energy": "nan"}, {"size_mb": "inf"}):
        with pytest.raises(ValueError, match="finite"):
            foreseen(measure, **query)
    with pytest.raises(LookupError):
        outlooks.asked({"key": "another", "rank": "2"})


def test_interference(models, random_adapter) -> None:
    model = models("sd15").model
    one, other, third = (random_adapter(model, seed=seed) for seed in (1, 2, 3))
    both = Adapter({name: LowRank.concat([layer, third.layers[name]]) for name, layer in one.layers.items()})
    named = {"adapter0": one, "adapter1": other, "adapter2": both}
    measure, text = run(LoraInterference, model=model, strengths="", adapters=named)
    assert measure["verdict"] == "Strong overlap: adapter 1 and adapter 3 pull the same way."
    assert "Strong overlap: A and C pull the same way" in text
    assert all(sentence.rstrip(".") in text for sentence in measure["advice"].split(". ")), measure["advice"]
    cosine = measure["tables"][0]
    assert cosine["columns"] == ["A", "B"] and cosine["lines"][2]["name"] == "C adapter 3"
    (text_of, strength, told), (silent, nothing, _) = cosine["lines"][2]["cells"]
    assert strength > 0 == nothing and silent == ""
    figure = re.fullmatch(r"adapter 1 and adapter 3, all blocks: (cosine (\S+), z \S+)", told)
    assert figure and figure[1] in text and float(text_of) == pytest.approx(float(figure[2]), abs=0.06)
    blocks = next(table for table in measure["tables"] if table["title"] == "Cosine by block")
    assert blocks["columns"] == ["AB", "AC", "BC"] and blocks["lines"][-1]["name"] == "all blocks"
    alone, _ = run(LoraInterference, model=model, strengths="", adapters={"adapter0": one})
    assert alone["verdict"] == "There is a single LoRA, and nothing to compare it with."


def test_leave_one_out_and_report(models, random_adapter) -> None:
    trio = models("wan_demo")
    named = {f"adapter{n}": random_adapter(trio.model, seed=n, size=0.3) for n in (1, 2)}
    made, text = run(
        LeaveOneOut, model=trio.model, vae=trio.vae, prompts="", seeds=2, strengths="", adapters=named,
        positive=encode(trio.clip, "a heart"), negative_conditioning=encode(trio.clip, ""), **SAMPLING,
    )  # fmt: skip
    assert made["verdict"] in text
    for name, row in cells(made["tables"][0]).items():
        assert f"  {'none' if name == 'all of them' else f'without {name}'}: {', '.join(row)}" in text
    assert [len(pictures) for _, pictures in made["rows"]] == [4, 4]
    assert [file["label"] for file in made["rows"][0][1]][0] == "all" and made["rows"][0][0] == "positive, seed 3"
    measure, text = run(
        LoraReport, model=trio.model, clip=trio.clip, vae=trio.vae, adapter=named["adapter1"], trigger="heart",
        prompts="heart", class_words="", neutral="a square", seeds=1, strength=1.0, **SAMPLING,
    )  # fmt: skip
    advice = re.split(r"(?<=\.) (?=[A-Z])", measure["advice"])
    assert measure["verdict"] in text and all(each in text for each in advice)
    assert measure["curve"]["told"][-1].startswith("Strength 1.25: concept ")
    rows = cells(measure["tables"][0])
    assert len(rows) == 3 and all(", ".join(row) in text for row in rows.values())
    assert 0 < sum(len(pictures) for _, pictures in measure["rows"]) <= MOST_PICTURES
