"""What passes between the stages: empty latents of their shapes, and conditioning that a prior's latent makes."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..host.wires import Conditioning, Model
from .coders import grey_embedding
from .kandinsky import IMAGE_EMBEDDING
from .stages import stage_of
from .titles import LOAD_MODEL

Latent = dict[str, Any]


def empty_latents(model: Model, width: int, height: int, count: int) -> tuple[Latent, Latent]:
    """Return empty LATENTs for the prior and for the decoder of a picture of that size, by either's MODEL.

    Raises ValueError for a MODEL of another kind, and for a size that it cannot draw.
    """
    config = model.model.model_config
    if (stage := stage_of(config)) is None:
        raise ValueError(
            f"this model is a {type(config).__name__}, which has no prior; connect one of {LOAD_MODEL}, or use "
            "ComfyUI's own empty latents"
        )
    device = comfy.model_management.intermediate_device()
    prior, decoder = stage.empty(config, width, height)
    return {"samples": torch.zeros(count, *prior, device=device)}, {
        "samples": torch.zeros(count, *decoder, device=device)
    }


def from_prior(
    prior: Latent, negative_prior: Latent | None, clip_vision: ClipVisionModel | None
) -> tuple[Conditioning, Conditioning]:
    """Return the positive and the negative CONDITIONING of Kandinsky's decoder for what its prior made.

    The negative one is `negative_prior`, what the prior makes of a negative prompt, or else a grey picture's.
    Raises ValueError when there is neither, and for latents that are no image embeddings.
    """
    embedding = _embedding(prior, "prior")
    if negative_prior is not None:
        negative = _embedding(negative_prior, "negative_prior")
    elif clip_vision is not None:
        negative = grey_embedding(clip_vision)
    else:
        raise ValueError(
            "Kandinsky 2.2 is guided away from the image embedding of a grey picture, or from a negative prompt's; "
            "connect its CLIP vision model to clip_vision, or what its prior makes of that prompt to negative_prior"
        )
    if negative.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"the prior's image embedding has {embedding.shape[1]} numbers, but the negative one has "
            f"{negative.shape[1]}; connect CLIP ViT-bigG, the vision model of Kandinsky 2.2"
        )
    return _conditioning(embedding), _conditioning(negative)


def _embedding(latent: Latent, name: str) -> Tensor:
    samples = latent["samples"]
    if samples.shape[2:].numel() != 1:
        raise ValueError(
            f"{name} is a latent of {' x '.join(map(str, samples.shape[1:]))}, and an image embedding is one of "
            "1280 x 1 x 1; connect the KSampler of Kandinsky's prior there"
        )
    return samples


def _conditioning(embedding: Tensor) -> Conditioning:
    """The embedding stands for the tokens of a text, which the decoder does not read."""
    return [[embedding.flatten(1)[:, None], {IMAGE_EMBEDDING: embedding}]]
