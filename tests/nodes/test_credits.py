"""LoRA Credits names what is on a MODEL, and who wrote it where the header is silent."""

from __future__ import annotations

import json
from pathlib import Path

from harness.calls import run_node
from lora_loom.lora_core.trust.contract import Contract
from lora_loom.nodes.credits import LoraCredits
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora


def test_of_headers_contracts_and_side_files(models, loras: Path, random_adapter) -> None:
    model = models("sd15").model
    saved = {"adapter": random_adapter(model), "model": model, "format": "comfyui", "dtype": "fp32"}
    run_node(SaveLora, name="ink", contract=Contract(author="Ada", licence="CC-BY-NC-4.0"), **saved)
    run_node(SaveLora, name="oil", **saved)
    told = {"model": {"allowCommercialUse": [], "name": "Oil"}, "creator": {"username": "bob"}}
    (loras / "oil.civitai.info").write_text(json.dumps(told))
    out = run_node(LoadLoraStack, model=model, rows="<lora:ink:0.5>\n<lora:oil:1>")
    assert "pictures of this stack: no commercial use (ink, oil), credit ink" in out[3]
    text = run_node(LoraCredits, model=out[0], form="list")[0]
    assert text.splitlines()[0].endswith("by Ada (strength 0.5; CC-BY-NC-4.0)")
    assert text.splitlines()[1].endswith(
        "by bob (as Civitai Helper says) (strength 1; no commercial use, as Civitai Helper says)"
    )
    assert run_node(LoraCredits, model=model)[0] == ""
