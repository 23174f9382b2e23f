"""The README's table of what was verified: written by a test run, and held to by every run of the whole suite.

A test that proves something for a family says so, and what did not pass is not claimed:

    @pytest.mark.verifies("Files", "{style}")
    def test_core_loader_applies_every_layer(models, family: str, style: str) -> None:

The first argument is a column of COLUMNS, the second what its cell says ("yes" unless given), with the test's
parameters in braces. The row is that of the parameter `family`; else name it, `family="{pair}"` or `family="flux1"`.
Tests that say the same of the same row must all pass. With `record_property("error", figure)` in the test, the cell
gives the worst figure's next power of ten; a run on another machine only has to stay below it.

`python dev.py test -m verifies --write-readme` writes the table. A run of the whole suite fails when the table claims
what it did not verify, or lacks what it did; a run of a part of it compares nothing. With pytest-xdist the workers tell
their claims with their tests' reports.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from harness.comfyui import ROOT
from harness.inprocess import load_comfyui

README = ROOT / "README.md"
MARKS = "<!-- verified: written by `dev.py test -m verifies --write-readme` -->\n", "<!-- /verified -->\n"
COLUMNS = "Model", "Trains", "Base types", "Loss", "Gradients", "Files", "In diffusers", "Stack", "Merge"
FINEST = 3e-8  # below fp32's rounding, figures differ between machines and mean nothing
SHORT = {"torch.": "", "bfloat": "bf", "float": "fp"}
_CLAIM, _PART = "verifies", "lora_loom_part"
PARTIAL = "ignore", "ignore_glob", "lf", "collectonly"
# Models with a row of their own beside their family's.
VARIANTS = {
    "sdxl_v": "SDXL, v-prediction",
    "sd35_large": "SD 3.5 large",
    "sd35_medium": "SD 3.5 medium",
    "wan22_5b": "Wan 2.2 5B",
    "kandinsky5_clips": "Kandinsky 5, clips",
}


@dataclass
class Claim:
    """Holds what one or more tests say of a row, and their figures."""

    passed: bool = True
    errors: list[float] = field(default_factory=list)

    def text(self, entry: str, claimed: str) -> str:
        """`claimed` is what the cell says so far: a power of ten in it that still holds stays."""
        if not self.errors:
            return entry
        worst = max(*self.errors, FINEST)
        before = re.search(rf" ({re.escape(entry)} ?< (1e-?\d+))", f" {claimed}")
        if before and worst < float(before[2]):
            return before[1]
        return f"{entry} < 1e{math.ceil(math.log10(3 * worst))}".strip()


class VerifiedTable:
    """A pytest plugin."""

    def __init__(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "verifies(column, entry, family): a claim of the README's table")
        self.write = config.getoption("write_readme")
        self.worker = getattr(config, "workeroutput", None)  # where a worker of pytest-xdist leaves word
        self.whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        self.whole &= not any(config.getoption(name, None) for name in PARTIAL)  # a plugin may be off
        self.claims: dict[tuple[str, str, str], Claim] = {}
        self.complaint: list[str] = []

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        if any(item.get_closest_marker("verifies") for item in items):
            self._note_part()

    def _note_part(self) -> None:
        self.whole = False
        if self.worker is not None:
            self.worker[_PART] = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        self.whole &= _PART not in getattr(node, "workeroutput", {_PART: error})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for mark in item.iter_markers("verifies"):
            family, column, entry = (text.format(**parameters) for text in _arguments(*mark.args, **mark.kwargs))
            for name, short in SHORT.items():
                entry = entry.replace(name, short)
            report.user_properties.append((_CLAIM, [titles()[family], column, entry]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        errors = [value for name, value in report.user_properties if name == "error"] if report.when == "call" else []
        for place in (value for name, value in report.user_properties if name == _CLAIM):
            claim = self.claims.setdefault(tuple(place), Claim())
            claim.passed &= report.passed
            claim.errors += errors

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.worker is not None or not self.whole or exitstatus != pytest.ExitCode.OK:
            return
        head, old, tail = split(README)
        new = table(self.claims, "" if self.write else old)
        if self.write:
            README.write_text(head + new + tail, encoding="utf-8", newline="\n")
        elif new != old:
            self.complaint = list(
                difflib.unified_diff(old.splitlines(), new.splitlines(), "README.md", "this run", lineterm="")
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.complaint:
            terminalreporter.section("README.md does not tell what this run verified", red=True)
            terminalreporter.write_line("\n".join(self.complaint))
            terminalreporter.write_line(f"To write it: {MARKS[0].split('`')[1]}")


def _arguments(column: str, entry: str = "yes", family: str = "{family}") -> tuple[str, str, str]:
    assert column in COLUMNS, f"{column} is none of the columns {', '.join(COLUMNS)}"
    return family, column, entry


def split(readme: Path) -> tuple[str, str, str]:
    """The text before the table, the table, and the text after it."""
    head, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    old, _, tail = rest.partition(MARKS[1])
    return head + MARKS[0], old, MARKS[1] + tail


def table(claims: dict[tuple[str, str, str], Claim], claimed: str = "") -> str:
    """Markdown, one row per title; `claimed` is the table so far."""
    before = {cells[1]: dict(zip(COLUMNS, cells[1:], strict=False)) for cells in map(_cells, claimed.splitlines())}
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for title in dict.fromkeys(titles().values()):
        row = [title]
        for column in COLUMNS[1:]:
            entries = {entry: claim for (*place, entry), claim in claims.items() if place == [title, column]}
            old = before.get(title, {}).get(column, "")
            told = [part.partition(" <")[0] for part in old.split(", ")]
            ordered = sorted(entries, key=lambda entry: told.index(entry) if entry in told else len(told))
            passed = [entries[entry].text(entry, old) for entry in ordered if entries[entry].passed]
            row.append(", ".join(passed) or "-")
        lines.append(row)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


@cache
def titles() -> dict[str, str]:
    """The row of each model of tests/tiny, in the order of the pack's families."""
    load_comfyui()  # which the process that hands tests out to others has had no need of
    from lora_loom.lora_core.families.table import FAMILIES, for_config_class
    from tiny.families import FAMILIES as MODELS

    order = [family.name for family in FAMILIES]
    known = {name: for_config_class(row.config).name for name, row in MODELS.items()}
    names = sorted(known, key=lambda name: order.index(known[name]))
    return {name: VARIANTS.get(name, known[name]) for name in names} | {"wan_demo": "Wan 2.1"}
