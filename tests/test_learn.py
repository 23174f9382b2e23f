"""What `dev.py bench learn` has stored is what README, docs/figures.md and the picture say; its figures add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks import _health, _joined_page, _part, _preference_page, _slider_page
from benchmarks._publish import README, ROW, STORED, pages
from benchmarks._results import BEST, DEFAULT, LOUD, NATIVE, Cost, Marks, Result, Results, append
from benchmarks._tables import best_rates, by_seed, costs, goals, means, with_best

MARKS = Marks(loss=0.3, neutral=1.1, overlap=0.6, colour=2.0, error=9.0, kin=8.0, change=6.0)


def results(*runs: tuple[str, str, int, Marks], costs: Sequence[Cost] = ()) -> Results:
    made = [Result(row, concept, seed, 200, marks) for row, concept, seed, marks in runs]
    return Results({(r.row, r.concept, r.seed): r for r in made}, {(c.row, c.round): c for c in costs})


def test_pages_say_what_was_measured() -> None:
    assert len(ROW.findall(README.read_text("utf-8"))) == 1
    for path, text in pages(Results.read([STORED])).items():
        assert path.read_text("utf-8") == text, f"{path.name}: write it with `dev.py bench learn --write`"


@pytest.mark.parametrize("bench", [_joined_page, _health, _slider_page, _preference_page])
def test_other_benches_say_what_was_measured(bench: ModuleType) -> None:
    assert bench.page() == _part.PAGE.read_text("utf-8"), "write it with `dev.py bench` and --write"


def test_what_was_measured_of_two_concepts_is_told() -> None:
    figures = [
        {"row": "ours", "pair": ["heart", "lined"], "seed": s, "figures": {"a": {"overlap": o}, "b": {"overlap": 0.2}}}
        for s, o in ((0, 0.4), (1, 0.8))
    ]
    (cells,) = [row for row in _joined_page.lines(figures, ("heart", "lined"))[1] if row[0] == "ours"]
    assert cells[:3] == ["ours", "2", "0.40 [0.30..0.50]"] and set(cells[3:]) == {""}


def test_results_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "results" / "learning.jsonl"
    found, cost = Result("ours", "heart", 1, 200, MARKS), Cost("ours", 0, 200, 50, 9.0, 8.0, 2.0)
    for entry in (replace(found, steps=1), cost, found):
        append(file, entry)
    read = Results.read([file, tmp_path / "none.jsonl"])
    assert list(read.runs.values()) == [found] and list(read.costs.values()) == [cost]


def test_a_row_is_the_mean_over_concepts_by_seeds_that_all_have() -> None:
    runs = [("ours", concept, seed, replace(MARKS, overlap=0.1 * seed)) for concept in "ab" for seed in range(3)]
    found = results(*runs, ("ours", "a", 3, MARKS))
    assert by_seed(found, "ours", ["a", "b"], "overlap") == pytest.approx([0, 0.1, 0.2])
    assert means(found, ["a", "b"])[1][0][4] == "0.10 [0.00..0.20]"


def test_the_best_rate_is_chosen_for_each_concept() -> None:
    rows = {NATIVE: (0.5, 0.1), f"{NATIVE}, 0.001": (0.4, 0.2)}
    runs = [
        (row, c, 0, replace(MARKS, overlap=o)) for row, both in rows.items() for c, o in zip("ab", both, strict=True)
    ]
    found = results(*runs)
    assert best_rates(found) == {"a": NATIVE, "b": f"{NATIVE}, 0.001"}
    assert by_seed(with_best(found), BEST, ["a", "b"], "overlap") == [pytest.approx(0.35)]


def test_costs_are_those_of_a_step_and_of_what_is_made_once() -> None:
    loud, own = Cost(LOUD, 0, 200, 50, 12.0, 10.0, 2.5), Cost(DEFAULT, 0, 200, 50, 20.0, 13.0, 4.0)
    found = results(costs=[loud, own])
    assert found.ratio(DEFAULT) == pytest.approx(1.2)  # 0.06 s beside 0.05 s
    assert found.once(DEFAULT) == pytest.approx(100)  # 7 s less the 2 s of encodings
    assert costs(found)[1][1] == (DEFAULT, "1", "20.0", "1.20", "100")
    assert found.fitting(DEFAULT, states=False) == 150  # 1 s beside the steps, and 9 s for them
    assert found.fitting(DEFAULT, states=True) == 66
    with pytest.raises(ValueError, match="'ComfyUI' costs was not measured"):
        found.ratio(NATIVE)


def test_goals_are_met_by_figures() -> None:
    quiet = replace(MARKS, change=1.5, kin=3.0, error=9.5)
    runs = [(DEFAULT, "a", 0, quiet), (LOUD, "a", 0, MARKS), (NATIVE, "a", 0, replace(MARKS, change=3.0))]
    met = {goal.text: goal.met for goal in goals(results(*runs), ["a"])}
    assert met["unrelated, times that of 0.1.0"] and not met["unrelated, times ComfyUI's"]
    assert not met["class, times that of 0.1.0"] and not met["error, times that of 0.1.0"]
    assert met["overlap, beside that of 0.1.0"] and met["overlap lost on one concept"]
