"""Measures what a LoRA has learned, and what it changes beside that, through ComfyUI's own loader and sampler."""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass
from statistics import mean
from typing import Any

import comfy.model_management
import torch
from benchmarks._concepts import PX, UNRELATED, Concept
from benchmarks._judge import judge
from benchmarks._learners import Base, File, encoded
from benchmarks._results import BASE, DECODED, TRUE, Marks
from comfy_extras.nodes_train import LoraModelLoader
from demo import shapes
from harness.calls import encode, run_node
from torch import Tensor

import nodes

LEVELS, STEPS, GUIDANCE = 8, 12, 3.0
PICTURES, PROMPTS, KIN = 16, 12, 8


@dataclass(frozen=True)
class Neutral:
    """True pictures of what the base knows, which every concept is examined with."""

    latents: Tensor
    texts: Tensor

    @classmethod
    def of(cls, base: Base) -> Neutral:
        rng = random.Random("neutral pictures")
        scenes = [shapes.random_scene(rng) for _ in range(PICTURES)]
        pictures = torch.stack([shapes.draw(scene, PX, PX) for scene in scenes])
        return cls(encoded(base.vae, pictures.movedim(1, -1)), texts(base, map(shapes.caption, scenes)))


class Exam:
    """Tests what LoRAs have learned of one concept; everything random in it is fixed."""

    def __init__(self, base: Base, neutral: Neutral, concept: Concept):
        self.base, self.concept = base, concept
        self.scenes = concept.scenes(PICTURES, "held out")
        self.truth = torch.stack([concept.layers(scene).picture() for scene in self.scenes])
        learned = encoded(base.vae, self.truth.movedim(1, -1)), texts(base, map(shapes.caption, self.scenes))
        self.latents, self.texts = torch.cat([learned[0], neutral.latents]), torch.cat([learned[1], neutral.texts])
        kin = texts(base, map(shapes.caption, concept.of_its_class(KIN)))
        self.prompts = torch.cat([learned[1][:PROMPTS], kin, texts(base, UNRELATED)])
        self.empty = encode(base.clip, "")
        self.before = self.drawn(base.model, self.prompts)
        self.losses = self._losses(base.model)

    def marks(self, lora: File) -> Marks:
        model = run_node(LoraModelLoader, model=self.base.model, lora=lora, strength_model=1.0)[0]
        return self._marks(self.drawn(model, self.prompts), self._losses(model))

    def references(self) -> dict[str, Marks]:
        """The true pictures, what the VAE makes of them, and the base."""
        return {
            TRUE: self._verdict(self.truth[:PROMPTS]),
            DECODED: self._verdict(self._decoded(self.latents[:PROMPTS])),
            BASE: self._marks(self.before, self.losses),
        }

    def _marks(self, drawn: Tensor, losses: tuple[float, float]) -> Marks:
        found = self._verdict(drawn[:PROMPTS])
        change = 255 * (drawn - self.before).abs().mean((1, 2, 3))[PROMPTS:]
        return Marks(
            losses[0], losses[1] / self.losses[1], found.overlap, found.colour, found.error,
            kin=float(change[:KIN].mean()), change=float(change[KIN:].mean()),
        )  # fmt: skip

    def _verdict(self, images: Tensor) -> Marks:
        found = [astuple(judge(image, scene, self.concept)) for image, scene in zip(images, self.scenes, strict=False)]
        overlap, colour, error = (mean(column) for column in zip(*found, strict=True))
        return Marks(overlap=overlap, colour=colour, error=error)

    @torch.inference_mode()
    def _losses(self, model: Any) -> tuple[float, float]:
        """Of the concept's pictures and of neutral ones. Textbook flow matching: x_t = (1 - t) x0 + t noise, and the
        network's velocity against noise - x0."""
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network = model.model
        x0 = network.process_latent_in(self.latents).to(model.load_device)
        generator, total = torch.Generator().manual_seed(11), torch.zeros(len(x0))
        for level in range(LEVELS):
            t = torch.full((len(x0),), (level + 0.5) / LEVELS).to(x0)
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            x_t = torch.lerp(x0, noise, t.view(-1, 1, 1, 1, 1))
            velocity = (x_t - network.apply_model(x_t, t, c_crossattn=self.texts.to(x0))) / t.view(-1, 1, 1, 1, 1)
            total += (velocity - (noise - x0)).square().mean((1, 2, 3, 4)).cpu()
        own, other = (total / LEVELS).split(PICTURES)
        return float(own.mean()), float(other.mean())

    @torch.inference_mode()
    def drawn(self, model: Any, prompts: Tensor) -> Tensor:
        """[prompts, 3, h, w] by KSampler, all prompts in one batch."""
        blank = nodes.EmptyLatentImage().generate(PX, PX, len(prompts))[0]
        asked = [[prompts, {}]]
        (out,) = nodes.KSampler().sample(model, 5, STEPS, GUIDANCE, "euler", "simple", asked, self.empty, blank)
        return self._decoded(out["samples"])

    @torch.inference_mode()
    def _decoded(self, latents: Tensor) -> Tensor:
        return nodes.VAEDecode().decode(self.base.vae, {"samples": latents})[0].movedim(-1, 1)


def texts(base: Base, captions: Any) -> Tensor:
    """One tensor whose batch are the captions."""
    return torch.cat([tensor for caption in captions for tensor, _ in encode(base.clip, caption)])
