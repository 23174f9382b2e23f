"""Write the golden files anew: `python tests/golden/make.py`, with COMFYUI_PATH set.

They were written by version 0.1.0. Write further ones when a format gets something new, and never to please a test:
what is there already is what people have on their disks.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `harness`

from harness.inprocess import alias_pack, load_comfyui  # noqa: E402

alias_pack()
BASE = load_comfyui()

import tiny  # noqa: E402
import torch  # noqa: E402
from harness import golden, golden_bridge  # noqa: E402
from lora_loom.lora_core.runs import checkpoint, kept_picture, result  # noqa: E402
from lora_loom.lora_core.runs.run_folder import RunFolder  # noqa: E402
from lora_loom.nodes.bridge.model.encoding_cache import Encodings, cache_folder  # noqa: E402
from PIL import Image  # noqa: E402


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_run(settings: dict[str, Any]) -> None:
    run = RunFolder(golden.RUN, golden.IDENTITY, settings)
    with run.held():
        run.resume(golden.fresh("adamw"))
        run.note(golden.RESULT)
        run.note(golden.TROUBLE)
        run.save(golden.advanced("adamw"), golden.lora)
    (run.path / ".lock").unlink()
    result.remember(run.path, golden.KEY, golden.FINISHED, Image.new("RGB", (8, 8), (10, 20, 30)))
    sheet, note = run.path / "previews" / f"step_{golden.STEP:06d}.png", golden_bridge.shown()["all chosen"].note()
    kept_picture.write(sheet, Image.new("RGB", (8, 8), (30, 20, 10)), note)


def main() -> None:
    for folder in ("run", "states", "cache"):
        shutil.rmtree(golden.FOLDER / folder, ignore_errors=True)
    write(golden.KEYS, golden.told())
    for name in golden.OPTIMIZERS:
        checkpoint.save(golden.state_path(name), golden.advanced(name), golden.IDENTITY)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        trio = tiny.load("sd15", Path(folder))
    told = golden_bridge.told(trio)
    write(golden.FOLDER / golden_bridge.KEYS_OF_BRIDGE, told)
    write_run(told["settings"]["adamw"])
    Encodings("captions", golden_bridge.ENCODER).of(golden_bridge.CONTENT, golden_bridge.encoded)
    shutil.copytree(cache_folder(), golden.CACHE)
    shutil.rmtree(BASE, ignore_errors=True)


main()
