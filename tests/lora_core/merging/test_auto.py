"""Checks what auto proposes, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.auto import propose
from lora_loom.lora_core.merging.merge import merge
from lora_loom.lora_core.merging.settings import MergeSettings
from lora_loom.lora_core.stack.weighted import Weighted, exact_sum


def lora(seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(4, 40, generator=generator), torch.randn(30, 4, generator=generator), 4.0)


def part(name: str, own: int, shared: float = 0.0, strength: float = 1.0) -> Weighted:
    """A LoRA of its own beside `shared` times what all of them have."""
    both = LowRank.concat([lora(own), lora(1000).scaled(shared)]) if shared else lora(own)
    return Weighted(name, Adapter({"w": both, f"only {name}": lora(own + 1)}), strength, strength)


def test_strangers_are_added_as_they_are():
    parts = [part("a", 1), part("b", 10)]
    found = propose(parts)
    assert found.method == "sum" and found.parts == parts and "they hardly overlap" in found.reasons[-1]


def test_what_overlaps_is_made_quieter():
    found = propose([part("a", 1, 1.0), part("b", 10, 1.0)])
    assert found.method == "sum" and "a and b overlap (cosine 0.3" in found.reasons[0]
    scale = found.parts[0].strength
    assert (
        0.7 < scale < 1 and found.parts[1].text_strength == scale and f"multiplied by {scale:.2f}" in found.reasons[1]
    )
    given = [part("a", 1, 1.0), part("b", 10, 1.0)]
    energy = sum(each.norm() ** 2 for layers in ([p] for p in given) for each in exact_sum(layers).values())
    assert sum(each.norm() ** 2 for each in exact_sum(found.parts).values()) == pytest.approx(energy, rel=1e-5)


def share(layers: dict[str, LowRank], of: Weighted) -> float:
    """How much of a LoRA is in a merge: 1 when it is there as it was."""
    own = of.adapter.layers
    return sum(layers[name].inner(own[name]) for name in own) / sum(each.inner(each) for each in own.values())


def test_doubles_and_rivals_are_made_orthogonal():
    assert propose([part("a", 1, 3.0), part("b", 10, 3.0), part("c", 20)]).method == "orthogonal"
    given = [part("a", 1, 1.0), part("b", 10, -1.0), part("c", 20)]
    rivals = propose(given)
    assert (
        rivals.method == "orthogonal"
        and "a and b work against each other, " in rivals.reasons[0]
        and "(cosine -0.3" in rivals.reasons[0]
    )
    summed, made = (merge(given, MergeSettings(method)).layers for method in ("sum", "orthogonal"))
    for each, least in zip(given, (0.75, 0.75, 0.98), strict=True):
        kept, of_sum = (share(layers, each) for layers in (made, summed))
        assert kept > least and kept > of_sum - 0.03, "of each at least what the sum keeps"
    undone = propose([part("a", 1, 3.0), part("b", 10, -3.0), part("c", 20)])
    assert undone.method == "sum" and "a and b undo each other (cosine -0.8" in undone.reasons[0]
    fixed = propose([part("lcm", 30), part("a", 1, 1.0), part("b", 10, -1.0)])
    assert fixed.method == "sum" and "this is not changed" in fixed.reasons[-1]


def test_few_step_loras_keep_their_strength():
    found = propose([part("sdxl_lightning_4step", 30, 1.0), part("a", 1, 1.0), part("b", 10, 1.0)])
    assert found.parts[0].strength == 1.0 > found.parts[1].strength and found.method == "sum"
    assert "sdxl_lightning_4step keeps its strength, because it is made for few" in found.reasons[0]
    assert propose([part("lcm", 1, 3.0), part("b", 10, 3.0)]).method == "sum"


def test_a_subtraction_is_meant():
    found = propose([part("a", 1, 3.0), part("b", 10, 3.0, -1.0)])
    assert found.method == "sum" and "one LoRA is subtracted" in found.reasons[0] and found.parts[1].strength == -1.0


def test_one_alone_is_left_alone():
    alone = part("a", 1)
    found = propose([alone])
    assert (found.method, found.parts) == ("sum", [alone]) and "no two LoRAs to compare" in found.reasons[0]


def test_loras_that_do_nothing_are_no_reason():
    idle = [Weighted(name, Adapter({"w": replace(lora(0), lora_B=torch.zeros(30, 4))}), 1.0, 1.0) for name in "ab"]
    assert propose(idle).method == propose([idle[0], part("c", 1)]).method == "sum"
