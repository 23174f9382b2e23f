"""The same pictures, from the same noise, with each of several sets of LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....lora_core.analysis import leakage
from ....lora_core.analysis.leakage import PictureChange
from ..host.progress import Progress
from ..host.wires import Clip, Model, Vae
from ..model.sampling import Sampling, check_size, decoded, latents
from ..stack.apply_stack import apply_entries
from ..stack.bypass_injection import uncalled
from ..stack.entries import Entry


@dataclass(frozen=True)
class Prompts:
    """Says what is drawn, from how many seeds. CONDITIONING that is given is taken as it is, in place of prompts."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    seeds: int = 1
    conditioning: list | None = None
    negative_conditioning: list | None = None


@dataclass(frozen=True)
class Drawn:
    """Holds what was drawn by the name of the set, a latent and a picture for each round of (prompt, seed), and
    sentences on what of the first set had no effect."""

    rounds: Sequence[tuple[str, int]]
    latents: Mapping[str, Sequence[Tensor]]
    pictures: Mapping[str, Sequence[Image.Image]]
    missed: Sequence[str]

    def changes(self, one: str, other: str) -> list[PictureChange]:
        """Return the change from one set to another, round by round."""
        return [
            leakage.change(before, after, _pixels(mine), _pixels(theirs))
            for before, after, mine, theirs in zip(
                self.latents[one], self.latents[other], self.pictures[one], self.pictures[other], strict=True
            )
        ]


def drawn_by(
    model: Model, clip: Clip | None, vae: Vae, sets: Mapping[str, Sequence[Entry]], asked: Prompts, sampling: Sampling
) -> Drawn:  # fmt: skip
    """Draw every prompt from every seed with each set of LoRAs, same noise. Raises ComfyUI's interrupt between steps,
    and ValueError when there is nothing to draw."""
    check_size(vae, sampling.width, sampling.height)
    _check(asked, clip)
    seeds = [(sampling.seed + number) % 2**64 for number in range(asked.seeds)]
    prompts = asked.prompts or ("",)
    rounds = [(prompt, seed) for prompt in prompts for seed in seeds]
    progress, total, made, missed = Progress(2 * len(sets) * len(rounds)), len(sets) * len(rounds), {}, []
    for at, (name, kept) in enumerate(sets.items()):
        patcher, text, _ = apply_entries(model, clip, kept)
        conditions = _conditions(text, prompts, asked)
        made[name] = []
        for prompt, seed in rounds:
            done = at * len(rounds) + len(made[name])
            left = f", {progress.time_left(done, total)}" if done else ""
            progress.say(f"{name}: picture {len(made[name]) + 1} of {len(rounds)}{left}")
            made[name].append(latents(patcher, *conditions[prompt], sampling, seed))
            progress.update(done + 1)
        missed += [line for each in uncalled(patcher, text) for line in each.sentences() if not at]
    pictures: dict[str, list[Image.Image]] = {}
    for name, drawn in made.items():
        pictures[name] = []
        for latent in drawn:
            pictures[name].append(decoded(vae, latent))
            progress.update(total + sum(map(len, pictures.values())))
    return Drawn(rounds, made, pictures, missed)


def _check(asked: Prompts, clip: Clip | None) -> None:
    if not asked.conditioning and not asked.prompts:
        raise ValueError("there is no prompt; write one, or connect positive")
    if not asked.conditioning and clip is None:
        raise ValueError("prompts need a text encoder; connect clip, or positive and negative conditioning")
    if asked.conditioning and asked.negative_conditioning is None and clip is None:
        raise ValueError("the negative prompt needs a text encoder; connect clip or negative_conditioning")


def _conditions(clip: Clip | None, prompts: Sequence[str], asked: Prompts) -> dict[str, tuple[list, list]]:
    """Positive and negative of each prompt; every text is encoded once, whatever the number of seeds."""
    negative = asked.negative_conditioning
    negative = _encoded(clip, asked.negative) if negative is None else negative
    return {prompt: (asked.conditioning or _encoded(clip, prompt), negative) for prompt in prompts}


def _encoded(clip: Clip | None, prompt: str) -> list:
    speaker = cast(Clip, clip)  # `_check` asks for one where there is a text to encode
    return speaker.encode_from_tokens_scheduled(speaker.tokenize(prompt))


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
