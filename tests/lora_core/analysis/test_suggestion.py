"""What LoRA Report says of a curve and of parts of blocks."""

from __future__ import annotations

from lora_loom.lora_core.analysis.suggestion import Suggestion, Without
from lora_loom.lora_core.training.strengths import STRENGTHS, StrengthCurve, StrengthPoint

CURVE = StrengthCurve(
    tuple(
        StrengthPoint(*each)
        for each in zip((0.0, *STRENGTHS), (0, 0.5, 0.98, 1, 1, 0.9), (0, 0.2, 0.4, 0.7, 1, 1.4), strict=True)
    ),
    pictures=4, captions=8,
)  # fmt: skip
OUT, IN = Without("OUT", 0.7, 0.2), Without("IN", 0.96, 0.6)


def test_a_strength_and_a_part_are_suggested() -> None:
    found = Suggestion(CURVE, (OUT, IN))
    assert found.hint == "Use it at 0.5: 98 % of what it learned, 40 % of what else it changes"
    assert found.report().startswith(
        f"{found.hint}. In Load LoRA Stack, blocks IN=0 leaves 96 % of what it learned and 60 % of what else it "
        "changes."
    ), "OUT spares more and costs too much"
    assert found.figures()["blocks"] == "IN=0" and found.figures()["suggested"]["strength"] == 0.5
    curve, (by_strength, by_part) = found.chart(), found.tables()
    assert found.advice() == found.parts_sentence() and Suggestion(CURVE, (OUT,)).advice() == ""
    assert (
        curve and curve.title == found.hint and curve.mark == (0.5, 0.98) and len(curve.points) == len(curve.told) == 6
    )
    assert [line.name for line in by_strength.lines][-1] == "1.25" and [line.name for line in by_part.lines] == [
        "OUT=0",
        "IN=0",
    ]


def test_a_part_that_costs_too_much_is_said() -> None:
    found = Suggestion(CURVE, (OUT, Without("IN", 0.97, 0.95)))
    assert found.parts_sentence() == (
        "No part of its blocks can be left out: even without OUT, there is 70 % of what it learned and 20 % of what "
        "else it changes."
    )
    assert found.figures()["blocks"] == "" and not Suggestion(CURVE).parts_sentence()


def test_without_pictures_no_strength_is_suggested() -> None:
    found = Suggestion(CURVE, seen=False)
    assert found.suggested is None and found.hint == "" and found.chart().mark is None and not found.advice()
    assert found.strength_sentence().endswith(
        "At 0.75, prompts with the trigger change by 100 % of what they do at 1, neutral ones by 70 %."
    )


def test_a_lora_that_gains_nothing_has_no_curve() -> None:
    for seen, said in ((True, "is no nearer to the pictures"), (False, "connect them as dataset")):
        found = Suggestion(StrengthCurve((), 4, 8), seen=seen)
        assert said in found.report() and found.chart() is None and found.tables() == ()
