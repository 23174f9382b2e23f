"""Reads a command line: what is ours, and the flags that go on to ComfyUI."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ABOUT = """Runs a workflow, saved by the browser or exported for the API, without server and browser. Ctrl-C cancels
and keeps what was trained; the same command goes on from there."""
_AFTER = """Every other argument goes to ComfyUI, such as --cpu, --base-directory FOLDER or --output-directory FOLDER
(all of them: python main.py --help in its folder). Exit status: 0 done, 1 failed, 2 bad input, 130 cancelled."""


@dataclass(frozen=True)
class Options:
    """`flags` are ComfyUI's. `settings` are `<node>.<input>=<value>` as they were written, `sweeps` as many of them as
    there are values. `timeout` is in seconds."""

    workflow: Path
    settings: tuple[str, ...]
    result: Path | None
    comfyui: Path | None
    timeout: float
    flags: tuple[str, ...]
    check: bool
    sweeps: tuple[str, ...]
    sweep_folder: Path | None
    parallel: int


def read(arguments: Sequence[str]) -> Options:
    """Raises SystemExit, with what is wrong on stderr, where argparse does."""
    own, comfyuis = _parted(list(arguments))
    known, others = _parser().parse_known_args(own)
    return Options(
        workflow=known.workflow, settings=tuple(known.set), result=known.result, comfyui=known.comfyui,
        timeout=known.timeout, flags=(*others, *comfyuis), check=known.check, sweeps=tuple(known.sweep),
        sweep_folder=known.sweep_folder, parallel=known.parallel,
    )  # fmt: skip


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before `--`, and after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("headless.py", description=_ABOUT, epilog=_AFTER, allow_abbrev=False)
    parser.add_argument("workflow", type=Path, help="a .json file; it comes before ComfyUI's flags")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="12.steps=500, or by title or class"
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="write how it went into this file, as JSON")
    parser.add_argument(
        "--comfyui", type=Path, metavar="FOLDER", help="where ComfyUI is, unless the pack lies in its custom_nodes"
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="SECONDS", help="how long ranks of a torchrun wait for another"
    )
    parser.add_argument("--check", action="store_true", help="say what is wrong with the workflow, and run nothing")
    sweep = parser.add_argument_group("a sweep: a run of each combination of values, a table and a sheet of pictures")
    sweep.add_argument(
        "--sweep", action="append", default=[], metavar="INPUT=VALUE,VALUE", help="as --set, with several values"
    )
    sweep.add_argument(
        "--sweep-folder", type=Path, metavar="FOLDER", help="for results, table and sheet; else beside the workflow"
    )
    sweep.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="runs side by side, each on a GPU of its own"
    )
    return parser
