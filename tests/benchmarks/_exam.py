"""Measures what a LoRA has learned: its loss on unseen pictures, and what it draws, through ComfyUI's own loader."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import nan
from statistics import mean

import comfy.model_management
import torch
from benchmarks._concepts import PX, UNRELATED, Concept
from benchmarks._judge import judge
from benchmarks._learners import Base, File, encoded
from comfy_extras.nodes_train import LoraModelLoader
from demo import shapes
from harness.calls import encode, run_node
from torch import Tensor

import nodes

TRUE, DECODED, BASE = "true pictures", "the same through the VAE", "base"
LEVELS = 16


@dataclass(frozen=True)
class Marks:
    """`loss`, of the velocity on held-out pictures at noise levels spread evenly; `overlap`, `colour` and `error` as in
    `_judge.Verdict`, means over held-out prompts; `change`, on unrelated prompts against the base, 0..255."""

    loss: float
    overlap: float
    colour: float
    error: float
    change: float


class Exam:
    """Tests what LoRAs have learned of one concept; everything random in it is fixed."""

    def __init__(self, base: Base, concept: Concept, pictures: int = 16, prompts: int = 12):
        self.base, self.concept = base, concept
        self.scenes = concept.scenes(pictures, "held out")
        self.asked = self.scenes[:prompts]
        self.truth = torch.stack([concept.layers(scene).picture() for scene in self.scenes])
        self.latents = encoded(base.vae, self.truth.movedim(1, -1))
        self.texts = self._texts(map(shapes.caption, self.scenes))
        self.unrelated = self._texts(UNRELATED)
        self.before = self._draw(base.model, self.unrelated, seed=7)

    def marks(self, lora: File) -> Marks:
        return self._marks(run_node(LoraModelLoader, model=self.base.model, lora=lora, strength_model=1.0)[0])

    def references(self) -> dict[str, Marks]:
        """The true pictures, what the VAE makes of them, and the base."""
        true, latents = self.truth[: len(self.asked)], self.latents[: len(self.asked)]
        return {
            TRUE: Marks(nan, *self._verdict(true), 0.0),
            DECODED: Marks(nan, *self._verdict(self._decoded(latents)), 0.0),
            BASE: self._marks(self.base.model),
        }

    def _marks(self, model) -> Marks:
        ((text, options),) = self.texts
        drawn = self._draw(model, [[text[: len(self.asked)], options]], seed=5)
        change = self._draw(model, self.unrelated, seed=7) - self.before
        return Marks(self._loss(model), *self._verdict(drawn), 255 * float(change.abs().mean()))

    def _verdict(self, images: Tensor) -> tuple[float, ...]:
        found = [astuple(judge(image, scene, self.concept)) for image, scene in zip(images, self.asked, strict=True)]
        return tuple(mean(column) for column in zip(*found, strict=True))

    @torch.inference_mode()
    def _loss(self, model) -> float:
        """Textbook flow matching: x_t = (1 - t) x0 + t noise, and the network's velocity against noise - x0."""
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network, text = model.model, self.texts[0][0]
        x0 = network.process_latent_in(self.latents).to(model.load_device)
        generator, losses = torch.Generator().manual_seed(11), []
        for level in range(LEVELS):
            t = torch.full((len(x0),), (level + 0.5) / LEVELS).to(x0)
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            x_t = torch.lerp(x0, noise, t.view(-1, 1, 1, 1, 1))
            velocity = (x_t - network.apply_model(x_t, t, c_crossattn=text.to(x0))) / t.view(-1, 1, 1, 1, 1)
            losses.append(float((velocity - (noise - x0)).square().mean()))
        return mean(losses)

    @torch.inference_mode()
    def _draw(self, model, conditioning: list, seed: int) -> Tensor:
        """[prompts, 3, h, w] by KSampler, all prompts in one batch."""
        count = len(conditioning[0][0])
        empty = nodes.EmptyLatentImage().generate(PX, PX, count)[0]
        (out,) = nodes.KSampler().sample(
            model, seed, 16, 3.0, "euler", "simple", conditioning, encode(self.base.clip, ""), empty
        )
        return self._decoded(out["samples"])

    def _texts(self, captions) -> list:
        """One CONDITIONING whose batch are the captions."""
        found = [encode(self.base.clip, caption)[0] for caption in captions]
        return [[torch.cat([tensor for tensor, _ in found]), {}]]

    @torch.inference_mode()
    def _decoded(self, latents: Tensor) -> Tensor:
        return nodes.VAEDecode().decode(self.base.vae, {"samples": latents})[0].movedim(-1, 1)
