"""Imports go one way, nodes -> nodes/bridge -> lora_core, and each layer may use only what it is made of."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from harness.comfyui import ROOT

ALGEBRA = {"torch", "numpy", "einops", "safetensors", "PIL"}
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "node_helpers"}
COMFY |= {"aiohttp", "comfy_aimdo", "comfy_kitchen", "comfyui_version", "execution"}
COMFY |= {"nodes", "server"}  # its `nodes`: ours are reached relatively
PARTS = ("lora_core", "nodes/bridge", "nodes", "")  # the first that holds a file is its layer; "" is the root

MAY_USE = {
    "lora_core": ALGEBRA,
    "nodes/bridge": ALGEBRA | COMFY,
    "nodes": ALGEBRA | {"comfy_api"},
    "": {"comfy_api"},
}
MAY_REACH = {
    "lora_core": {"lora_core"},
    "nodes/bridge": {"nodes/bridge", "lora_core"},
    "nodes": {"nodes", "nodes/bridge", "lora_core"},
    "": {"nodes"},
}


def layer(path: PurePosixPath) -> str:
    return next(part for part in PARTS if not part or path.is_relative_to(part))


def imported(path: PurePosixPath, source: str) -> Iterator[tuple[int, str, PurePosixPath]]:
    """(line, absolute top-level module or "", path in the pack or outside it) of each import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0], PurePosixPath()
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").partition(".")[0], PurePosixPath()
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "", target) for target in relative_targets(path, node))


def relative_targets(path: PurePosixPath, node: ast.ImportFrom) -> list[PurePosixPath]:
    """Each name counts as a module, so `from .. import nodes` is seen; `..` in the result: outside the pack."""
    folder = list(path.parts[:-1])
    up = node.level - 1
    base = folder[: len(folder) - up] if up <= len(folder) else [".."]
    base += node.module.split(".") if node.module else []
    return [PurePosixPath(*base, alias.name) for alias in node.names]


def violations(path: str, source: str) -> list[str]:
    place = PurePosixPath(path)
    own = layer(place)
    found = []
    for line, module, target in imported(place, source):
        if module and module not in MAY_USE[own] | sys.stdlib_module_names:
            found.append(f"{path}:{line} imports {module}, which {own or 'the root'} may not use")
        elif not module and (".." in target.parts or layer(target) not in MAY_REACH[own]):
            found.append(f"{path}:{line} imports {target}, which {own or 'the root'} may not reach")
    return found


def pack_sources() -> list[Path]:
    folders = (ROOT / "lora_core", ROOT / "nodes")
    return [ROOT / "__init__.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def test_the_pack() -> None:
    files = pack_sources()
    assert {layer(PurePosixPath(path.relative_to(ROOT).as_posix())) for path in files} == set(PARTS)
    found = [
        message
        for path in files
        for message in violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_core/low_rank.py", "import comfy.utils"),
        ("lora_core/low_rank.py", "def f():\n    from folder_paths import get_filename_list"),
        ("lora_core/low_rank.py", "import nodes"),
        ("lora_core/low_rank.py", "from comfy_api.latest import io"),
        ("lora_core/low_rank.py", "import scipy"),
        ("lora_core/low_rank.py", "import lora_core.adapter"),
        ("lora_core/files/guard.py", "from ...nodes import train_lora"),
        ("lora_core/files/guard.py", "from ... import nodes"),
        ("lora_core/files/guard.py", "from .... import somewhere"),
        ("nodes/train_lora.py", "import comfy.sample"),
        ("nodes/train_lora.py", "import folder_paths"),
        ("nodes/train_lora.py", "from nodes import VAEEncode"),
        ("nodes/train_lora.py", "from lora_loom.lora_core import adapter"),
        ("nodes/train_lora.py", "from .. import dev"),
        ("nodes/bridge/stack/apply_chain.py", "from ..train_lora import TrainLora"),
        ("nodes/bridge/stack/apply_chain.py", "from .. import train_lora"),
        ("nodes/bridge/stack/apply_chain.py", "import lora_core"),
        ("__init__.py", "from .lora_core import adapter"),
        ("__init__.py", "import comfy"),
    ],
)
def test_it_would_notice(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_core/low_rank.py", "from __future__ import annotations\nimport math\nimport torch.nn.functional as F"),
        ("lora_core/files/guard.py", "from ..low_rank import LowRank\nfrom . import names\nfrom .. import adapter"),
        (
            "nodes/train_lora.py",
            "from comfy_api.latest import io\nfrom .bridge import session\nfrom ..lora_core import x",
        ),
        ("nodes/bridge/stack/apply_chain.py", "import comfy.utils\nimport nodes\nfrom ...lora_core.low_rank import LowRank"),
        ("__init__.py", "from .nodes import comfy_entrypoint"),
    ],
)
def test_it_lets_pass(path: str, source: str) -> None:
    assert violations(path, source) == []
