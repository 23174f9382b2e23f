"""Repairs are exact, told as they were made, and bring back what was there before a fault."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from lora_loom.lora_core.analysis.health import Health
from lora_loom.lora_core.analysis.repair import Moved, Repair, repaired, repairs_of
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stored import as_dict, from_dict


def random_layer(norm: float, seed: int) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    layer = LowRank(torch.randn(6, 24, generator=draw), torch.randn(32, 6, generator=draw), 6.0)
    return layer.scaled(norm / layer.norm())


def lora() -> dict[str, LowRank]:
    return {f"diffusion_model.blocks.{n}.attn": random_layer(0.05 * (1 + 0.05 * n), n) for n in range(8)}


def judged(layers: dict[str, LowRank]) -> Health:
    return Health.of(layers, dict.fromkeys(layers, (1.0, 1 / 3)))


@pytest.mark.parametrize("times", [8, 100, 1e4])
def test_a_loud_layer_is_as_it_was(times: float) -> None:
    sound, name = lora(), "diffusion_model.blocks.5.attn"
    bad = sound | {name: sound[name].scaled(times)}
    fixed = repaired(bad, repairs_of(judged(bad)))
    assert Moved.between(sound, fixed, ()).distance < 0.1 < Moved.between(sound, bad, ()).distance
    assert all(fixed[other] is layer for other, layer in sound.items() if other != name)


def test_singular_values_are_held_and_nothing_else() -> None:
    layer = random_layer(1.0, 3)
    left, sigma, right = torch.linalg.svd(layer.to(torch.float64).delta_weight(), full_matrices=False)
    limit = float(sigma[2])
    found = Repair("x", "outlier", 0.5, limit).applied(layer.to(torch.float64)).delta_weight()
    assert torch.allclose(found, 0.5 * (left * sigma.clamp(max=limit)) @ right, atol=1e-9)
    assert Repair("x", "outlier", 1.0, limit).applied(layer).lora_A.dtype == torch.float32


def test_what_is_told_can_be_done_again() -> None:
    bad = lora()
    names = list(bad)
    bad[names[1]] = replace(bad[names[1]], lora_A=torch.full((6, 24), inf))
    bad[names[3]] = bad[names[3]].scaled(50)
    repairs = repairs_of(judged(bad), {names[5]: 0.5, names[6]: 0.0, names[1]: 0.5})
    told = [as_dict(repair) for repair in repairs]
    assert [(t["layer"], t["why"]) for t in told] == [
        (names[1], "broken"), (names[3], "loud"), (names[5], "block"), (names[6], "block"),
    ]  # fmt: skip
    assert all("singular_values_at_most" not in each for each in told), "where nothing is held"
    again = repaired(bad, [from_dict(Repair, each) for each in told])
    fixed = repaired(bad, repairs)
    assert again.keys() == fixed.keys() == bad.keys() - {names[1], names[6]}
    assert all(torch.equal(again[name].delta_weight(), fixed[name].delta_weight()) for name in fixed)


def test_how_far_it_moved() -> None:
    before = lora()
    names = list(before)
    after = {name: layer for name, layer in before.items() if name != names[0]}
    after[names[1]] = before[names[1]].scaled(0.5)
    whole = sum(layer.norm() ** 2 for layer in before.values())
    way = before[names[0]].norm() ** 2 + (0.5 * before[names[1]].norm()) ** 2
    found = Moved.between(before, after, ())
    assert found.distance == pytest.approx((way / whole) ** 0.5)
    assert found.left == pytest.approx((sum(layer.norm() ** 2 for layer in after.values()) / whole) ** 0.5)
    assert Moved.between(before, before, ()) == Moved(0.0, pytest.approx(1.0))
