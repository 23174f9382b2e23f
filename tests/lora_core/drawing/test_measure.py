"""Figures for the front end are JSON whatever they are."""

from __future__ import annotations

import json

from lora_loom.lora_core.drawing.measure import Curve, Measure, bars


def test_figures_that_are_no_numbers_are_sent_as_none_and_drawn_as_nothing() -> None:
    table = bars("Change", "picture", ("by",), [("a", [float("nan")]), ("b", [0.5])])
    curve = Curve("Error", "rank", "error", ((1.0, float("inf")),), ("not known",))
    sent = json.loads(Measure("Something is not finite.", tables=(table,), curve=curve).as_json())
    assert [line["cells"][0][:2] for line in sent["tables"][0]["lines"]][0] == ["nan", 0.0]
    assert sent["curve"]["points"] == [[1.0, None]]
