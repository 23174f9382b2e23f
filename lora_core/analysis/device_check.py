"""Tells what a device check found, as JSON and as a page to attach to a report: verdicts first, no paths, no names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..stored import as_dict, stored
from ..version import VERSION

SECTIONS = ("right", "memory", "time")
TITLES = {"right": "Is it right", "memory": "Memory", "time": "Time"}
_PATH = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\|(?<![\w./~])~?/(?=\S))(?:[^\s'\"<>|:*?,;]+[\\/])*([^\s'\"<>|:*?,;\\/]*)")


@stored("section name passed text figures verdict")
@dataclass(frozen=True)
class CheckFinding:
    """One thing that was looked at. `passed` is None for what was only measured, or left out for a reason that `text`
    gives; a `verdict` stands at the top of the page."""

    section: str
    name: str
    passed: bool | None
    text: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    verdict: bool = False

    def line(self) -> str:
        if self.passed is None:
            return self.text if self.verdict else f"{self.name}: {self.text}"
        return f"{'ok' if self.passed else 'FAIL'} {self.name}: {self.text}"


@dataclass(frozen=True)
class Check:
    """All findings, and what they were found on."""

    who: Mapping[str, str]
    findings: Sequence[CheckFinding]
    seconds: float
    quick: bool = False

    @property
    def passed(self) -> bool:
        """Return whether nothing failed and something was looked at."""
        told = [finding.passed for finding in self.findings if finding.passed is not None]
        return bool(told) and all(told)

    def verdicts(self) -> list[str]:
        """Return what failed, how much was right, and what the measurements come to."""
        wrong = [finding for finding in self.findings if finding.passed is False]
        right = sum(finding.passed is True for finding in self.findings)
        first = f"{right} checks passed, {len(wrong)} failed" if wrong else f"all {right} checks passed"
        measured = [finding.line() for finding in self.findings if finding.verdict and finding.passed is not False]
        return [*(finding.line() for finding in wrong), first, *measured]

    def as_json(self) -> str:
        told = {
            "lora_loom": VERSION, "passed": self.passed, "quick": self.quick, "seconds": round(self.seconds, 1),
            "verdicts": self.verdicts(), "who": dict(self.who),
            "findings": as_dict(list(self.findings)),
        }  # fmt: skip
        return json.dumps(told, indent=1) + "\n"

    def page(self) -> str:
        """Markdown."""
        head = ["# LoRA Loom on this device", "", *(f"- {line}" for line in self.verdicts()), "", "## System", ""]
        what = "quick check" if self.quick else "full check"
        who = [f"| {name} | {value} |" for name, value in self.who.items()]
        who += [f"| LoRA Loom | {VERSION}, {what} in {self.seconds:.0f} s |"]
        return "\n".join([*head, "| | |", "|---|---|", *who, *_tables(self.findings)]) + "\n"


def _tables(findings: Sequence[CheckFinding]) -> list[str]:
    lines = []
    for section in SECTIONS:
        rows = [f for f in findings if f.section == section]
        if rows:
            lines += ["", f"## {TITLES[section]}", "", "| | | |", "|---|---|---|"]
            lines += [f"| {row.name} | {_mark(row.passed)} | {_cell(row.text)} |" for row in rows]
    return lines


def _mark(passed: bool | None) -> str:
    return {True: "ok", False: "FAIL", None: ""}[passed]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def without_paths(text: str) -> str:
    """Return the text with every absolute path cut down to its last part, and anybody's home with it."""
    return _PATH.sub(lambda match: match[1] or "...", text)


def share(value: float) -> str:
    """Return a relative difference, as people read it; 0 means equal to the bit."""
    return f"{value:.2g}"
