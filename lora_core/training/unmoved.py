"""Layers that learn nothing, since no gradient reaches them: told when the first step is done, not after the run."""

from __future__ import annotations

import torch

from .inject import Factors


class Unmoved:
    """Compares every layer's B with what it was: the first step moves it, whatever the optimiser, if it has a gradient.

    Nothing is said of runs that leave out ranks or layers at random.
    """

    def __init__(self, factors: Factors):
        self.factors, self.sentence = factors, ""
        self.before = {} if factors.options.drops else {n: b.lora_B.clone() for n, b in factors.trained.items()}

    @torch.no_grad()
    def look(self) -> str:
        """To be called after every step. Return a sentence, once, if there are such layers; steps in which nothing
        moves, as the first of a warm-up, are passed over."""
        if not self.before:
            return ""
        trained = self.factors.trained
        moved = torch.stack([(trained[name].lora_B != before).any() for name, before in self.before.items()]).tolist()
        if any(moved):
            still = [name for name, has in zip(self.before, moved, strict=True) if not has]
            self.sentence = _sentence(still, len(moved)) if still else ""
            self.before = {}
        return self.sentence


def _sentence(still: list[str], count: int) -> str:
    return (
        f"{len(still)} of {count} layers learn nothing (the first is {still[0]}): no gradient reached them in the "
        "first step. Add them to exclude to make the file smaller. Usually the model does not use their output, as "
        "in the text part of some last blocks. If they should learn, please report it with the version of ComfyUI"
    )
