"""The log of a run is read while it grows, each line once, whatever stands in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from harness.run_folders import log, steps
from lora_loom.lora_core.drawing.plot import smooth
from lora_loom.lora_core.runs import log_reading
from lora_loom.lora_core.runs.log_reading import Curve, LogFigures
from lora_loom.lora_core.runs.run_log import RunLog


def curve(folder: Path) -> Curve:
    found = Curve()
    assert found.look(folder / "log.jsonl")
    return found


def test_a_curve_grows_and_is_the_same_as_read_at_once(tmp_path: Path) -> None:
    lines = steps(range(1, 41))
    for index, line in enumerate(lines):
        line["loss"] = math.sin(index)
    grown, path = Curve(), tmp_path / "log.jsonl"
    for index, line in enumerate(lines):
        log(tmp_path, [line], add=True)
        with open(path, "a", encoding="utf-8") as file:  # the next line, half written
            file.write('{"step": 99, "lo')
        assert grown.look(path) and grown.last == index + 1
        path.write_bytes(path.read_bytes()[: -len('{"step": 99, "lo')])
    told = grown.thinned(0, 1000)
    assert told == curve(tmp_path).thinned(0, 1000)
    assert told["loss"] == pytest.approx(smooth([line["loss"] for line in lines]), rel=1e-5)
    assert (told["steps"], told["next"], told["learning_rate"][0]) == (list(range(1, 41)), 41, 1e-4)
    assert grown.thinned(38, 1000)["steps"] == [38, 39, 40] and grown.thinned(41, 1000)["steps"] == []


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, steps(range(1, 201)))
    found, figures = curve(tmp_path), LogFigures()
    figures.look(tmp_path / "log.jsonl")
    read: list[bytes] = []
    real = log_reading.parsed
    monkeypatch.setattr(log_reading, "parsed", lambda line: read.append(line) or real(line))
    log(tmp_path, steps([201]), add=True)
    assert found.look(tmp_path / "log.jsonl") and found.last == 201
    assert len(read) == 1


def test_steps_that_were_taken_back_are_gone(tmp_path: Path) -> None:
    again = steps([3, 4], loss=9.0)
    log(tmp_path, [*steps(range(1, 6)), {"step": 2, "event": "back to step 2", "time": 1e9 + 6}, *again])
    told = curve(tmp_path).thinned(0, 1000)
    assert (told["steps"], told["raw"]) == ([1, 2, 3, 4], [0.5, 0.5, 9.0, 9.0])
    assert told["loss"] == pytest.approx(smooth([0.5, 0.5, 9.0, 9.0]), rel=1e-5)
    assert told["events"] == [[2, "back to step 2"]]


def test_a_log_that_was_cut_is_read_anew(tmp_path: Path) -> None:
    """As by a run that goes on from its last save: it is longer again when it is looked at."""
    path, found, figures = tmp_path / "log.jsonl", Curve(), LogFigures()
    log(tmp_path, steps(range(1, 31)))
    assert found.look(path) and figures.look(path)
    RunLog(path).resume(events=10, step=10)
    log(tmp_path, steps(range(11, 61), time=1e9 + 5000, loss=0.25), add=True)
    assert found.look(path) and figures.look(path)
    assert found.thinned(0, 1000)["steps"] == list(range(1, 61)) and found.losses[20] == 0.25
    assert figures.step == 60 and figures.loss == curve(tmp_path).thinned(60, 1)["loss"][0]


def test_the_time_of_a_pause_does_not_count(tmp_path: Path) -> None:
    resumed = {"step": 10, "event": "resumed", "time": 1e9 + 5000}
    log(tmp_path, [*steps(range(1, 11)), resumed, *steps(range(11, 21), time=1e9 + 5000 - 10)])
    whole, grown = LogFigures(), LogFigures()
    whole.look(tmp_path / "log.jsonl")
    (tmp_path / "grown").mkdir()
    for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines():
        log(tmp_path / "grown", [json.loads(line)], add=True)
        grown.look(tmp_path / "grown" / "log.jsonl")
    assert whole.seconds == grown.seconds == 9 + 10


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_ten_thousand_steps_are_thinned_to_the_last(tmp_path: Path, most: int) -> None:
    log(tmp_path, steps(range(1, 10_001)))
    told = curve(tmp_path).thinned(0, most)
    assert len(told["steps"]) <= most and told["steps"][-1] == 10_000 and told["next"] == 10_001
    assert len({len(told[name]) for name in ("steps", "loss", "raw", "learning_rate")}) == 1


def test_parts_of_a_long_log_come_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, [*steps(range(1, 300)), {"step": 299, "event": "resumed", "time": 2e9}])
    once, parts = LogFigures(), LogFigures()
    once.look(tmp_path / "log.jsonl")
    monkeypatch.setattr(log_reading, "_PART", 256)
    assert not parts.look(tmp_path / "log.jsonl", until=0.0), "the time is over after the first part"
    assert parts.look(tmp_path / "log.jsonl")
    assert (parts.step, parts.seconds) == (once.step, once.seconds) == (299, 298.0)


HOSTILE = (
    b"", b"\n\n", b"[]", b"nonsense", b'{"step": 1e999, "loss": 1}', b'{"step": "2", "loss": 1}', b"\xff\xfe\n",
    b'{"step": true, "loss": 1}', b'{"step": -5, "loss": 1}', b'{"step": 99999999999, "loss": 1}', b"[" * 100_000,
    b'{"step": 3, "loss": NaN, "time": NaN}', b'{"step": 3, "loss": Infinity}', b'{"step": 3, "loss": "1"}',
    b'{"step": 3, "event": {"x": 1}}', b'{"step": 3, "loss": ' + b"9" * 400 + b"}", b'{"event": "resumed"}',
)  # fmt: skip


def test_damaged_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    good = [json.dumps(line).encode() for line in steps([1, 2])]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([good[0], *HOSTILE, good[1], b'{"step": 3, "lo']))
    found, figures = curve(tmp_path), LogFigures()
    assert figures.look(tmp_path / "log.jsonl")
    told = json.loads(json.dumps(found.thinned(0, 1000), allow_nan=False))
    assert told["steps"] == [1, 2] and (figures.step, figures.loss, figures.seconds) == (2, 0.5, 1.0)


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    log(tmp_path, [{"step": 1, "loss": 0.5, "learning_rate": math.nan, "time": 1.0}, {"step": 2, "loss": 0.5}])
    assert json.dumps(curve(tmp_path).thinned(0, 10)["learning_rate"]) == "[null, null]"


def test_many_events_are_bounded(tmp_path: Path) -> None:
    log(tmp_path, [{"step": n, "event": "x" * 5000} for n in range(1000)])
    events = curve(tmp_path).thinned(0, 10)["events"]
    assert len(events) == 200 and events[-1][0] == 999 and len(events[0][1]) == 400
