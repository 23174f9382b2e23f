"""Makes what passes between the stages: empty latents of their shapes, and conditioning that a prior's latent makes."""

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
from .wuerstchen import PRIOR

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
    prior: Latent,
    negative_prior: Latent | None,
    clip_vision: ClipVisionModel | None,
    positive: Conditioning | None,
    negative: Conditioning | None,
) -> tuple[Conditioning, Conditioning]:
    """Return the positive and the negative CONDITIONING of the decoder for what its prior made: an image embedding is
    Kandinsky's, a larger latent Wuerstchen's. Raises ValueError when what that system needs besides is not given."""
    if prior["samples"].shape[2:].numel() > 1:
        return _with_text(prior["samples"], positive, negative)
    embedding = prior["samples"]
    against = _negative(negative_prior, clip_vision)
    if against.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"the prior's image embedding has {embedding.shape[1]} numbers, but the negative one has "
            f"{against.shape[1]}; connect CLIP ViT-bigG, the vision model of Kandinsky 2.2"
        )
    return _of_embedding(embedding), _of_embedding(against)


def _negative(negative_prior: Latent | None, clip_vision: ClipVisionModel | None) -> Tensor:
    """Return what the prior makes of a negative prompt, or else the embedding of a grey picture."""
    if negative_prior is not None:
        samples = negative_prior["samples"]
        if samples.shape[2:].numel() > 1:
            raise ValueError(
                f"negative_prior is a latent of {' x '.join(map(str, samples.shape[1:]))}, and an image embedding is "
                "one of 1280 x 1 x 1; connect a KSampler of Kandinsky's prior there"
            )
        return samples
    if clip_vision is not None:
        return grey_embedding(clip_vision)
    raise ValueError(
        "Kandinsky 2.2 is guided away from the image embedding of a negative prompt, or of a grey picture; connect "
        "what its prior makes of the negative prompt to negative_prior, or its CLIP vision model to clip_vision"
    )


def _of_embedding(embedding: Tensor) -> Conditioning:
    """The embedding stands for the tokens of a text, which the decoder does not read."""
    return [[embedding.flatten(1)[:, None], {IMAGE_EMBEDDING: embedding}]]


def _with_text(
    prior: Tensor, positive: Conditioning | None, negative: Conditioning | None
) -> tuple[Conditioning, Conditioning]:
    """Against text of its own without a prior, which is how Wuerstchen's decoder is guided."""
    if positive is None or negative is None:
        raise ValueError(
            "the decoder of Wuerstchen v2 reads the prompt, too; connect it and a negative one to positive and "
            "negative, encoded with the decoder's own text encoder, CLIP ViT-H"
        )
    return _put(positive, prior), _put(negative, torch.zeros_like(prior))


def _put(conditioning: Conditioning, prior: Tensor) -> Conditioning:
    return [[text, {**options, PRIOR: prior}] for text, options in conditioning]
