"""What is loud, dead or stands out in a LoRA, what is said of it, and what it looks like."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from lora_loom.lora_core.analysis.health import Health, figures_of
from lora_loom.lora_core.analysis.health_page import health_page
from lora_loom.lora_core.analysis.health_table import health_measure
from lora_loom.lora_core.analysis.health_words import findings, verdict
from lora_loom.lora_core.low_rank import LowRank

SIZES = {"attn": 0.05, "mlp": 0.2}


def random_layer(norm: float, rank: int = 6, seed: int = 0) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 24, generator=draw), torch.randn(32, rank, generator=draw)
    layer = LowRank(down, up, float(rank))
    return layer.scaled(norm / layer.norm())


def lora(blocks: int = 6) -> dict[str, LowRank]:
    """Two kinds of layer with sizes of their own, which differ a little from block to block."""
    return {
        f"diffusion_model.blocks.{n}.{kind}": random_layer(size * (1 + 0.1 * n), seed=10 * n + at)
        for n in range(blocks)
        for at, (kind, size) in enumerate(SIZES.items())
    }


def judged(layers: dict[str, LowRank]) -> Health:
    """Beside weights of norm 1 whose strongest direction is a third of that."""
    return Health.of(layers, dict.fromkeys(layers, (1.0, 1 / 3)))


def test_a_kind_is_held_against_itself() -> None:
    """A layer four times as loud as others of its kind, and still less so than another kind is, is not usual."""
    layers = lora()
    assert judged(layers).sound
    name = "diffusion_model.blocks.3.attn"
    assert not judged(layers | {name: layers[name].scaled(3)}).loud
    (loud,) = judged(layers | {name: layers[name].scaled(5)}).loud
    assert loud.name == name


def test_a_layer_that_is_the_only_one_of_its_kind_is_held_against_all() -> None:
    layers = lora() | {"diffusion_model.text_embedding": random_layer(0.9)}
    assert judged(layers).sound, "a kind of its own may be as far off as kinds are from each other"
    far = layers | {"diffusion_model.text_embedding": random_layer(400.0)}
    assert [layer.name for layer in judged(far).loud] == ["diffusion_model.text_embedding"]


def test_of_a_few_layers_none_is_usual() -> None:
    few = dict(list(lora().items())[:4])
    few[next(iter(few))] = random_layer(0.9)
    assert judged(few).sound


def test_nothing_is_held_against_weights_that_are_not_known() -> None:
    layers = lora()
    layers["diffusion_model.blocks.0.attn"] = layers["diffusion_model.blocks.0.attn"].scaled(100)
    assert Health.of(layers, {}).sound and "is not known" in findings(Health.of(layers, {}))[0]


def test_weights_of_zeros_make_nothing_loud() -> None:
    layer = random_layer(0.01)
    assert figures_of("x", layer, (0.0, 0.0)).share == pytest.approx(0.01 / (0.001 * (24 * 32) ** 0.5))


def test_the_rank_that_holds_it() -> None:
    layers = {f"diffusion_model.blocks.{n}.attn": random_layer(0.05, rank=1).truncate(1) for n in range(6)}
    wide = LowRank(torch.zeros(7, 24), torch.zeros(32, 7), 7.0)
    health = judged({name: LowRank.concat([layer, wide]) for name, layer in layers.items()})
    assert health.rank_for() == 1 and health.layers[0].effective_rank == pytest.approx(1)
    assert findings(health)[-1].startswith("Rank: 1 of 8 hold 99 % of it, so Resize LoRA with rank 1 makes")
    assert judged(lora()).rank_for() > 3 and findings(judged(lora()))[-1].endswith("hold 99 % of it.")


def test_what_is_said_and_shown() -> None:
    layers = lora()
    names = list(layers)
    layers[names[0]] = replace(layers[names[0]], lora_A=torch.full((6, 24), inf))
    layers[names[2]] = layers[names[2]].scaled(20)
    layers[names[4]] = layers[names[4]].scaled(0)
    health = judged(layers)
    assert verdict(health) == "Not sound: 1 broken, 1 loud and 1 dead, of 12 layers."
    said = " ".join(findings(health))
    assert f"Broken: 1 layer ({names[0]}) holds NaN or infinite values" in said
    assert f"Loud: 1 layer ({names[2]}) is far louder than others of the kind, most {names[2]}" in said
    assert f"Dead: 1 layer ({names[4]}) changes nothing." in said
    measure = health_measure(health, [])
    told, blocks, table = measure.tables
    assert [line.name for line in told.lines] == ["Broken", "Loud", "Dead", "Strength", "Rank"]
    assert measure.verdict == verdict(health) and [line.name for line in blocks.lines][:2] == ["blocks.0", "blocks.1"]
    assert [line.name for line in table.lines][:2] == [names[0], names[2]], "the worst first"
    assert [line.cells[-1].text for line in table.lines if line.cells[-1].text] == ["broken", "loud", "dead"]
    assert measure.plain() and health_page("x", health).size == (1280, 320)


def test_nothing_at_all_can_be_drawn() -> None:
    dead = {name: layer.scaled(0) for name, layer in lora().items()}
    health = judged(dead)
    assert health_page("x", health).size == (1280, 320) and health_measure(health, []).curve is None
    assert len(health.dead) == 12 and health.kept() == []
