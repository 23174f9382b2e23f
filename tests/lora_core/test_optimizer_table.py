"""One row and one file for each optimiser: what else has to know of it is told by name when it does not."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from harness import golden, help_pages
from lora_loom.lora_core.training import optimizers
from lora_loom.lora_core.training.config import OptimizerConfig
from lora_loom.lora_core.training.optimizers import OPTIMIZERS

NODE = "LoraLoom_Optimizer"
LISTED = help_pages.table(NODE, "Which optimiser")
SHARED = {"__init__", "matrices", "method"}


def test_names_and_their_order_stay() -> None:
    """They stand in workflows and in the identities of runs; a new one comes last."""
    assert tuple(OPTIMIZERS)[: len(golden.OPTIMIZERS)] == golden.OPTIMIZERS


def test_every_file_is_a_row_and_every_row_a_file() -> None:
    files = {path.stem for path in Path(optimizers.__file__).parent.glob("*.py")} - SHARED
    built = {name: row.build.__module__.rpartition(".")[2] for name, row in OPTIMIZERS.items()}
    assert files - set(built.values()) == set(), "files of optimisers that have no row in OPTIMIZERS"
    assert {name for name, file in built.items() if file not in files} == set(), "rows that are built elsewhere"
    assert len(set(built.values())) == len(built), "two rows of one file"


def test_every_title_is_its_own() -> None:
    """The headers of LoRAs name optimisers by it."""
    assert len({row.title for row in OPTIMIZERS.values()}) == len(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_help_page_lists_an_optimiser_as_its_row_says(name: str) -> None:
    assert name in LISTED, f"web/docs/{NODE}/en.md does not list {name}"
    rate, state, use = LISTED[name]
    config = OptimizerConfig(name, "constant")
    assert float(rate) == pytest.approx(config.usual_rate(1e-4)), f"the learning rate of {name} on the help page"
    assert state and use, f"the help page does not say what {name} keeps and is for"
    assert not config.method.averages or "lr_schedule: constant" in use, f"{name} needs lr_schedule constant"


def test_the_help_page_lists_nothing_else_and_in_the_nodes_order() -> None:
    assert [*LISTED] == [*OPTIMIZERS]


@pytest.mark.parametrize("number", ["beta1", "beta2", "eps"])
def test_the_help_page_says_which_numbers_are_an_optimisers_own(number: str) -> None:
    """The usual one and those that differ in brackets, then who has none, or, when that is shorter, who has one."""
    own = {name: getattr(row, number) for name, row in OPTIMIZERS.items()}
    has, lacks = ({name for name, value in own.items() if (value is None) == none} for none in (False, True))
    usual = Counter(value for value in own.values() if value is not None).most_common(1)[0][0]
    others = [f"{name} {own[name]:g}" for name in own if name in has and own[name] != usual]
    told = f"({', '.join([f'{usual:g}'.replace('1e-08', '1e-8'), *others])})"
    (line,) = [line for line in help_pages.page(NODE).splitlines() if line.startswith(f"| {number} |")]
    assert told in line, f"the own {number} of each optimiser is {told}"
    named = set(re.findall(r"\w+", line.split(")")[-1])) & set(OPTIMIZERS)
    assert named in (has, lacks), f"{', '.join(sorted(lacks))} have no {number}"


@pytest.mark.parametrize("node", ["LoraLoom_Layers", "LoraLoom_Validation"])
def test_pages_that_name_one_that_averages_name_all(node: str) -> None:
    averaging = {name for name, row in OPTIMIZERS.items() if row.averages}
    assert set(re.findall(r"\w+", help_pages.page(node))) & averaging == averaging
