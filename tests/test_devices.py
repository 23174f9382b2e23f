"""Finds in the sources what would hold on the device at hand and break on another, or by Windows' rules for files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from harness.comfyui import ROOT

KINDS = "nodes/bridge/host/device.py"  # what differs between kinds of device is asked here
# Elsewhere a kind is named by these alone, each for its reason; a line that goes is taken off the list, too.
NAMED: dict[str, str] = {
    "lora_core/training/optimizers/adamw.py": "where torch has a fused AdamW",
    "lora_core/orthonormal.py": "where torch has a fast QR",
    "nodes/bridge/model/sampling.py": "whose random numbers torch keeps apart",
}
_ASKING = re.compile(r"is_(cuda|mps|xpu|directml|device_(?!cpu)\w+|intel_xpu|amd|nvidia)$")


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("lora_core", "nodes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


# -- kinds of device ---------------------------------------------------------------------------------------------------


def kinds_named(source: str) -> list[int]:
    """Lines that compare a device's type, or its name, with a text other than "cpu", or ask a tensor or ComfyUI for one
    kind. Whether something lies in RAM may be asked anywhere."""
    tree = ast.parse(source)
    named = (node for node in tree.body if isinstance(node, ast.Assign))
    texts = {name: _texts(node.value, {}) for node in named for name in _names(node)}
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Compare) and _names_a_kind(node, texts)]
    asked = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _ASKING.match(node.attr))
    matched = (node for node in ast.walk(tree) if isinstance(node, ast.Match) and _is_kind(node.subject))
    return sorted([*lines, *(node.lineno for node in asked), *(node.lineno for node in matched)])


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _names_a_kind(node: ast.Compare, texts: dict[str, set[str]]) -> bool:
    sides = [node.left, *node.comparators]
    return any(map(_is_kind, sides)) and bool(set().union(*(_texts(side, texts) for side in sides)) - {"cpu"})


def _is_kind(node: ast.expr) -> bool:
    """`x.device.type`, `device.type`, `str(device)`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "type"
    return isinstance(node, ast.Call) and ast.unparse(node).startswith("str(") and "device" in ast.unparse(node)


def _texts(node: ast.expr, texts: dict[str, set[str]]) -> set[str]:
    """The texts in a constant, a collection of them, or a name of the module that stands for one."""
    if isinstance(node, ast.Name):
        return texts.get(node.id, set())
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_kinds_of_device_are_told_apart_in_one_file() -> None:
    found = {path: kinds_named(source) for path, source in sources() if path != KINDS}
    assert {path: lines for path, lines in found.items() if lines and path not in NAMED} == {}
    assert [path for path in NAMED if not found.get(path)] == [], "these name none any more"


@pytest.mark.parametrize(
    "source",
    [
        'x.device.type == "mps"', 'device.type in ("cpu", "mps")', 'KINDS = {"cuda", "xpu"}\ndevice.type not in KINDS',
        '"cuda" != weight.device.type', 'str(device) == "mps"', "weight.is_cuda", "management.is_device_mps(device)",
        'match device.type:\n case "mps": pass',
    ],
)  # fmt: skip
def test_it_would_notice_a_kind(source: str) -> None:
    assert kinds_named(source)


@pytest.mark.parametrize(
    "source", ['x.device.type == "cpu"', "x.device.type == y.device.type", 'row["type"] == "mps"', 'x.kind == "mps"']
)
def test_it_lets_pass_what_names_no_kind(source: str) -> None:
    assert not kinds_named(source)


# -- views of a file ---------------------------------------------------------------------------------------------------

_READING = {"get_tensor", "get_slice", "load_file", "from_file", "memmap"}
_COPYING = {"clone", "numpy", "item", "tolist", "sum"}


def views_that_leave(source: str) -> list[int]:
    """Lines where a function returns, yields or stores what safetensors or numpy mapped from a file, not a copy."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.Lambda)))
    return sorted({line for function in functions for line in _leaving(function)})


def _leaving(function: ast.FunctionDef | ast.Lambda) -> Iterator[int]:
    if isinstance(function, ast.Lambda):
        yield from [function.lineno] if _is_view(function.body, set()) else []
        return
    views: set[str] = set()
    for node in ast.walk(function):  # in the order of the lines, but for what is nested
        if isinstance(node, ast.Assign) and _is_view(node.value, views):
            views |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            yield from (node.lineno for target in node.targets if isinstance(target, ast.Attribute))
        elif isinstance(node, (ast.Return, ast.Yield)) and node.value and _is_view(node.value, views):
            yield node.lineno


def _is_view(node: ast.expr, views: set[str]) -> bool:
    """Whether an expression holds a mapped tensor: itself or in a collection. What a call makes of one is taken for a
    copy, unless it only looks at it another way."""
    if isinstance(node, ast.Name):
        return node.id in views
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        inner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if name == "to" and any(keyword.arg == "copy" for keyword in node.keywords) or name in _COPYING:
            return False
        return name in _READING or (inner is not None and _is_view(inner, views))
    if isinstance(node, ast.DictComp):
        return _is_view(node.value, views)
    if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
        return _is_view(node.elt, views)
    return any(_is_view(part, views) for part in _parts(node))


def _parts(node: ast.expr) -> Iterable[ast.expr]:
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return node.elts
    if isinstance(node, ast.Dict):
        return node.values
    if isinstance(node, (ast.Subscript, ast.Starred, ast.NamedExpr)):
        return [node.value]
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else []


def test_no_view_of_a_file_leaves_its_function() -> None:
    """A mapped file cannot be replaced on Windows. Files of the person's, which are only read, are mapped by
    lora_core/files/reader.py, and not on Windows."""
    assert {path: lines for path, source in sources() if (lines := views_that_leave(source))} == {}


@pytest.mark.parametrize(
    "body",
    [
        "return file.get_tensor(name)", "return {name: file.get_tensor(name) for name in file.keys()}",
        "found = [file.get_tensor(name) for name in file.keys()]\n    return found[0].float()",
        "found = load_file(path)\n    self.good = found", "yield file.get_slice(name)[:]", "return np.memmap(path)",
        "return file.get_tensor(name).view(torch.uint8), 1",
    ],
)  # fmt: skip
def test_it_would_notice_a_view(body: str) -> None:
    assert views_that_leave(f"def read(file, name):\n    {body}\n")


@pytest.mark.parametrize(
    "body",
    [
        "return file.get_tensor(name).clone()", "return file.get_tensor(name).to(torch.float32, copy=True)",
        "found = [file.get_tensor(name) for name in file.keys()]\n    return restored(found)", "return file.keys()",
    ],
)  # fmt: skip
def test_it_lets_pass_a_copy(body: str) -> None:
    assert not views_that_leave(f"def read(file, name):\n    {body}\n")


def test_sources_are_read() -> None:
    assert {Path(path).parts[0] for path, _ in sources()} == {"lora_core", "nodes"}
