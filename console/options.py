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
    """`flags` are ComfyUI's. `settings` are `<node>.<input>=<value>` as they were written. `timeout` is in seconds."""

    workflow: Path
    settings: tuple[str, ...]
    result: Path | None
    comfyui: Path | None
    timeout: float
    flags: tuple[str, ...]


def read(arguments: Sequence[str]) -> Options:
    """Raises SystemExit, with what is wrong on stderr, where argparse does."""
    own, comfyuis = _parted(list(arguments))
    known, others = _parser().parse_known_args(own)
    return Options(
        workflow=known.workflow, settings=tuple(known.set), result=known.result, comfyui=known.comfyui,
        timeout=known.timeout, flags=(*others, *comfyuis),
    )  # fmt: skip


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and after it."""
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
    return parser
