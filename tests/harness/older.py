"""Releases of diffusers that people still have: which of them read a LoRA file, and what they add to each weight.

They lie beside the packages of this Python, one folder each, put there by `dev.py`, and run in a process of their own
with the torch, peft and transformers of today.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOME = Path(sys.prefix) / "older-diffusers"
_LIST = Path(__file__).resolve().parents[1] / "older_diffusers.txt"
VERSIONS = re.findall(r"^diffusers==(\S+)", _LIST.read_text(encoding="utf-8"), re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A LoRA `file` for a network (a class of diffusers and its configuration) by a `loader` of pipelines, whose `part`
    the network is. What is added to each weight is written to `out`; nothing when the release lacks one of them."""

    network: str
    config: Mapping[str, Any]
    loader: str
    part: str
    file: str
    out: str


def load_lora(loader: Any, part: str, network: Any, path: Path | str) -> None:
    """Load the file into the network, as `load_lora_weights` of its pipelines does."""
    more = {"unet_config": network.config} if part == "unet" else {"return_alphas": True}
    tensors, *alphas, metadata = loader.lora_state_dict(str(path), return_lora_metadata=True, **more)
    known = {"network_alphas": alphas[0]} if alphas else {}
    getattr(loader, f"load_lora_into_{part}")(tensors, **known, **{part: network}, metadata=metadata)


def added(network: Any) -> dict[str, Any]:
    """Return what LoRAs add to each weight."""
    found = {name: module for name, module in network.named_modules() if getattr(module, "lora_A", None)}
    return {name: module.get_delta_weight(next(iter(module.lora_A))).contiguous() for name, module in found.items()}


def run(version: str, jobs: Sequence[Job], folder: Path) -> None:
    """All jobs in one process with that release."""
    assert (HOME / version).is_dir(), f"diffusers {version} is not in {HOME}; dev.py puts it there"
    order = folder / f"jobs {version}.json"
    order.write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
    known = {**os.environ, "PYTHONPATH": str(HOME / version), "HF_HUB_OFFLINE": "0"}  # offline it reads no file
    done = subprocess.run(
        [sys.executable, __file__, str(order), version], env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def main(order: str, version: str) -> None:
    import diffusers
    from diffusers import loaders
    from safetensors.torch import save_file

    assert diffusers.__version__ == version, f"{diffusers.__version__} was imported from {diffusers.__file__}"
    for job in (Job(**each) for each in json.loads(Path(order).read_text(encoding="utf-8"))):
        network_class, loader = getattr(diffusers, job.network, None), getattr(loaders, job.loader, None)
        if network_class is None or loader is None:
            continue
        known = inspect.signature(network_class.__init__).parameters
        network = network_class(**{name: value for name, value in job.config.items() if name in known})
        load_lora(loader, job.part, network, job.file)
        save_file(added(network), job.out)


if __name__ == "__main__":
    main(*sys.argv[1:])
