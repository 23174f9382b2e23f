"""Whoever learns a concept: Train LoRA and ComfyUI's TrainLoraNode, each run whole, as a workflow runs it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from benchmarks._concepts import Concept, write
from comfy_extras.nodes_train import TrainLoraNode
from harness.calls import encode, run_node
from lora_loom.lora_core.data.dataset import Dataset
from lora_loom.nodes.bridge.model.encoding_cache import cache_folder
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.train_lora import TrainLora
from torch import Tensor

import nodes

PICTURES = 16
File = dict[str, Tensor]  # a LORA_MODEL: what LoraModelLoader loads and SaveLoRA saves


@dataclass(frozen=True)
class Base:
    model: Any
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Task:
    """A concept's training pictures as either trainer takes them, and what makes runs equal."""

    base: Base
    dataset: Dataset
    pixels: Tensor  # [pictures, h, w, 3]
    captions: list[str]
    known: str  # the words that stand in for the new one when the base is preserved
    steps: int
    batch: int
    rank: int

    @cached_property
    def encodings(self) -> tuple[Tensor, list]:
        """Latents and CONDITIONINGs for a trainer that keeps none itself."""
        texts = [encode(self.base.clip, caption) for caption in self.captions]
        return encoded(self.base.vae, self.pixels), texts

    @classmethod
    def of(cls, base: Base, concept: Concept, folder: Path, steps: int, batch: int, rank: int) -> Task:
        scenes = concept.scenes(PICTURES, "training")
        write(folder, scenes, concept)
        dataset = run_node(LoraDataset, folder=str(folder), trigger=concept.word, resolution=96, repeats=1)[0]
        pixels = torch.stack([example.pixels.float() for example in dataset.examples])
        captions = [example.caption for example in dataset.examples]
        return cls(base, dataset, pixels, captions, ", ".join(concept.known), steps, batch, rank)


@dataclass(frozen=True)
class Learner:
    """`settings` are what differs from the trainer's defaults, by the node's names of its inputs. `seeds` are as many
    as its row is the mean of. `timed_as`, where it is not empty, is the row whose cost is its own: it has as many steps
    as fit into the time of `_results.LOUD`, less what the base's neutral states take where `states` count."""

    name: str
    run: Callable[[Task, int, Mapping[str, Any]], File]
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    seeds: int = 3
    timed_as: str = ""
    states: bool = False

    def learn(self, task: Task, seed: int) -> File:
        torch.manual_seed(seed)  # from which TrainLoraNode draws the factors and the noise levels
        return self.run(task, seed, self.settings)

    def timed(self, task: Task, fresh: bool) -> float:
        """What a run takes, from pictures and captions on; a fresh one with nothing kept of earlier runs. On CUDA
        seconds, else seconds of the processor, which a busy machine changes less."""
        if fresh:
            shutil.rmtree(cache_folder(), ignore_errors=True)
            task = replace(task)
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        started = clock()
        self.learn(task, 0)
        return clock() - started


def ours(task: Task, seed: int, settings: Mapping[str, Any]) -> File:
    auto = dict(alpha=0.0, learning_rate=0.0, targets="auto", accumulation=1)
    same = dict(steps=task.steps, batch_size=task.batch, rank=task.rank, seed=seed)
    base = dict(model=task.base.model, clip=task.base.clip, vae=task.base.vae, dataset=task.dataset)
    run = dict(run_name="learn", resume="start over", gradient_checkpointing=False)
    words = dict(preserve=task.known) if "preservation" in settings else {}
    return run_node(TrainLora, **base, **(auto | same | run | words | settings))[0]


def native(task: Task, seed: int, settings: Mapping[str, Any]) -> File:
    latents, texts = task.encodings
    given = {entry.id: entry.default for entry in TrainLoraNode.GET_SCHEMA().inputs if hasattr(entry, "default")}
    given |= dict(steps=task.steps, batch_size=task.batch, rank=task.rank, seed=seed)
    given |= dict(
        gradient_checkpointing=False, existing_lora="[None]", model=task.base.model, latents={"samples": latents}
    )
    listed = {name: [value] for name, value in (given | settings).items()}
    return run_node(TrainLoraNode, **listed, positive=texts)[0]


@torch.inference_mode()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pictures [n, h, w, 3], one by one: this VAE takes several for the frames of a clip."""
    return torch.cat([nodes.VAEEncode().encode(vae, one[None])[0]["samples"] for one in pixels])


def load_base() -> Base:
    with torch.inference_mode():
        (model,) = nodes.UNETLoader().load_unet("loom_demo.safetensors", "default")
        (clip,) = nodes.CLIPLoader().load_clip("loom_demo_words.pt", "stable_diffusion")
        (vae,) = nodes.VAELoader().load_vae("loom_demo_vae.safetensors")
    return Base(model, clip, vae)
