from __future__ import annotations

import io
import sys

import pytest
from lora_loom.console.words import Words, bar, clock


class Terminal(io.TextIOWrapper):
    def __init__(self, is_one: bool) -> None:
        super().__init__(io.BytesIO(), encoding="cp1252")
        self.is_one = is_one

    def isatty(self) -> bool:
        return self.is_one

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def stderr(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> Terminal:
    monkeypatch.setattr(sys, "stderr", made := Terminal(is_terminal))
    return made


def test_the_line_that_moves_goes_before_one_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, True)
    words = Words()
    words.moving("step 1 of 2")
    words.moving("passed over: too soon")
    words.line("done")
    assert terminal.text() == "\rstep 1 of 2" + "\r" + " " * 11 + "\r" + "done\n"


def test_where_there_is_no_terminal_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, now = stderr(monkeypatch, False), 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    words = Words()
    for step in range(200):
        now += 1.0
        words.moving(f"step {step}")
    assert terminal.text().splitlines() == ["step 0", "step 60", "step 120", "step 180"]


def test_letters_that_a_terminal_lacks_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, False)
    Words().line("train \u8bad\u7ec3 caf\xe9")
    assert terminal.text() == "train ?? caf\xe9\n"


def test_another_rank_tells_errors_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    terminal = stderr(monkeypatch, False)
    words = Words(silent=True, name="rank 1 on host")
    words.line("a line")
    words.moving("a step", now=True)
    words.result("a file")
    words.error("it failed")
    assert terminal.text() == "rank 1 on host: it failed\n" and capsys.readouterr().out == ""


def test_bar_and_clock() -> None:
    assert bar(1, 2) == "[" + "#" * 12 + "." * 12 + "]" and bar(5, 0) == "[" + "." * 24 + "]"
    assert [clock(seconds) for seconds in (62, 3723.9)] == ["1:02", "1:02:03"]
