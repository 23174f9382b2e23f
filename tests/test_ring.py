"""Which tests run on a pretend device: what the lists of tests/pretend/ring.py mean."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from harness.comfyui import ROOT
from pretend.ring import RINGS, Ring, Selection, _check_used

RING = Ring(
    ("test_a.py", "test_b.py::test_one", "device/test_c.py"), frozenset({"sd15"}), ("test_a.py::test_slow[2",),
    {"test_a.py::test_impossible": "for the test"},
)  # fmt: skip


def selection(*asked: str) -> Selection:
    return Selection(RING, SimpleNamespace(invocation_params=SimpleNamespace(dir=ROOT), args=asked))


@pytest.mark.parametrize(
    ("name", "family", "taken"),
    [
        ("test_a.py::test_one", None, True), ("test_a.py::test_one[sd15]", "sd15", True),
        ("test_a.py::test_one[wan21]", "wan21", False), ("device/test_c.py::test_one[wan21]", "wan21", True),
        ("test_b.py::test_one[2]", None, True), ("test_b.py::test_another", None, False),
        ("test_a.py::test_slow[1]", None, True), ("test_a.py::test_slow[2]", None, False),
        ("test_a.py::test_impossible[1]", None, False), ("test_a.py::test_impossible_not", None, True),
    ],
)  # fmt: skip
def test_what_is_taken(name: str, family: str | None, taken: bool) -> None:
    item = SimpleNamespace(callspec=SimpleNamespace(params={"family": family}))
    assert selection("tests/nodes")._is_taken(item, name) == taken


@pytest.mark.parametrize(
    ("file", "asked", "ignored"),
    [
        ("test_a.py", "tests/nodes", None), ("test_b.py", "tests/nodes", None), ("test_d.py", "tests/nodes", True),
        ("test_d.py", "tests/nodes/test_d.py::test_one", None), ("conftest.py", "tests/nodes", None),
    ],
)  # fmt: skip
def test_files_are_those_of_the_ring_and_the_one_that_was_asked_for(file: str, asked: str, ignored: bool) -> None:
    assert selection(asked).pytest_ignore_collect(ROOT / "tests" / "nodes" / file) is ignored


def test_of_a_file_that_was_asked_for_all_is_meant() -> None:
    assert selection("tests/nodes/test_b.py")._is_meant("test_b.py::test_another")


def test_what_is_out_of_date_is_told() -> None:
    _check_used(["test_a.py::test_one[1]"], ["test_a.py::test_one", "test_a.py::test_one[1"])
    with pytest.raises(pytest.UsageError, match=r"there is no test test_a\.py::test_on$"):
        _check_used(["test_a.py::test_one[1]"], ["test_a.py::test_on"])


def test_files_of_the_rings_exist() -> None:
    """A list that names a file which is no more would test less, and say nothing."""
    for ring in RINGS.values():
        for name in ring.tests:
            assert (ROOT / "tests" / "nodes" / name.partition("::")[0]).is_file()
