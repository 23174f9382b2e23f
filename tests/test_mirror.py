"""The test of a module lies where the module does and has its name: that of lora_core/files/guard.py, or of a folder
lora_core/files/guard, is tests/lora_core/files/test_guard.py; that of nodes/bridge/host/ending.py is
tests/nodes/host/test_ending.py, and that of the node nodes/report.py is tests/nodes/test_report.py.

What is not one module's is a topic. A module without a test of its name is tested by those that import it."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

from harness.comfyui import ROOT

TESTS = ROOT / "tests"
COMFY = {"app", "comfy", "folder_paths", "nodes", "tiny"}  # or what imports them
ROOMS = (  # the tests of a folder and of those below it, and where their modules are
    (PurePosixPath("lora_core"), PurePosixPath("lora_core")),
    (PurePosixPath("nodes/bridge"), PurePosixPath("nodes")),
    (PurePosixPath("nodes"), PurePosixPath("nodes")),
    (PurePosixPath("console"), PurePosixPath("console")),
)
DEVICE = PurePosixPath("nodes/device")  # tests that are for the pretend device alone
TOPICS = frozenset(
    {
        # files, whoever reads and writes them
        "lora_core/test_golden.py", "nodes/test_golden.py", "lora_core/files/test_hostile.py", "nodes/test_hostile.py",
        "lora_core/files/test_formats_diffusers.py", "nodes/test_diffusers.py", "nodes/test_newer_names.py",
        "nodes/test_reading.py", "nodes/test_replacing.py", "nodes/test_spellings.py", "nodes/test_derived.py",
        "nodes/test_kinds.py", "nodes/trust/test_other_programs.py",
        # training
        "nodes/test_dora.py", "nodes/test_gradients.py", "nodes/test_joined.py", "nodes/test_leaks.py",
        "nodes/test_packed.py", "nodes/test_replayed.py", "nodes/test_edits.py",
        "nodes/test_placement.py", "nodes/test_precision.py", "nodes/training/test_damage.py",
        "nodes/systems/test_training.py", "nodes/quiet/test_kept_with_runs.py", "nodes/quiet/test_beside_the_rest.py",
        "nodes/training/test_ranks.py", "lora_core/ranks/test_shared_runs.py",
        # several nodes at once
        "nodes/test_objective_and_layers.py", "nodes/test_resize_extract.py", "nodes/test_rows.py",
        "nodes/test_schema.py", "nodes/test_locales.py", "nodes/test_measures.py", "nodes/test_on_ranks.py",
        # a process of its own
        "console/test_headless.py", "console/test_lost_ranks.py",
    }
)  # fmt: skip


def modules(name: PurePosixPath) -> list[PurePosixPath]:
    """The places where the module or folder may be that a test, a path below tests/, is named after."""
    own = PurePosixPath(name.stem.removeprefix("test_"))
    return [pack / name.parent.relative_to(tests) / own for pack, tests in ROOMS if name.is_relative_to(tests)]


def is_there(module: PurePosixPath) -> bool:
    return (ROOT / module).is_dir() or (ROOT / module).with_suffix(".py").is_file()


def nameless(names: list[PurePosixPath]) -> list[str]:
    """The tests that are called after nothing."""
    return [
        f"tests/{name} is called after none of {', '.join(f'{module}.py' for module in modules(name))}, and is no topic"
        for name in names
        if str(name) not in TOPICS and not any(map(is_there, modules(name)))
    ]


def files() -> list[PurePosixPath]:
    folders = (TESTS / folder for folder in ("lora_core", "nodes", "console"))
    paths = [path for folder in folders for path in sorted(folder.rglob("test_*.py"))]
    names = [PurePosixPath(path.relative_to(TESTS).as_posix()) for path in paths]
    return [name for name in names if not name.is_relative_to(DEVICE)]


def test_every_test_has_the_name_of_a_module_or_is_a_topic() -> None:
    assert nameless(files()) == []


def test_topics_are_there_and_are_no_modules() -> None:
    assert TOPICS <= set(map(str, files()))
    assert [topic for topic in sorted(TOPICS) if any(map(is_there, modules(PurePosixPath(topic))))] == []


def test_tests_of_lora_core_are_collected_without_comfyui() -> None:
    """Those that ComfyUI's own code judges import it within, and use the fixture `comfyui`."""
    for path in sorted((TESTS / "lora_core").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            )
            assert not {(name or "").partition(".")[0] for name in names} & COMFY, path


def test_no_test_needs_another_file_of_tests() -> None:
    """Helpers that several tests share lie in tests/harness."""
    for name in files():
        found = [node for node in ast.walk(ast.parse((TESTS / name).read_text("utf-8"))) if is_relative(node)]
        assert found == [], f"{name}:{found[0].lineno} imports another test"


def is_relative(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.level > 0


def test_it_would_notice() -> None:
    wrong = "lora_core/test_guard.py", "lora_core/stack/test_guard.py", "nodes/host/test_spans.py"
    assert len(nameless([*map(PurePosixPath, wrong)])) == len(wrong)
    right = "lora_core/files/test_guard.py", "lora_core/test_kinds.py", "nodes/model/test_spans.py"
    assert nameless([*map(PurePosixPath, right)]) == []
