"""LoRA Health in a real ComfyUI: faults that were put into LoRAs are found, named and mended, on every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from harness.calls import run_node
from harness.runs import read
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.analysis.repair import Moved
from lora_loom.lora_core.kinds import LoHa
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.health import BLOCKS, LoraHealth
from tiny import FAMILIES

SMALL = {
    "lora_name": "None", "repair": "faults", "blocks": "parts", "trigger": "", "prompts": "", "negative": "",
    "seeds": 1, "seed": 3, "width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "simple",
}  # fmt: skip
Change = Callable[[LowRank], LowRank]


def health(model: Any, adapter: Adapter | None, **changes: Any) -> tuple[Adapter, str, str, dict[str, Any]]:
    """The repaired LoRA, report, strengths of blocks and figures."""
    made, _, page, report, blocks, figures = run_node(
        LoraHealth, **{**SMALL, "model": model, "adapter": adapter, **changes}
    )
    assert page.shape[0] == 1 and page.shape[3] == 3 and made.layers.keys() >= {*json.loads(figures)["layers"]} - {
        each["layer"] for each in json.loads(figures)["repairs"] if not each["factor"]
    }
    return made, report, blocks, json.loads(figures)


def with_fault(adapter: Adapter, change: Change, at: int = 0) -> tuple[Adapter, str]:
    name = list(adapter.layers)[at]
    return replace(adapter, layers={**adapter.layers, name: change(adapter.layers[name])}), name


def zeroed(layer: LowRank) -> LowRank:
    return replace(layer, lora_B=torch.zeros_like(layer.lora_B))


def holed(layer: LowRank) -> LowRank:
    return replace(layer, lora_B=layer.lora_B.clone().index_fill_(1, torch.tensor([0]), float("nan")))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_layer_of_every_family_is_found_and_goes(models, random_adapter, family: str) -> None:
    model = models(family).model
    sound = random_adapter(model, preset="attention+mlp")
    bad, broken = with_fault(sound, holed)
    loud = list(sound.layers)[-1]
    bad = replace(bad, layers={**bad.layers, loud: bad.layers[loud].scaled(40)})
    made, report, _, figures = health(model, bad)
    assert report.partition(": ")[2].startswith("Not sound: 1 broken, 1 loud" if len(sound.layers) > 5 else "Not sound")
    assert {r["layer"]: r["why"] for r in figures["repairs"]}[broken] == "broken" and broken not in made.layers
    untouched = {name for name in sound.layers if name not in (broken, loud)}
    assert all(made.layers[name] is bad.layers[name] for name in untouched)
    if len(sound.layers) > 5:
        assert made.layers[loud].distance(sound.layers[loud]) < 0.02 * sound.layers[loud].norm()
    assert json.loads(made.metadata["lora_loom.merge"])["repairs"] == figures["repairs"]
