"""The README's table claims what passed, and keeps a figure for as long as it holds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness.comfyui import ROOT
from harness.verified import COLUMNS, README, Claim, VerifiedTable, split, table, titles
from lora_loom.lora_core.families import table as families
from tiny.families import FAMILIES as NETWORKS

ENTRY = "SD 1.5", "Loss", "plain"


def cell(claims: dict, title: str, column: str, claimed: str = "") -> str:
    rows = [line.strip("| ").split(" | ") for line in table(claims, claimed).splitlines()]
    (row,) = [row for row in rows if row[0] == title]
    return row[COLUMNS.index(column)]


def test_what_did_not_pass_is_not_claimed() -> None:
    claims = {ENTRY: Claim(), ("SD 1.5", "Loss", "odd"): Claim(passed=False), ("SD 1.5", "Files", "kohya"): Claim()}
    assert cell(claims, "SD 1.5", "Loss") == "plain" and cell(claims, "SD 1.5", "Files") == "kohya"
    assert cell(claims, "SD 1.5", "Merge") == cell(claims, "SDXL", "Loss") == "-"


def test_claims_keep_their_order_in_whichever_they_pass() -> None:
    names = ("plain", "checkpointed", "plain fp8")
    before = table({("SD 1.5", "Loss", name): Claim(errors=[1e-5]) for name in names})
    again = table({("SD 1.5", "Loss", name): Claim(errors=[1e-5]) for name in reversed(names)}, before)
    assert again == before and "plain < 1e-4, checkpointed < 1e-4, plain fp8 < 1e-4" in again


@pytest.mark.parametrize(
    ("errors", "claimed", "wanted"),
    [
        ([3e-5, 2e-6], "", "1e-4"),
        ([5e-5], "", "1e-3"),
        ([0.0], "", "1e-7"),
        ([9e-5], "1e-4", "1e-4"),
        ([2e-9], "1e-4", "1e-4"),
        ([1.1e-4], "1e-4", "1e-3"),
    ],
)
def test_worst_figure(errors: list[float], claimed: str, wanted: str) -> None:
    before = table({ENTRY: Claim(errors=[float(claimed) / 4])}) if claimed else ""
    assert cell({ENTRY: Claim(errors=errors)}, "SD 1.5", "Loss", before) == f"plain < {wanted}"


def test_every_family_is_verified_on_a_small_network() -> None:
    """A row of tests/tiny/families.py for each of lora_core/families/table.py."""
    verified = {families.for_config_class(row.config).name for row in NETWORKS.values()}
    assert {family.name for family in families.FAMILIES} - verified == set()


def test_every_model_has_a_row_of_the_readme() -> None:
    _, old, _ = split(README)
    assert [line.split(" | ")[0].strip("| ") for line in old.splitlines()[2:]] == list(dict.fromkeys(titles().values()))


def test_a_run_without_pytests_cache_has_no_option_of_it(request: pytest.FixtureRequest) -> None:
    """`-p no:cacheprovider` takes `lf` away."""
    asked = []

    class Config:
        args_source, addinivalue_line = request.config.args_source, staticmethod(lambda *_: None)

        def getoption(self, name: str, *default: object) -> object:
            asked.append(name)
            return request.config.getoption("no_such_option" if name == "lf" else name, *default)

    VerifiedTable(Config())
    assert "lf" in asked


def test_a_whole_run_in_several_processes_is_held_to_the_table() -> None:
    """In the process that hands tests out nothing has imported ComfyUI."""
    few = "testpaths=tests/lora_core/test_stored.py"
    command = (sys.executable, "-m", "pytest", "-q", "-n", "1", "-o", few, "-p", "no:cacheprovider")
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert found.returncode == pytest.ExitCode.TESTS_FAILED, found.stderr
    assert "README.md does not tell what this run verified" in found.stdout and "Traceback" not in found.stderr
