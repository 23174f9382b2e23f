"""One row and one file for each merge method: what else has to know of it is told by name when it does not."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import help_pages
from lora_loom.lora_core import merging
from lora_loom.lora_core.merging import AUTO, METHODS, SUM
from lora_loom.lora_core.merging.task import Task

NODE = "LoraLoom_MergeLora"
CHOICES = (SUM, AUTO, *METHODS)
LISTED = {name for cell in help_pages.table(NODE, "Methods") for name in cell.split(", ")}
INPUTS = {
    name.strip(): meaning
    for name, meaning in re.findall(r"^\| (\w+) \| (.*) \|$", help_pages.page(NODE).split("## Methods")[0], re.M)
}
OLDEST = (
    "ties", "dare", "della", "magnitude", "slerp", "karcher", "null_space", "orthogonal", "tsv", "iso", "k_lora",
)  # fmt: skip


def named(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) & set(METHODS)


class Watched:
    """A task that notes what is read of it."""

    def __init__(self, task: Task) -> None:
        self.task, self.read = task, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.task, name)


def read_of(method: str) -> set[str]:
    """Return what the method reads of a task of two LoRAs."""
    draw = torch.Generator().manual_seed(0)
    cores, ones = torch.randn(2, 4, 5, generator=draw, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    watched = Watched(Task(cores, 4, ones, ones, 0.5, draw))
    assert METHODS[method].combine(watched).shape == (4, 5)
    return watched.read


def test_names_and_their_order_stay() -> None:
    """They stand in workflows and in the headers of merges; a new one comes last."""
    assert tuple(METHODS)[: len(OLDEST)] == OLDEST


def test_every_file_is_a_row_and_every_row_a_file() -> None:
    folder = Path(merging.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "\ndef combine(" in path.read_text(encoding="utf-8")}
    combined = {name: row.combine.__module__.rpartition(".")[2] for name, row in METHODS.items()}
    assert files - set(combined.values()) == set(), "files of merge methods that have no row in METHODS"
    assert {name for name, file in combined.items() if file not in files} == set(), "rows of methods without a file"
    assert len(set(combined.values())) == len(combined), "two rows of one file"


@pytest.mark.parametrize("method", METHODS)
def test_a_row_says_what_its_method_asks_for(method: str) -> None:
    row, read = METHODS[method], read_of(method)
    assert ("density" in read) == (row.density is not None), f"{method} and `density` of its row"
    assert ("generator" in read) == row.by_chance, f"{method} and `by_chance` of its row"


@pytest.mark.parametrize("method", CHOICES)
def test_the_help_page_lists_a_method(method: str) -> None:
    assert method in LISTED, f"web/docs/{NODE}/en.md does not list {method} among the methods"


def test_the_help_page_lists_nothing_else() -> None:
    assert LISTED == set(CHOICES)


def test_the_help_page_says_which_methods_drop_entries_and_how_many_stay() -> None:
    own = {name: row.density for name, row in METHODS.items() if row.density}
    usual = Counter(own.values()).most_common(1)[0][0]
    others = "".join(f"{density:g} for {name}, " for name, density in own.items() if density != usual)
    assert named(INPUTS["density"].split(".")[0]) == set(own), "of which methods `density` is"
    assert f"0 = auto: {others}{usual:g} for the others." in INPUTS["density"]


def test_the_help_page_says_which_methods_draw() -> None:
    assert named(INPUTS["seed"]) == {name for name, row in METHODS.items() if row.by_chance}
