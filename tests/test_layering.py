"""Imports go one way, nodes -> nodes/bridge -> lora_core, and each layer may use only what it is made of."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest
from harness.comfyui import ROOT

ALGEBRA = {"torch", "numpy", "einops", "safetensors", "PIL"}
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "node_helpers"}
COMFY |= {"aiohttp", "comfy_aimdo", "comfy_kitchen", "comfyui_version", "execution"}
COMFY |= {"nodes", "server"}  # its `nodes`: ours are reached relatively
PARTS = ("lora_core", "nodes/bridge", "nodes", "console", "")  # a file's layer is the first that holds it; "": the root

MAY_USE = {
    "lora_core": ALGEBRA,
    "nodes/bridge": ALGEBRA | COMFY,
    "nodes": ALGEBRA | {"comfy_api"},
    "console": ALGEBRA | COMFY,
    "": {"comfy_api"},
}
MAY_REACH = {
    "lora_core": {"lora_core"},
    "nodes/bridge": {"nodes/bridge", "lora_core"},
    "nodes": {"nodes", "nodes/bridge", "lora_core"},
    "console": {"console", "lora_core"},
    "": {"nodes"},
}
FLOORS = (  # rooms, the lowest first: a file uses its own room, and rooms on lower floors
    ("lora_core",),
    ("lora_core/kinds", "lora_core/drawing", "lora_core/ranks"),
    ("lora_core/adapter.py", "lora_core/data"),
    ("lora_core/families",),
    ("lora_core/files",),
    ("lora_core/stack", "lora_core/quiet", "lora_core/trust"),
    ("lora_core/training",),
    ("lora_core/runs", "lora_core/analysis"),
    ("lora_core/merging",),
    ("nodes/bridge/host", "nodes/bridge/networks"),
    ("nodes/bridge/trust",),
    ("nodes/bridge/model", "nodes/bridge/systems"),
    ("nodes/bridge/session", "nodes/bridge/stack"),
    ("nodes/bridge/quiet",),
    ("nodes/bridge/training", "nodes/bridge/merging", "nodes/bridge/analysis"),
    ("nodes/bridge/health",),
    ("nodes/bridge/check",),
    ("nodes", "console/workflow"),
    ("console",),
    ("console/sweep",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRONT_END_FLOORS = (  # of web/js
    ("page",), ("library", "measures", "dataset"), ("told",), ("stack",), ("runs",), ("run",),
)  # fmt: skip


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


def room(path: PurePosixPath) -> str:
    """The room that a file is in, empty for none. Below `lora_core` and `nodes` every folder is a room of its own."""
    if path.as_posix() in FLOOR_OF:
        return path.as_posix()
    own = [room for room in FLOOR_OF if path.parent == PurePosixPath(room) or "/" in room and path.is_relative_to(room)]
    return max(own, key=len, default="")


def module_of(target: PurePosixPath) -> PurePosixPath | None:
    """The file of the pack that an import of that name reads."""
    places = (target.with_suffix(".py"), target / "__init__.py", target.parent.with_suffix(".py"))
    places += (target.parent / "__init__.py",)
    return next((place for place in places if (ROOT / place).is_file()), None)


def reached(path: PurePosixPath, source: str) -> set[PurePosixPath]:
    """The files of the pack that one imports, itself left out."""
    found = {module_of(target) for _, module, target in imported(path, source) if not module}
    return {file for file in found if file is not None and file != path}


def upward(graph: Mapping[PurePosixPath, set[PurePosixPath]]) -> list[str]:
    return [
        f"{path} imports {target}, which is not on a lower floor"
        for path, targets in graph.items()
        for target in sorted(targets)
        if room(path) != room(target) and FLOOR_OF[room(path)] <= FLOOR_OF[room(target)]
    ]


def circles(graph: Mapping[PurePosixPath, set[PurePosixPath]]) -> list[str]:
    """Files of which each is imported on the way from itself."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [" imports ".join(map(str, reversed(error.args[1])))]
    return []


def graph_of(sources: Iterable[Path]) -> dict[PurePosixPath, set[PurePosixPath]]:
    paths = {PurePosixPath(path.relative_to(ROOT).as_posix()): path for path in sources}
    return {place: reached(place, path.read_text(encoding="utf-8")) for place, path in paths.items()}


def pack_sources() -> list[Path]:
    folders = (ROOT / "lora_core", ROOT / "nodes", ROOT / "console")
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


def test_rooms_are_on_floors_and_nothing_runs_back_up() -> None:
    files = graph_of(pack_sources())
    graph = {path: found for path, found in files.items() if path.name != "__init__.py" or room(path)}
    assert {room(path) for path in graph} == set(FLOOR_OF), "a room that no file is in, or a file that is in no room"
    assert upward(graph) == [] and circles(graph) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_core/low_rank.py", "from .adapter import Adapter"),
        ("lora_core/files/guard.py", "from ..training.config import TrainConfig"),
        ("lora_core/runs/run_log.py", "from ..analysis import findings"),
        ("nodes/bridge/networks/movq.py", "from ..host.wires import Vae"),
        ("nodes/bridge/model/frozen.py", "from ..stack import bypasses"),
        ("nodes/bridge/session/session.py", "from ..stack.apply_chain import apply_chain"),
        ("nodes/bridge/merging/merge.py", "from ..training.run import train_lora"),
        ("console/workflow/check.py", "from ..document import Prompt"),
    ],
)
def test_it_would_notice_a_way_up(path: str, source: str) -> None:
    place = PurePosixPath(path)
    assert upward({place: reached(place, source)})


@pytest.mark.parametrize("path", ["nodes/bridge/loose.py", "nodes/bridge/new/x.py", "lora_core/new/x.py", "web/x.py"])
def test_it_would_notice_a_file_in_no_room(path: str) -> None:
    assert room(PurePosixPath(path)) == ""


def test_it_would_notice_a_circle() -> None:
    graph = graph_of(pack_sources())
    assert circles(graph | {PurePosixPath("lora_core/low_rank.py"): {PurePosixPath("lora_core/weight_sum.py")}})


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
        ("nodes/bridge/stack/apply_chain.py", "from ...train_lora import TrainLora"),
        ("nodes/bridge/stack/apply_chain.py", "from ... import train_lora"),
        ("nodes/bridge/stack/apply_chain.py", "import lora_core"),
        ("console/main.py", "from ..nodes.bridge.host import ending"),
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
        (
            "nodes/bridge/stack/apply_chain.py",
            "import comfy.utils\nimport nodes\nfrom ....lora_core.low_rank import LowRank",
        ),
        ("__init__.py", "from .nodes import comfy_entrypoint"),
    ],
)
def test_it_lets_pass(path: str, source: str) -> None:
    assert violations(path, source) == []


def upward_in_the_front_end(sources: Mapping[str, str]) -> list[str]:
    """Ways from a room of web/js to one on the same floor or a higher one; `sources` by their paths there."""
    floor_of = {room: number for number, rooms in enumerate(FRONT_END_FLOORS) for room in rooms}
    ways = {(name, other) for name, text in sources.items() for other in re.findall(r'"\.\./(\w+)/\w+\.js"', text)}
    rooms = {name.partition("/")[0] for name in sources}
    assert rooms == set(floor_of), "a room that is on no floor, or a floor that no file is on"
    return sorted(f"{name} uses {other}" for name, other in ways if floor_of[name.split("/")[0]] <= floor_of[other])


def front_end() -> dict[str, str]:
    folder = ROOT / "web" / "js"
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.glob("*/*.js")}


def test_rooms_of_the_front_end_are_on_floors() -> None:
    assert upward_in_the_front_end(front_end()) == []


@pytest.mark.parametrize("text", ['import { a } from "../run/body.js"', 'export { b } from "../stack/row.js"'])
def test_it_would_notice_a_way_up_in_the_front_end(text: str) -> None:
    assert upward_in_the_front_end({**front_end(), "page/dom.js": text})
