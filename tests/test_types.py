"""The type checker agrees with lora_core and the bridge; its rules are in pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.comfyui import ROOT, comfyui_path

CHECKED = ("lora_core", "nodes/bridge", "console")
WRONG = "nodes/bridge/wrong.py"
WRONG_LINES = {  # rule: a line that only it calls wrong
    "reportMissingParameterType": "def untyped(model) -> None: ...",
    "reportArgumentType": "def swapped(clip: Clip) -> object: return family_of(clip)",
    "reportCallIssue": "def short(clip: Clip) -> object: return names_of()",
    "reportAttributeAccessIssue": "def no_such(model: Model) -> object: return model.diffusion_model",
    "reportOptionalMemberAccess": "def missing(clip: Clip | None) -> object: return clip.patcher",
    "reportReturnType": "def rank(layer: LowRank) -> str: return layer.rank",
    "reportUnnecessaryTypeIgnoreComment": "LET_OFF = 1  # pyright: ignore[reportCallIssue]  # for nothing",
}
HEAD = """from __future__ import annotations
from ...lora_core.low_rank import LowRank
from .host.wires import Clip, Model
from .model.names import family_of, names_of
"""
IGNORED = re.compile(r"#\s*(?:pyright|basedpyright|mypy|type):(.*)")
WITH_REASON = re.compile(r" ignore\[report\w+\]  # \w.+")


def sources() -> list[Path]:
    return sorted(path for folder in CHECKED for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str, str]]]:
    """(line, rule, what is wrong) by file, of a copy of the sources in which one more file is wrong throughout: as long
    as all that is told is of that file, the others are right, and the checker was not asleep."""
    copy = tmp_path_factory.mktemp("checked")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path in sources():
        place = copy / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (copy / WRONG).write_text(HEAD + "\n".join(WRONG_LINES.values()) + "\n", encoding="utf-8")
    told: dict[str, list[tuple[int, str, str]]] = {}
    for path, line, rule, message in checked(copy):
        told.setdefault(path.relative_to(copy).as_posix(), []).append((line, rule, message))
    return told


def checked(project: Path) -> Iterator[tuple[Path, int, str, str]]:
    """Yield what the checker tells of a project, with ComfyUI and its packages where they are imported from."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(comfyui_path()), "PYTHONUTF8": "1"}
    ended = subprocess.run(
        command, cwd=project, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    report = json.loads(ended.stdout)
    assert report["summary"]["filesAnalyzed"] == len(sources()) + 1, report["summary"]
    for each in report["generalDiagnostics"]:
        line = each["range"]["start"]["line"] + 1
        yield Path(each["file"]).resolve(), line, each.get("rule", ""), each["message"]


def test_the_checker_has_nothing_to_say(found: dict[str, list[tuple[int, str, str]]]) -> None:
    assert [
        f"{path}:{line}: {message} ({rule})"
        for path, each in found.items()
        for line, rule, message in each
        if path != WRONG
    ] == []


def test_each_wrong_line_is_found(found: dict[str, list[tuple[int, str, str]]]) -> None:
    first = HEAD.count("\n") + 1
    wanted = {(first + at, rule) for at, rule in enumerate(WRONG_LINES)}
    assert {(line, rule) for line, rule, _ in found.get(WRONG, [])} == wanted


def test_lines_that_are_let_off_name_their_rule_and_their_reason() -> None:
    assert [
        f"{path.relative_to(ROOT).as_posix()}: {match[0]}"
        for path in sources()
        for match in IGNORED.finditer(path.read_text(encoding="utf-8"))
        if not WITH_REASON.fullmatch(match[1])
    ] == []


@pytest.mark.parametrize("comment", ["# type: ignore", "# pyright: basic", "# pyright: ignore[reportCallIssue]"])
def test_a_blanket_or_a_line_without_reason_would_be_found(comment: str) -> None:
    match = IGNORED.search(f"f()  {comment}")
    assert match and not WITH_REASON.fullmatch(match[1])
