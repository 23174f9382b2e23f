"""A training stage that can be cut off and resumed, and the optimizers of the demo base."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from muon import Muon
from torch import Tensor, nn


def adamw(params: list[Tensor], lr: float = 2e-3) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, lr, betas=(0.9, 0.98), weight_decay=0.0)


def split_optimizers(dit: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, biases, modulation and the output."""
    inner = {name for name, weight in dit.named_parameters() if name.startswith("blocks.") and weight.ndim == 2}
    rest = [weight for name, weight in dit.named_parameters() if name not in inner]
    return [Muon([weight for name, weight in dit.named_parameters() if name in inner]), adamw(rest)]


@dataclass
class Progress:
    """One stage of training with a clock that stops between runs: parameters, their average, optimizers, seconds."""

    model: nn.Module
    path: Path
    seconds: float
    optimizers: list[torch.optim.Optimizer]
    half_life: float = 200.0  # steps, of the weight average
    step: int = 0
    spent: float = 0.0
    loss: float | None = None  # running mean

    def __post_init__(self) -> None:
        self.rates = [optimizer.defaults["lr"] for optimizer in self.optimizers]
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.path.exists():
            self._resume(torch.load(self.path))

    def _resume(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average, self.step, self.spent, self.loss = (state[key] for key in ("average", "step", "spent", "loss"))

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: getattr(self, key) for key in ("average", "step", "spent", "loss")}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state | {"model": self.model.state_dict(), "optimizers": optimizers}, self.path)

    @property
    def done(self) -> float:
        return min(1.0, self.spent / self.seconds)

    def run(self, loss_of: Callable[[float], Tensor], publish: Callable[[dict[str, Tensor]], None]) -> None:
        """Step until the time is up; `publish` receives the averaged weights every four minutes and at the end."""
        saved = self.spent
        while self.done < 1:
            start = time.monotonic()
            self._descend(loss_of(self.done))
            self.spent += time.monotonic() - start
            if self.step % 100 == 0:
                print(f"{self.path.name} step {self.step} {self.spent / 60:.1f} min loss {self.loss:.4f}", flush=True)
            if self.spent - saved > 240 or self.done >= 1:
                saved = self.spent
                self.save()
                publish(self.average)

    def _descend(self, loss: Tensor) -> None:
        """One step; the learning rates warm up for 100 steps and then follow half a cosine over the whole time."""
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = min(1, (self.step + 1) / 100) * (0.505 + 0.495 * math.cos(math.pi * self.done))
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        self.step += 1
        self.loss = loss.item() if self.loss is None else 0.98 * self.loss + 0.02 * loss.item()
        keep = min(0.5 ** (1 / self.half_life), self.step / (self.step + 9))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
