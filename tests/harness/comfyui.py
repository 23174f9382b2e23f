"""Tells which ComfyUI is used, and how it is told where the pack is. Run as a script it is `python dev.py serve`."""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".comfyui"
DEMO_MODELS = ROOT / "tests" / "demo" / "models"
PACK_NAME = "lora-loom"
BASE_FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models/loras")

# ComfyUI resolves these against the folder of the file itself, so nothing has to be quoted. It lies in STATE.
EXTRA_PATHS = """\
lora_loom:
  custom_nodes: custom_nodes
  diffusion_models: ../tests/demo/models/diffusion_models
  text_encoders: ../tests/demo/models/text_encoders
  vae: ../tests/demo/models/vae
"""


def comfyui_path() -> Path:
    """Return the person's own (COMFYUI_PATH) or the pinned tree; raises RuntimeError when there is none."""
    path = Path(os.environ.get("COMFYUI_PATH") or STATE / "ComfyUI").expanduser().resolve()
    if not (path / "main.py").is_file():
        raise RuntimeError(f"there is no ComfyUI in {path}: `python dev.py test` fetches one; or set COMFYUI_PATH")
    return path


def link_pack() -> Path:
    """A folder that holds this repository, and only it, as `lora-loom`, whatever the checkout is called; returns the
    extra_model_paths file that names it. On Windows the link is a junction, which needs no rights."""
    link = STATE / "custom_nodes" / PACK_NAME
    if not link.exists() or not link.samefile(ROOT):
        link.parent.mkdir(parents=True, exist_ok=True)
        _remove_link(link)
        _make_link(link)
    config = STATE / "extra_model_paths.yaml"
    if not config.is_file() or config.read_text(encoding="ascii") != EXTRA_PATHS:
        config.write_text(EXTRA_PATHS, encoding="ascii")
    return config


def _make_link(link: Path) -> None:
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def _remove_link(link: Path) -> None:
    """Removes a link left from before the checkout was moved, never what it points to."""
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        link.rmdir()  # a junction; refused for a real folder, unless empty


def prepare_base(base: Path) -> Path:
    """The folders a ComfyUI --base-directory needs."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    return base


def server_command(base: Path, port: int, extra: Sequence[str] = ()) -> list[str]:
    """Starts from comfyui_path(). Nothing is written outside `base`; the database stays in memory."""
    command = [sys.executable, str(comfyui_path() / "main.py"), "--port", str(port)]
    command += ["--base-directory", str(prepare_base(base)), "--extra-model-paths-config", str(link_pack())]
    command += ["--database-url", "sqlite:///:memory:", "--use-pytorch-cross-attention", "--disable-auto-launch"]
    return [*command, *device_arguments(), *extra]


def device_arguments() -> list[str]:
    """CUDA where torch sees it, else the CPU: on Apple's GPUs there is no float64, and the tests compare with it."""
    import torch

    return [] if torch.cuda.is_available() else ["--cpu"]


def free_port() -> int:
    """Return one that nobody listens on. Not among those that systems give to whoever asks for any, from 32768 on: a
    server takes seconds to start, and meanwhile it would be given to somebody else."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def serve(arguments: list[str]) -> int:
    """ComfyUI in the foreground with a base directory that stays, .comfyui/base; unknown arguments go to ComfyUI."""
    parser = argparse.ArgumentParser(prog="dev.py serve", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8188, help="8188 unless given; another one if that is taken")
    options, extra = parser.parse_known_args(arguments)
    port = options.port if is_free(options.port) else free_port()
    command = server_command(STATE / "base", port, extra)
    print(f"ComfyUI with LoRA Loom: http://127.0.0.1:{port} (in a few seconds; Ctrl-C ends it)", flush=True)
    if os.name != "nt":
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
