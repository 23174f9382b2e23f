"""Sketches are linear in what a LoRA does, whatever its form; the threshold is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from harness.comfyui import ROOT
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.kinds import LoKr
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.trust.sketches import LENGTH, SIDE, THRESHOLD, from_text, likeness, sketch, to_text

SHAPES = {"diffusion_model.a": (96, 64), "diffusion_model.b": (40, 160), "diffusion_model.c": (72, 72)}


def lora(seed: int, rank: int = 4, shapes: dict[str, tuple[int, int]] = SHAPES) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter({
        name: LowRank(
            torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator), 3.0
        )
        for name, (rows, columns) in shapes.items()
    })  # fmt: skip


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_it_is_linear_and_blind_to_the_factors() -> None:
    one, other = lora(1), lora(2)
    both = Adapter({n: LowRank.concat([one.layers[n].scaled(0.3), other.layers[n]]) for n in SHAPES})
    assert error(sketch(both), 0.3 * sketch(one) + sketch(other)) < 1e-5
    assert error(sketch(both.map(lambda layer: layer.truncate(8))), sketch(both)) < 1e-5
    assert error(sketch(one.map(lambda layer: layer.to(torch.bfloat16))), sketch(one)) < 0.01
    backwards = Adapter(dict(reversed(one.layers.items())))
    assert error(sketch(backwards), sketch(one)) < 1e-6


def test_other_names_and_shapes_are_other_directions() -> None:
    layer = lora(1, shapes={"diffusion_model.a": (96, 64)}).layers["diffusion_model.a"]
    renamed, folded = Adapter({"diffusion_model.z": layer}), Adapter({"diffusion_model.a": replace(layer, kernel=(2,))})
    own = sketch(Adapter({"diffusion_model.a": layer}))
    assert abs(likeness(sketch(renamed), own).similarity) < 0.1
    assert error(sketch(folded), own) < 1e-6  # a kernel is a part of the columns


def test_other_kinds_are_seen_by_what_they_change() -> None:
    left, right = torch.randn(8, 4), torch.randn(12, 16)
    name = "diffusion_model.a"
    dense = torch.kron(left, right) * 0.5
    as_lora = LowRank(torch.eye(64), dense, 64.0)
    kron = LoKr.from_parts({"lokr_w1": left, "lokr_w2": right}, None).scaled(0.5)
    assert error(sketch(Adapter({}, {}, {name: (kron,)})), sketch(Adapter({name: as_lora}))) < 1e-5


def test_text_encoders_do_not_count() -> None:
    text = Adapter({"text_encoders.clip_l.a": lora(1).layers["diffusion_model.a"]})
    assert not sketch(text).any() and likeness(sketch(text), sketch(lora(1))) == (0.0, 0.0)


def test_directions_stay_what_they_are() -> None:
    """A list outlives this version: these figures were computed once, and never change."""
    ones = LowRank(torch.ones(1, 3), torch.ones(2, 1), 1.0)
    found = sketch(Adapter({"diffusion_model.x": ones})) * SIDE
    assert found[:8].round().int().tolist() == [-6, -6, -2, 2, -6, 6, 2, -2]
    assert float(found.square().sum()) == pytest.approx(22_400)


def test_it_says_how_much_of_the_listed_one_there_is() -> None:
    found = likeness(0.4 * sketch(lora(1)) + sketch(lora(2)), sketch(lora(1)))
    assert found.strength == pytest.approx(0.4, abs=0.1)
    assert found.similarity == pytest.approx(0.4 / 1.16**0.5, abs=0.1)


def test_a_list_holds_it_in_eight_bits() -> None:
    own = sketch(lora(1))
    assert error(from_text(to_text(own)), own) < 0.02 and len(to_text(own)) < 5_600
    assert not from_text(to_text(torch.zeros(LENGTH))).any()


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "version"), ("2:AAAA", "version '2'"), ("1:AAAA", "3 bytes"), ("1:?", "Base64"),
     ("1:AADAfwAA" + to_text(torch.ones(LENGTH))[10:], "step is nan")],
)  # fmt: skip
def test_other_texts_are_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        from_text(text)


def test_the_threshold_is_what_was_measured() -> None:
    """As `dev.py bench takedown --keep` stored it: whoever changes a sketch or the threshold measures again."""
    measured = json.loads((ROOT / "tests/benchmarks/takedown.json").read_text(encoding="ascii"))
    assert (measured["threshold"], measured["length"]) == (THRESHOLD, LENGTH)
    alarms = measured["alarms"]
    others = [alarms[name] for name in ("trained, other concepts", "sums of two, other concepts", "random")]
    assert alarms["random"]["pairs"] >= 10_000
    assert all(each["recognised"] == 0 and each["highest"] < THRESHOLD for each in others)
    found = measured["detection"]
    assert min(each["recognised"] for name, each in found.items() if name.endswith(" at 1")) == 1
    assert found["merged at 0.5"]["recognised"] == 1 and found["merged at 0.3"]["recognised"] > 0.9
