"""`python dev.py gpu-check`: the check of a device in a ComfyUI of this process, on the device that it would choose."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `harness`, when run as a script

from harness.comfyui import comfyui_path  # noqa: E402
from harness.inprocess import PRETEND, alias_pack, use_pretend_device  # noqa: E402


def main(arguments: list[str]) -> int:
    """0 when everything that was looked at is right, 1 when something is not, 130 when it was cut off."""
    parser = argparse.ArgumentParser(prog="dev.py gpu-check", allow_abbrev=False, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute instead of three, nothing of real width")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the two files; this one unless given")
    options, flags = parser.parse_known_args(arguments)
    try:
        return checked(load(flags), options.quick, options.out)
    except KeyboardInterrupt:
        print("gpu-check: cut off; nothing was written", file=sys.stderr)
        return 130


def load(flags: list[str]) -> ModuleType:
    """Return the check, in a ComfyUI with these flags: on the pretend device, if PRETEND, or else on the CPU where
    torch sees no other."""
    alias_pack()
    sys.path.insert(0, str(comfyui_path()))
    sys.argv = ["main.py", *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import torch

    if PRETEND or not torch.accelerator.is_available():
        comfy.cli_args.args.cpu = True
        torch.set_num_threads(1)  # with several, networks as tiny as these run far slower on a busy machine
    if PRETEND:
        use_pretend_device()
    from lora_loom.nodes.bridge.check import run

    logging.getLogger().setLevel(logging.ERROR)
    return run


def checked(run: ModuleType, quick: bool, folder: Path) -> int:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():  # as ComfyUI executes nodes
        found = run.check(quick=quick, tell=lambda finding, done: print(f"{done:3} {finding.line()}", flush=True))
    paths = run.write(found, folder)
    print("", *found.verdicts(), f"written: {' and '.join(map(str, paths))}", sep="\n")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
