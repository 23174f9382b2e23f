"""Strengths of parts are proposed that keep the concept and spare what else changes, and no others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from lora_loom.lora_core.analysis.health_effect import Effect, Effects
from lora_loom.lora_core.analysis.part_strengths import of_layers, proposed, sections
from lora_loom.lora_core.families.blocks import strengths
from lora_loom.lora_core.training.strengths import StrengthPoint

NAMED = {"IN": ["in.a", "in.b"], "MID": ["mid.a"], "OUT": ["out.a"]}


class Model:
    """Each layer adds to the concept and to what else changes, in proportion to its factor."""

    def __init__(self, **adds: tuple[float, float]):
        self.adds, self.looks = adds, 0

    def look(self, factors: Mapping[str, float]) -> StrengthPoint:
        self.looks += 1
        own = {part: factors.get(layers[0], 1.0) for part, layers in NAMED.items()}
        sums = [sum(own[part] * both[at] for part, both in self.adds.items()) for at in (0, 1)]
        return StrengthPoint(1.0, *sums)


def test_what_costs_little_and_spares_much_is_turned_off() -> None:
    model = Model(IN=(0.02, 0.4), MID=(0.08, 0.2), OUT=(0.9, 0.4))
    found = proposed(NAMED, model.look)
    assert found.factors == {"IN": 0.0} and (found.concept, found.leak) == pytest.approx((0.98, 0.6))
    assert found.text() == "IN=0" and [each.part for each in found.without] == list(NAMED)
    assert of_layers(found.factors, NAMED) == {"in.a": 0.0, "in.b": 0.0} and model.looks <= 3 + 2 * 3


def test_half_of_it_where_all_would_be_too_much() -> None:
    found = proposed(NAMED, Model(IN=(0.08, 0.5), MID=(0.12, 0.1), OUT=(0.8, 0.4)).look)
    assert found.factors == {"IN": 0.5} and found.concept == pytest.approx(0.96)


def test_nothing_where_too_much_is_lost() -> None:
    found = proposed(NAMED, Model(IN=(0.3, 0.4), MID=(0.3, 0.2), OUT=(0.4, 0.4)).look)
    assert found.factors == {} and found.text() == "" and (found.concept, found.leak) == (1.0, 1.0)
    said = Effects(0.5, None, Effect(0.4, None, 0.1), found).sentences()
    assert said[-1].startswith("Blocks: none can be turned down, ")


def test_names_are_those_that_a_row_takes() -> None:
    layers = [f"diffusion_model.double_blocks.{n}.img_attn.qkv" for n in range(3)]
    layers += [f"diffusion_model.{name}" for name in ("single_blocks.0.linear1", "final_layer.linear")]
    layers.append("text_encoders.x.layers.0")
    named = sections(layers, each_block=True)
    assert list(named) == [*(f"double_blocks.{n}" for n in range(3)), "single_blocks.0", "REST", "TEXT"]
    for name, own in named.items():
        assert [layer for layer, factor in strengths(f"{name}=0", layers).items() if not factor] == own
    assert list(sections(layers, each_block=False)) == ["double", "single"]
    assert sections(layers[-1:], each_block=True) == {}


def test_what_is_said_of_before_and_after() -> None:
    seen = Effects(0.5, Effect(0.45, None, 0.2), Effect(0.4, None, 0.1)).sentences()
    assert seen == [
        "Concept: nearer to its pictures than the base model, loss 0.4000 against 0.5000.",
        "Before and after: neutral prompts change by 50 % of what they did, and the loss on the concept is 0.4000, "
        "where it was 0.4500.",
    ]
    told = Effects(None, Effect(None, 0.4, 0.2), Effect(None, 0.4, 0.1)).sentences()
    assert told[0] == "Leakage: neutral prompts change by 25 % of what prompts with the trigger do."
    assert told[1].endswith("and prompts with the trigger as before.")
    wild = Effects(None, Effect(None, float("nan"), 0.2), Effect(None, 0.0, 0.1))
    assert wild.sentences() == [
        "Trigger: prompts with it are not changed; check how it is written.",
        "Before and after: the model's answers were no numbers before the repair.",
    ]  # fmt: skip
    assert wild.figures()["before"] is None
    far = Effects(0.5, None, Effect(0.6, None, 0.1))
    assert far.sentences()[0].startswith("Concept: no nearer to its pictures than the base model, loss 0.6")
    assert [line.name for line in far.tables()[0].lines] == ["base model", "after"]
