"""docs/contributing.md and docs/architecture.md stay true: what they name is there, and the picture is of today."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import draw_map
import pytest
from harness.comfyui import ROOT
from test_layering import FLOORS, FRONT_END_FLOORS

PAGES = ("docs/contributing.md", "docs/architecture.md")
TOPS = ("lora_core", "nodes", "web", "docs", "tests", "workflows", "locales")  # a name that begins so is a path


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def named(page: str) -> set[str]:
    """The paths and the names of tests that a page has in code spans; of one with a <part> to fill in, its folder."""
    spans = {span for span in re.findall(r"`([\w./<>*-]+)`", text(page))}
    paths = {re.sub(r"[^/]*[<*].*", "", span) for span in spans}
    return {path for path in paths if path.split("/")[0] in TOPS or path.startswith("test_")}


def is_there(name: str) -> bool:
    """A path, a file of tests of that name wherever it lies, or a test in one."""
    if not name.startswith("test_"):
        return (ROOT / name).exists()
    tests = [*(ROOT / "tests").rglob("test_*.py")]
    return any(path.name == name or f"def {name}(" in path.read_text(encoding="utf-8") for path in tests)


def lacking(page: str) -> list[str]:
    return [f"{page} names {name}, which is not there" for name in sorted(named(page)) if not is_there(name)]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page: str) -> None:
    assert len(named(page)) > 10 and lacking(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text(page))
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize(("floors", "below"), [(FLOORS, ""), (FRONT_END_FLOORS, "web/js/")])
def test_every_room_is_named_with_its_floor_and_the_lowest_comes_first(floors: tuple, below: str) -> None:
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", text("docs/architecture.md"), re.MULTILINE)
    told = [(int(floor), name) for name, floor in rows if name.startswith("web/js/") == bool(below)]
    assert sorted(told) == sorted((number, below + name) for number, floor in enumerate(floors, 1) for name in floor)
    assert [floor for floor, _ in told] == sorted(floor for floor, _ in told)


def test_the_picture_is_of_the_imports_of_today() -> None:
    assert draw_map.PICTURE.read_text(encoding="utf-8") == draw_map.drawn(), "draw it again: python tests/draw_map.py"


def test_the_picture_has_every_room_and_every_arrow_runs_down() -> None:
    floors = draw_map.bridge_floors()
    assert {name for floor in floors for name in floor} == set(draw_map.LOOKS)
    height = {name: number for number, floor in enumerate(floors) for name in floor}
    arrows = draw_map.arrows(draw_map.ways())
    assert arrows and all(height[each.source] < height[each.target] for each in arrows)
    places = sorted(each.x for each in arrows)
    assert min(b - a for a, b in zip(places, places[1:], strict=False)) >= draw_map.STEP, "two arrows run as one"


def test_arrows_between_rooms_beside_each_other_are_not_drawn() -> None:
    with pytest.raises(ValueError, match="session imports stack, which is not below it"):
        draw_map.arrows([("session", "stack")])


def classes(path: Path) -> set[str]:
    """The nodes that a file defines."""
    found = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef))
    return {node.name for node in found if "io.ComfyNode" in map(ast.unparse, node.bases)}


def test_every_node_is_in_the_list_that_comfyui_gets() -> None:
    written = {name for path in (ROOT / "nodes").glob("*.py") for name in classes(path)}
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8"))
    lists = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.List)]
    assert len(lists) == 1 and written == {ast.unparse(each) for each in lists[0].elts}


@pytest.mark.parametrize("name", ["lora_core/gone.py", "nodes/bridge/cellar/", "test_gone.py", "test_of_nothing"])
def test_a_name_that_is_gone_is_found(name: str) -> None:
    assert not is_there(name)
