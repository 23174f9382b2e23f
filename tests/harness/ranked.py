"""Runs of Train LoRA by two processes side by side, each in a ComfyUI of its own with folders of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from harness.comfyui import ROOT
from harness.inprocess import alias_pack, load_comfyui

CHILD = "import sys; sys.path.append(sys.argv[1]); from harness.ranked import main; main(sys.argv[2], int(sys.argv[3]))"
RUNS: dict[str, dict[str, Any]] = {  # of one process and of two
    "plain": {"batch_size": 4},
    "quiet": {"quiet": "directions", "assistants": [("aid.safetensors", 0.5, 1.0)]},
    "preserving": {"accumulation": 2, "preserve": "photo", "preservation": 1.0, "text_rank": 2, "offload": 0.5},
}
LEARNED: dict[str, dict[str, Any]] = {  # of anything but pictures of one concept
    "liked": {"batch_size": 2}, "moved": {"batch_size": 2, "text_rank": 2}, "slider": {"batch_size": 2, "text_rank": 2},
    "apart": {"batch_size": 4, "text_rank": 2},
}  # fmt: skip
STEPS_FIRST = 2  # of a run that is cut off


def start(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what each rank tells of its runs: weights, losses, report, error, and how often what was called."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(ROOT / "tests"), str(folder)]
    children = [
        subprocess.Popen([*command, str(rank)], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [child.communicate(timeout=300)[1] for child in children]
    assert not any(child.returncode for child in children), "\n".join(each[-3000:] for each in said)
    return {rank: _read(folder / f"told{rank}") for rank in range(2)}


def _read(path: Path) -> dict[str, Any]:
    import torch
    from lora_loom.lora_core.ranks.exchange import unpacked

    return unpacked(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))


def main(folder: str, rank: int) -> None:
    alias_pack()
    load_comfyui(Path(folder, f"base{rank}"))
    import torch.distributed as dist
    from lora_loom.lora_core.ranks.exchange import packed

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    trio = _models(Path(folder, f"base{rank}"))
    with few_prompts():
        told = {name: _told(trio, make) for name, make in _cases(trio, Path(folder), rank).items()}
    dist.destroy_process_group()
    Path(folder, f"told{rank}").write_bytes(packed(told).numpy().tobytes())


def _models(folder: Path) -> Any:
    import tiny
    import torch

    from harness.calls import register_pack

    register_pack()
    with torch.inference_mode():
        return tiny.load("sd15", folder)


def _told(trio: Any, make: Callable[[], Any]) -> dict[str, Any]:
    """With how many pictures and captions were encoded, and how many pictures went through the network."""
    import comfy.model_management

    from harness.runs import on_forward

    with on_forward(trio) as sizes, _counted(trio.vae, "encode") as images:
        with _counted(trio.clip, "encode_from_tokens_scheduled") as captions:
            try:
                told = what(make())
            except comfy.model_management.InterruptProcessingException:
                told = {"cancelled": True}
            except (ValueError, RuntimeError) as error:
                told = {"error": str(error)}
    return {**told, "forwards": sum(sizes), "images": images.call_count, "captions": captions.call_count}


def _counted(of: Any, name: str) -> Any:
    return patch.object(of, name, Mock(side_effect=getattr(of, name)))


def _cancel(now: bool) -> None:
    import comfy.model_management

    if now:
        comfy.model_management.interrupt_current_processing()


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def what(out: Any) -> dict[str, Any]:
    """Return what came out of a run, as it is compared."""
    weights = {name: layer.delta_weight() for name, layer in out.adapter.layers.items()}
    return {"weights": weights, "losses": out.loss_map["loss"], "report": out.report, "shape": list(out.sheet.shape)}


@contextmanager
def few_prompts() -> Iterator[None]:
    """Four shipped neutral prompts and one level of noise each."""
    from lora_loom.lora_core.data import neutral

    shipped = neutral.shipped
    with patch.object(neutral, "shipped", lambda kind: list(shipped(kind))[:4]):
        with patch("lora_loom.nodes.bridge.quiet.states.FORWARDS", 8):
            yield


def watched() -> dict[str, Any]:
    """Previews and validation of a run."""
    from lora_loom.nodes.previews import TrainingPreviews
    from lora_loom.nodes.validation import TrainingValidation

    from harness.calls import run_node

    widgets = {field.id: field.default for field in TrainingValidation.GET_SCHEMA().inputs}
    looks = {**widgets, "every": 2, "draws": 2, "held_out": 0.25}
    previews = {
        "prompts": "a picture", "negative": "dull", "every": 2, "seed": 11, "strength": 1.0, "width": 64, "height": 64,
        "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
    }  # fmt: skip
    return {
        "previews": run_node(TrainingPreviews, **previews)[0],
        "validation": run_node(TrainingValidation, **looks)[0],
    }


def learned(trio: Any, folder: Path) -> dict[str, Any]:
    """The data sets of `LEARNED`."""
    from lora_loom.nodes.combine_datasets import CombineDatasets
    from lora_loom.nodes.preference_pairs import PreferencePairs
    from lora_loom.nodes.slider import LoraSlider

    from harness.calls import run_node
    from harness.runs import read

    one, other = (read(folder / name, "picture") for name in ("pictures", "others"))
    concepts = {name: read(folder / name, word) for name, word in (("pictures", "sks"), ("others", "ohwx"))}
    slider = {"model": trio.model, "clip": trio.clip, "vae": trio.vae, "guidance": 0.5, "resolution": 64, "pictures": 4}
    slider |= {"seed": 3, "steps": 1, "more": "", "less": "", "subject": ""}
    prompts, sides = {"more": "cat", "less": "dog"}, {"more_pictures": one, "less_pictures": other}
    return {
        "liked": run_node(PreferencePairs, liked=one, disliked=other, beta=100.0)[0],
        "moved": run_node(LoraSlider, **slider, **sides)[0],
        "slider": run_node(LoraSlider, **{**slider, **prompts})[0],
        "apart": run_node(CombineDatasets, datasets=concepts, keep_apart=True)[0],
    }


def _cases(trio: Any, folder: Path, rank: int) -> dict[str, Callable[[], Any]]:
    """What both ranks do, in this order."""
    import torch
    from lora_loom.lora_core.runs import run_folder

    from harness.runs import on_forward, read, train

    data, fewer = (read(folder / name, "picture") for name in ("pictures", "fewer"))
    shown = watched()

    def cancelled() -> Any:
        with on_forward(trio, lambda number: _cancel(rank == 1 and number == STEPS_FIRST)):
            return train(trio, data, **RUNS["plain"], run_name="stopped")

    def full() -> Any:
        with patch.object(run_folder.checkpoint, "save", _full) if not rank else nullcontext():
            return train(trio, data, **RUNS["plain"], run_name="full", save_every=1)

    def rebased() -> Any:
        modules = trio.model.model.diffusion_model.named_modules()
        weight = next(module for name, module in modules if name.endswith("attn1.to_q")).weight
        with torch.inference_mode():
            weight.add_(rank)
        return train(trio, data, run_name="rebased")

    others = {
        name: partial(train, trio, own, **LEARNED[name], **shown, run_name=name)
        for name, own in learned(trio, folder).items()
    }
    return {
        "plain": lambda: train(trio, data, **RUNS["plain"], run_name="plain", **shown),
        "again": lambda: train(trio, data, **RUNS["plain"], run_name="plain", **shown),
        "preserving": lambda: train(trio, data, **RUNS["preserving"], run_name="preserving"),
        "quiet": lambda: train(trio, data, **RUNS["quiet"], run_name="quiet"),
        "begun": lambda: train(trio, data, **RUNS["plain"], run_name="begun"),
        "stopped": cancelled,
        "full": full,
        "small": lambda: train(trio, data, batch_size=1),
        "settings": lambda: train(trio, data, steps=4 + rank),
        "pictures": lambda: train(trio, fewer if rank else data),
        **others,
        "rebased": rebased,
    }
