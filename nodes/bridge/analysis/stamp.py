"""Writes what LoRA Report measured into the contract of the adapter that it was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker

from ....lora_core.adapter import Adapter
from ....lora_core.analysis.leakage import CONCEPT
from ....lora_core.files.hashes import content_hash
from ....lora_core.files.lineage import CONTRACT
from ....lora_core.files.metadata import HINT, STRENGTH
from ....lora_core.trust.contract import Contract, Outcome, contract_of


def stamped(
    adapter: Adapter | None, strength: float, figures: str, seed: int, seeds: int, alone: bool
) -> Adapter | ExecutionBlocker:
    """Return the adapter with what was measured, and on which day, in its contract, and with the strength that is
    suggested. `figures` is LoRA Report's JSON."""
    if adapter is None or not alone:
        return ExecutionBlocker("only an adapter that LoRA Report tests alone has results to save: connect one adapter")
    measured = json.loads(figures)
    copied = measured.get("memorisation")
    tested = Outcome(
        datetime.now(timezone.utc).date().isoformat(), seed, seeds, content_hash(adapter), _ratios(measured),
        samples=len(copied["samples"]) if copied else None, near=len(copied["near"]) if copied else None,
        strength=strength,
    )  # fmt: skip
    contract = replace(contract_of(adapter.metadata) or Contract(), tested=tested)
    return replace(adapter, metadata={**adapter.metadata, **_usage(measured), CONTRACT: contract.to_text()})


def _usage(measured: Mapping[str, Any]) -> dict[str, str]:
    """The strength to use it at and the sentence that says so, in the header's own keys."""
    found = measured.get("strength") or {}
    return {HINT: found["hint"], STRENGTH: f"{found['suggested']['strength']:g}"} if found.get("suggested") else {}


def _ratios(measured: Mapping[str, Any]) -> dict[str, float]:
    """By group of prompts; one without an end, as nothing changes with the trigger, is left out."""
    found = {name: each["latent_ratio"] for name, each in measured["leakage"].items() if name != CONCEPT}
    return {name: round(ratio, 4) for name, ratio in found.items() if ratio is not None}
