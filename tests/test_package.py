"""Checks what goes into the package, seen as the Registry's scanner, the Manager and the front end see it.

The scanner searches text, comments and Markdown included, and one finding holds a version back.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
from harness.calls import pack_nodes
from harness.comfyui import PACK_NAME, ROOT
from lora_loom.lora_core.version import VERSION
from PIL import Image

MEGABYTE = 2**20
ZIP_LIMIT = 5 * MEGABYTE
PICTURE_LIMIT = 300_000  # bytes
HELP_PICTURE_LIMIT = 60_000
TEXT = {".py", ".js", ".css", ".json", ".md", ".toml", ".txt", ".html", ""}
PICTURES = {".jpg", ".png", ".webp", ".svg"}
FOLDERS = ("lora_core", "nodes", "console", "web", "workflows", "locales")  # all that git tracks in them ships
AT_THE_ROOT = {"__init__.py", "headless.py", "node_list.json", "pyproject.toml", "requirements.txt"}
AT_THE_ROOT |= {"README.md", "CHANGELOG.md", "LICENSE"}

FLAGGED = {  # rule of the Registry: what it matches, as far as reports of flagged packs tell
    "network": r"\.(connect|bind|send|recv)\(|\brequests\.\w|urllib|aiohttp\.ClientSession|http\.client|socket\.socket",
    "environment": r"os\.environ|getenv\(|putenv\(",
    "command": r"subprocess|os\.system|os\.popen|\bpty\.spawn",
    "bytecode": r"importlib\.import_module|__import__|\bmarshal\b",
    "sensitive file": r"read_bytes\(",
    "database": r"sqlite3|psycopg|pymysql",
    "dynamic code": r"(?<![\w.])(eval|exec)\(|new Function\(",
    "pickle": r"\bpickle\.loads?\b|\bdill\b",
    "rm -rf": r"rm\s+-rf",
    "run-time pip": r"pip\.main|ensurepip|-m['\", ]+pip",
}
JS_RULES = {
    "network": r"\bfetch\(|XMLHttpRequest|WebSocket|EventSource|https?://(?!www\.w3\.org)",
    "global state": r"\bwindow\.\w+\s*=[^=]|globalThis|document\.addEventListener|\.prototype\b",
    "gone in Nodes 2.0": r"onDraw(Fore|Back)ground|onMouseDown|\.draw\s*=",
    "markup from strings": r"innerHTML|outerHTML|insertAdjacentHTML",
}
FRONT_END_MODULES = r"(\.\./){3,4}scripts/(app|api)\.js|\.\.?/(\w+/)?\w+\.js"


# -- the rules, each over the text of one file, so that each can be shown to find something ---------------------------


def flagged(text: str) -> list[str]:
    return [f"{rule}: {match[0]!r}" for rule, pattern in FLAGGED.items() for match in re.finditer(pattern, text)]


def javascript_faults(text: str) -> list[str]:
    found = [f"{rule}: {match[0]!r}" for rule, pattern in JS_RULES.items() for match in re.finditer(pattern, text)]
    imports = r"""^\s*(?:import\b|(?:import|export)\b[^'"()=]*\bfrom\b)\s*['"]([^'"]+)['"]"""
    modules = re.findall(imports, text, re.MULTILINE)
    return found + [f"imports {module}" for module in modules if not re.fullmatch(FRONT_END_MODULES, module)]


OWN_PROCESS = {"headless.py", "console/start.py"}  # which begin a process, so that the path is theirs to set


def python_faults(source: str) -> list[str]:
    """V1 mappings make ComfyUI ignore comfy_entrypoint; the others break other people's tools."""
    found = [] if source.isascii() else ["not ASCII"]
    return found + re.findall(r"NODE_CLASS_MAPPINGS(?=\s*[:=])|sys\.path|sys\.modules\[", source)


def node_faults(source: str) -> list[str]:
    """The Manager finds a node only by a literal id in a class that derives from io.ComfyNode itself."""
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = []
    for node in classes:
        bases = [ast.unparse(base) for base in node.bases]
        ids = node_ids(node)
        is_node = any(isinstance(item, ast.FunctionDef) and item.name == "define_schema" for item in node.body)
        if (is_node or "ComfyNode" in " ".join(bases)) and bases != ["io.ComfyNode"]:
            found.append(f"{node.name} derives from {bases}")
        if is_node and not (len(ids) == 1 and re.fullmatch(r"LoraLoom_[A-Za-z]+", ids[0] or "")):
            found.append(f"{node.name} has the ids {ids}")
    return found


def node_ids(tree: ast.AST) -> list[str | None]:
    """The node_id of every io.Schema call; None where it is not a literal."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "io.Schema"]
    values = [next((key.value for key in call.keywords if key.arg == "node_id"), None) for call in calls]
    return [value.value if isinstance(value, ast.Constant) else None for value in values]


# -- the package -------------------------------------------------------------------------------------------------------


@cache
def package() -> dict[str, bytes]:
    """The files in the zip that `comfy node pack` makes of this checkout as it would be committed now, by path."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / PACK_NAME
        for name in tracked():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, checkout / name)
        for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):
            subprocess.run(command, cwd=checkout, check=True)
        checked = comfy_node("validate", checkout, home=Path(folder))
        assert "All validation checks passed" in checked and not re.search("warning|error", checked, re.IGNORECASE), (
            checked
        )
        printed = comfy_node("pack", checkout, home=Path(folder))
        assert "Not in a git repository" not in printed, "it has packed everything, what git ignores included"
        with zipfile.ZipFile(checkout / "node.zip") as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def tracked() -> list[str]:
    """List the files that git tracks, and those that it would with the next `git add --all`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no telling what would ship")
    command = ["git", "-c", "core.quotepath=off", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
    return [name for name in sorted(set(names)) if (ROOT / name).is_file()]


def comfy_node(verb: str, checkout: Path, home: Path) -> str:
    """What `comfy node <verb>` prints; it keeps its settings in `home`, asks nothing and reports nothing to anybody."""
    places = dict.fromkeys(("HOME", "USERPROFILE", "XDG_CONFIG_HOME"), str(home))
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", verb]
    environment = {**os.environ, **places, "DO_NOT_TRACK": "1"}
    ended = subprocess.run(
        command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def texts(*suffixes: str) -> dict[str, str]:
    chosen = suffixes or TEXT
    return {name: data.decode("utf-8") for name, data in package().items() if PurePosixPath(name).suffix in chosen}


def test_all_that_runs_ships_and_nothing_else() -> None:
    wanted = {name for name in tracked() if name in AT_THE_ROOT or name.startswith(tuple(f"{f}/" for f in FOLDERS))}
    assert set(package()) == wanted and wanted >= AT_THE_ROOT
    assert {PurePosixPath(name).suffix for name in package()} <= TEXT | PICTURES


def test_every_node_ships_with_its_help_page() -> None:
    """One page for every node, under the id by which the front end asks for it, and none for a node that is gone."""
    pages = {name for name in package() if name.startswith("web/docs/") and name.endswith("/en.md")}
    assert pages == {f"web/docs/{node.GET_SCHEMA().node_id}/en.md" for node in pack_nodes()}
    assert all(package()[name].startswith(b"# ") for name in pages)


def test_help_pages_are_there_in_every_language_and_show_their_pictures() -> None:
    """The front end takes <node>/<language>.md, else <node>.md, which is the English page again, and looks for pictures
    from web/docs/ on; so does who reads <node>.md in the repository."""
    shown = set()
    for node in pack_nodes():
        page = package()[f"web/docs/{node.GET_SCHEMA().node_id}/en.md"]
        same = f"copy it: cp web/docs/{node.GET_SCHEMA().node_id}/en.md web/docs/{node.GET_SCHEMA().node_id}.md"
        assert package().get(f"web/docs/{node.GET_SCHEMA().node_id}.md") == page, same
        shown |= {f"web/docs/{name}" for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.decode("utf-8"))}
    pictures = {name: len(data) for name, data in package().items() if re.fullmatch(r"web/docs/.+\.jpg", name)}
    assert len(shown) >= 4 and set(pictures) == shown and max(pictures.values()) < HELP_PICTURE_LIMIT


def test_what_the_front_end_loads_ships() -> None:
    """Scripts, what they import, the style sheet that they name, and a picture for each template."""
    scripts = {name: text for name, text in texts(".js").items() if name.startswith("web/")}
    assert scripts
    for name, text in scripts.items():
        for module in re.findall(r"""from\s+["'](\.[^"']+)["']""", text):
            path = os.path.normpath(PurePosixPath(name).parent / module).replace(os.sep, "/")
            assert path in scripts or path in ("../scripts/app.js", "../scripts/api.js"), f"{name} imports {module}"
    (styles,) = re.findall(r"^const STYLES = (\[.*\])", scripts["web/js/loom.js"], re.MULTILINE)
    sheets = {name for name in package() if name.endswith(".css")}
    assert {f"web/css/{sheet}.css" for sheet in ast.literal_eval(styles)} == sheets
    templates = {name for name in package() if name.startswith("workflows/")}
    assert {f"workflows/{path.name}" for path in (ROOT / "workflows").iterdir()} == templates
    assert all(PurePosixPath(name).with_suffix(".jpg").as_posix() in templates for name in templates)


def test_package_is_small() -> None:
    assert sum(len(data) for data in package().values()) < ZIP_LIMIT


def test_nothing_the_scanner_flags() -> None:
    assert [f"{name}: {fault}" for name, text in texts().items() for fault in flagged(text)] == []


def test_python_and_javascript_rules() -> None:
    shared = {name: text for name, text in texts(".py").items() if name not in OWN_PROCESS}
    python = [f"{name}: {fault}" for name, text in shared.items() for fault in python_faults(text)]
    javascript = [f"{name}: {fault}" for name, text in texts(".js").items() for fault in javascript_faults(text)]
    assert python + javascript == []


def test_node_classes_can_be_found_by_the_manager() -> None:
    nodes = {name: text for name, text in texts(".py").items() if name.startswith("nodes/")}
    assert [f"{name}: {fault}" for name, text in nodes.items() for fault in node_faults(text)] == []
    ids = [node_id for text in nodes.values() for node_id in node_ids(ast.parse(text))]
    assert ids and len(ids) == len(set(ids))


def test_entry_point() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    names = {node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)}
    names |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {"comfy_entrypoint", "WEB_DIRECTORY"} <= names


def test_one_workflow_folder_each_with_its_thumbnail() -> None:
    """ComfyUI lists all of several such folders and serves one; thumbnails are .jpg only."""
    others = ("example_workflows", "example", "examples", "workflow")
    assert [name for name in others if (ROOT / name).exists()] == []
    templates = {path.stem for path in ROOT.glob("workflows/*.json")}
    assert templates == {path.stem for path in ROOT.glob("workflows/*.jpg")}


def links(page: Path) -> list[str]:
    """Return what a page of Markdown links to or shows in this repository, as it is written there, without the place in
    it."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [link for link in found if not link.startswith("https://")]


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_to_files(page: str) -> None:
    assert [link for link in links(ROOT / page) if not ((ROOT / page).parent / link).is_file()] == []


def test_pictures_of_the_readme_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pictures and [name for name in pictures if (ROOT / name).stat().st_size > PICTURE_LIMIT] == []


def test_guide_has_every_node() -> None:
    named = [link for link in links(ROOT / "docs" / "guide.md") if link.startswith("../web/docs/")]
    assert sorted(named) == sorted(f"../web/docs/{node.GET_SCHEMA().node_id}.md" for node in pack_nodes())


def test_project_file_as_comfyui_reads_it() -> None:
    from comfy_config.config_parser import extract_node_configuration

    read = extract_node_configuration(str(ROOT))
    project, comfy = read.project, read.tool_comfy
    assert (project.name, comfy.publisher_id, comfy.display_name) == (PACK_NAME, "lora-loom", "LoRA Loom")
    assert re.fullmatch(r"\d+\.\d+\.\d+", project.version) and project.version == VERSION
    assert project.supported_comfyui_version == ">=0.30.0"
    assert project.urls.repository.startswith("https://github.com/")
    assert project.license.file == "LICENSE" and project.dependencies == ["comfyui-frontend-package>=1.47.12"]
    assert project.supported_comfyui_frontend_version == ">=1.47.12" and project.supported_os == ["OS Independent"]
    assert not comfy.web, "with WEB_DIRECTORY every script would load twice"
    assert f"## {project.version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("key", "size"), [("Icon", (400, 400)), ("Banner", (1260, 540))])
def test_pictures_for_the_registry(key: str, size: tuple[int, int]) -> None:
    """At most 400 pixels a side, and 21 to 9; as tests/draw_icon.py draws them."""
    (address,) = re.findall(rf'^{key} = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    place = "https://raw.githubusercontent.com/lora-loom/lora-loom/main/"
    assert address.startswith(place)
    with Image.open(ROOT / address.removeprefix(place)) as picture:
        assert picture.size == size and picture.format == "PNG"


# -- the rules find what they are for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "socket.connect(address)",
        "const f = this.f.bind(this)",
        "requests.get(url)",
        "from urllib.request import urlopen",
        "os.environ['HOME']",
        "os.getenv('HOME')",
        "# subprocess would do",
        "importlib.import_module(name)",
        "path.read_bytes()",
        "import sqlite3",
        "eval(text)",
        "x = exec(code)",
        "pickle.load(file)",
        "rm -rf /",
        "[sys.executable, '-m', 'pip', 'install']",
    ],
)
def test_scanner_rules_find(text: str) -> None:
    assert flagged(text)


@pytest.mark.parametrize("text", ["model.eval()", "re.compile(x)", "send_sync(", "one request. Then", "bind(x)"])
def test_scanner_rules_let_pass(text: str) -> None:
    assert flagged(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "await fetch('/prompt')",
        "window.loom = 1",
        "nodeType.prototype.onConfigure = f",
        "node.onDrawForeground = draw",
        "element.innerHTML = text",
        'import { ComfyWidgets } from "../../scripts/widgets.js"',
        'import x from "https://cdn.example/x.js"',
    ],
)
def test_javascript_rules_find(text: str) -> None:
    assert javascript_faults(text)


def test_javascript_rules_let_pass() -> None:
    text = 'import { app } from "../../../scripts/app.js"\nimport { f } from "./loss.js"\napp.registerExtension({})\n'
    assert javascript_faults(text) == []


@pytest.mark.parametrize("source", ["NODE_CLASS_MAPPINGS = {}", "sys.path.append(x)", "x = '\u0394W'"])
def test_python_rules_find(source: str) -> None:
    assert python_faults(source)


NODE = """
class Train({base}):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id={node_id}, display_name="Train")
"""


@pytest.mark.parametrize(
    ("base", "node_id"),
    [
        ("io.ComfyNode", "NAME"),
        ("io.ComfyNode", "'LoraLoom_' + 'Train'"),
        ("io.ComfyNode", "'TrainLora'"),
        ("Base", "'LoraLoom_Train'"),
        ("Mixin, io.ComfyNode", "'LoraLoom_Train'"),
    ],
)
def test_node_rules_find(base: str, node_id: str) -> None:
    assert node_faults(NODE.format(base=base, node_id=node_id))


def test_node_rules_let_pass() -> None:
    assert node_faults(NODE.format(base="io.ComfyNode", node_id="'LoraLoom_Train'")) == []
