"""What goes into the package, seen as the Registry's scanner, the Manager and the front end see it.

The scanner searches text, comments and Markdown included, and one finding holds a version back.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from harness.comfyui import PACK_NAME, ROOT
from lora_loom.lora_core.version import VERSION

MEGABYTE = 2**20
ZIP_LIMIT = 4 * MEGABYTE
TEXT = {".py", ".js", ".css", ".json", ".md", ".toml", ".txt", ".html", ""}
PICTURES = {".jpg", ".png", ".webp", ".svg"}
AT_THE_ROOT = {
    *("__init__.py", "nodes", "lora_core", "web", "workflows", "locales"),
    *("pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE"),
}

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
FRONT_END_MODULES = r"(\.\./)+scripts/(app|api)\.js|\./[\w./-]+\.js"


# -- the rules, each over the text of one file, so that each can be shown to find something ---------------------------


def flagged(text: str) -> list[str]:
    return [f"{rule}: {match[0]!r}" for rule, pattern in FLAGGED.items() for match in re.finditer(pattern, text)]


def javascript_faults(text: str) -> list[str]:
    found = [f"{rule}: {match[0]!r}" for rule, pattern in JS_RULES.items() for match in re.finditer(pattern, text)]
    imports = r"""^\s*(?:import\b|(?:import|export)\b[^'"()=]*\bfrom\b)\s*['"]([^'"]+)['"]"""
    modules = re.findall(imports, text, re.MULTILINE)
    return found + [f"imports {module}" for module in modules if not re.fullmatch(FRONT_END_MODULES, module)]


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


def git_files(*arguments: str) -> set[str]:
    command = ["git", "-c", "core.quotepath=off", "ls-files", *arguments]
    return set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines())


def shipped() -> list[Path]:
    """As `comfy node publish` chooses: what git tracks, less .comfyignore; here also what is not committed yet."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no telling what would ship")
    files = git_files("--cached", "--others", "--exclude-standard")
    ignored = git_files("--cached", "--others", "--ignored", "--exclude-from=.comfyignore")
    return sorted(path for name in files - ignored if (path := ROOT / name).is_file())


def texts(*suffixes: str) -> dict[str, str]:
    chosen = [path for path in shipped() if path.suffix in (suffixes or TEXT)]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in chosen}


def test_only_run_time_files_ship() -> None:
    paths = [path.relative_to(ROOT) for path in shipped()]
    assert {path.parts[0] for path in paths} <= AT_THE_ROOT
    assert {path.suffix for path in paths} <= TEXT | PICTURES
    assert {"__init__.py", "pyproject.toml", "LICENSE"} <= {path.name for path in paths}


def test_package_is_small() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for path in shipped():
            package.write(path, path.relative_to(ROOT))
    assert len(buffer.getvalue()) < ZIP_LIMIT


def test_nothing_the_scanner_flags() -> None:
    assert [f"{name}: {fault}" for name, text in texts().items() for fault in flagged(text)] == []


def test_python_and_javascript_rules() -> None:
    python = [f"{name}: {fault}" for name, text in texts(".py").items() for fault in python_faults(text)]
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
    """Of several such folders ComfyUI lists all and serves one; thumbnails are .jpg only."""
    others = ("example_workflows", "example", "examples", "workflow")
    assert [name for name in others if (ROOT / name).exists()] == []
    templates = {path.stem for path in ROOT.glob("workflows/*.json")}
    assert templates == {path.stem for path in ROOT.glob("workflows/*.jpg")}


def test_project_file_as_comfyui_reads_it() -> None:
    from comfy_config.config_parser import extract_node_configuration

    read = extract_node_configuration(str(ROOT))
    project, comfy = read.project, read.tool_comfy
    assert (project.name, comfy.publisher_id, comfy.display_name) == (PACK_NAME, "lora-loom", "LoRA Loom")
    assert re.fullmatch(r"\d+\.\d+\.\d+", project.version) and project.version == VERSION
    assert project.supported_comfyui_version == ">=0.30.0"
    assert project.urls.repository.startswith("https://github.com/")
    assert project.license.file == "LICENSE" and project.dependencies == []
    assert not comfy.web, "with WEB_DIRECTORY every script would load twice"
    assert f"## {project.version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


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


def test_repository_files_outside_the_package_are_ignored() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in shipped()}
    assert not names & {"dev.py", "requirements-dev.txt", ".comfyignore"}
    assert not [name for name in names if name.startswith(("tests/", ".ci/"))]
