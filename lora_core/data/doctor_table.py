"""Lays out what Dataset Doctor has found, as the front end shows it: a verdict, then a table for each urgency."""

from __future__ import annotations

from collections.abc import Sequence

from ..drawing.measure import Cell, Line, Measure, Table
from .dataset import Dataset
from .finding import DatasetFinding

_TITLES = {3: "Will spoil the result", 2: "Will hurt", 1: "Worth a look"}


def findings_measure(dataset: Dataset, findings: Sequence[DatasetFinding]) -> Measure:
    """Say first whether the pictures can be trained as they are."""
    return Measure(_verdict(dataset.num_pictures(), findings), "", tuple(_tables(findings)))


def _verdict(pictures: int, findings: Sequence[DatasetFinding]) -> str:
    of = f"{pictures} {'picture' if pictures == 1 else 'pictures'}"
    if not findings:
        return f"No problem was found in {of}."
    urgent = sum(each.urgency == max(_TITLES) for each in findings)
    found = f"{len(findings)} {'finding' if len(findings) == 1 else 'findings'} in {of}"
    if not urgent:
        return f"The data set can be trained; {found} would make it better."
    return f"Do not train yet: {urgent} of {found} will spoil the result."


def _tables(findings: Sequence[DatasetFinding]) -> list[Table]:
    by_urgency = {urgency: [each for each in findings if each.urgency == urgency] for urgency in _TITLES}
    return [
        Table(
            "said", f"{_TITLES[urgency]} ({len(found)})", "mark", ("pictures", "what to do"), tuple(map(_line, found))
        )
        for urgency, found in by_urgency.items()
        if found
    ]


def _line(finding: DatasetFinding) -> Line:
    pictures = Cell(str(len(finding.examples)) if finding.examples else "all")
    return Line(finding.mark or "set", (pictures, Cell(_sentence(finding.text))))


def _sentence(text: str) -> str:
    """Begin with a capital letter, unless that is a file's."""
    return text[:1].upper() + text[1:] if text.split(maxsplit=1)[0].isalpha() else text
