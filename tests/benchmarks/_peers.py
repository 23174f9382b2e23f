"""What other trainers offer so that a LoRA leaves the rest alone, each as small as it can be, in Train LoRA's own runs.

Nothing but the named idea differs from a loud run: the same steps, batch, rank, targets, timesteps and auto learning
rate. Each is named after where it is from; none of these is that program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks._concepts import PX
from benchmarks._learners import PICTURES, File, Learner, Task, ours
from demo import shapes
from harness.calls import encode, run_node
from lora_loom.lora_core.data.dataset import Dataset
from lora_loom.lora_core.swap import swapped
from lora_loom.lora_core.training import objective, tasks, trainer
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.sample import Sample
from lora_loom.nodes.bridge.training import run as product
from lora_loom.nodes.combine_datasets import CombineDatasets
from lora_loom.nodes.dataset import LoraDataset
from torch import Tensor

import nodes

_SEED, _STEPS, _CFG = 23, 16, 3.0  # of the class pictures
_LEAST = 0.5  # of the ranks, that T-LoRA has at the noisiest level
Gradient = Callable[..., tuple[Tensor, Tensor | None]]


def class_images(task: Task, seed: int, settings: Mapping[str, Any]) -> File:
    """DreamBooth's prior preservation (Ruiz et al. 2022, arXiv:2208.12242): as many pictures of the class, drawn by the
    base for the training captions in known words, are learned beside the concept's, at the same weight."""
    return ours(replace(task, dataset=_with_class_images(task)), seed, settings)


def prior_prediction(task: Task, seed: int, settings: Mapping[str, Any]) -> File:
    """OneTrainer's prior prediction: the same pictures of the class, with what the base predicts for them as their
    target."""
    return _trained(replace(task, dataset=_with_class_images(task)), seed, settings, _of_the_base)


def gated_ranks(task: Task, seed: int, settings: Mapping[str, Any]) -> File:
    """T-LoRA without its orthogonal start (Soboleva et al. 2025, arXiv:2507.05964): the noisier the picture, the fewer
    ranks are trained on it. All are there when it is drawn, as a LoRA file cannot say otherwise."""
    return _trained(task, seed, settings, lambda _: _gated)


def peers(loud: Mapping[str, Any]) -> tuple[Learner, ...]:
    """Return the learners; `loud` are settings of Train LoRA without quiet directions."""
    return (
        Learner("differential output preservation (ai-toolkit)", ours, {**loud, "preservation": 1.0}),
        Learner("class images (DreamBooth)", class_images, loud),
        Learner("prior prediction (OneTrainer)", prior_prediction, loud),
        Learner("rank gate (T-LoRA)", gated_ranks, loud),
    )


def _with_class_images(task: Task) -> Dataset:
    word, known = task.dataset.trigger, task.known.split(", ")[0]
    captions = [caption.replace(f"an {word}", f"a {word}").replace(word, known) for caption in task.captions]
    assert len(captions) == PICTURES and all(known in caption for caption in captions)
    with tempfile.TemporaryDirectory() as folder:
        for index, (caption, picture) in enumerate(zip(captions, _drawn(task, captions), strict=True)):
            shapes.write_png(picture, Path(folder, f"{index:03d}.png"))
            Path(folder, f"{index:03d}.txt").write_text(caption + "\n", encoding="ascii")
        inputs = dict(folder=folder, trigger=known, resolution=PX, repeats=1, class_images=True)
        drawn = run_node(LoraDataset, **inputs)[0]
    return run_node(CombineDatasets, datasets={"dataset0": task.dataset, "dataset1": drawn})[0]


@torch.inference_mode()
def _drawn(task: Task, captions: Sequence[str]) -> Tensor:
    """[captions, 3, h, w], values 0..1, all in one batch."""
    found = [encode(task.base.clip, caption)[0] for caption in captions]
    texts = [[torch.cat([tensor for tensor, _ in found]), {}]]
    empty = nodes.EmptyLatentImage().generate(PX, PX, len(captions))[0]
    settings = (_SEED, _STEPS, _CFG, "euler", "simple")
    (out,) = nodes.KSampler().sample(task.base.model, *settings, texts, encode(task.base.clip, ""), empty)
    return nodes.VAEDecode().decode(task.base.vae, out)[0].movedim(-1, 1)


def _trained(
    task: Task, seed: int, settings: Mapping[str, Any], gradient: Callable[[Sequence[Sample]], Gradient]
) -> File:
    """A run of Train LoRA that finds the gradient of a micro-batch in another way, made for its samples."""

    def steps(config: Any, state: Any, denoiser: Any, samples: Sequence[Sample], *rest: Any) -> Any:
        return trainer.train(config, state, denoiser, samples, *rest[:2], gradient(samples))

    with swapped([(product, "train", steps)]):
        return ours(task, seed, settings)


def _of_the_base(samples: Sequence[Sample]) -> Gradient:
    priors = {id(each.condition) for sample in samples for each in (sample, *sample.variants) if sample.prior}
    return partial(_prior_predicted, priors)


def _prior_predicted(
    priors: set[int], config: Any, factors: Factors, denoiser: Any, x0: Tensor, noise: Tensor, sigma: Tensor,
    conditions: list[Any], *_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As `add_gradient`, the change of the base's answer being the loss of samples whose conditions are `priors`."""
    losses = torch.zeros(len(x0), device=x0.device)
    for row, condition in enumerate(conditions):
        one = slice(row, row + 1)
        if id(condition) in priors:
            x_t = denoiser.noised(x0[one], noise[one], sigma[one])
            found = objective.preservation(denoiser, factors, x_t, sigma[one], [condition])[None]
        else:
            found = objective.losses(denoiser, x0[one], noise[one], sigma[one], [condition], config.objective)
        (found.sum() / len(x0) / config.accumulation).backward()
        losses[row] = found.detach()[0]
    return losses, None


def _gated(config: Any, factors: Factors, denoiser: Any, x0: Tensor, noise: Tensor, sigma: Tensor, *rest: Any) -> Any:
    """As `add_gradient` with ranks left out by the noisiest sample: those that stay are not scaled up."""
    keep = []
    for branch in factors.trained.values():
        rank, least = len(branch.lora_A), int(len(branch.lora_A) * _LEAST)
        there = int((rank - least) * (1 - float(sigma.max()))) + least
        keep.append(torch.arange(rank, device=x0.device) < there)
    with factors.keeping(torch.cat(keep).to(x0)):
        return tasks.add_gradient(config, factors, denoiser, x0, noise, sigma, *rest)
