"""Captions and pictures as the model wants them: CONDITIONING and latents, encoded once before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import comfy.model_management
import torch
from torch import Tensor

from ...lora_core.training.dataset import Dataset, Example

Tick = Callable[[int, int, str], None]


def encode_captions(
    clip, captions: Iterable[str], guidance: float | None, tick: Tick, check: Callable[[list], None] | None = None
) -> dict[str, list]:
    """CONDITIONING of every distinct caption, kept outside inference mode so that training may use it.

    `check` gets the first one, and may raise before the others are made.
    """
    encoded: dict[str, list] = {}
    distinct = sorted(set(captions))
    for index, caption in enumerate(distinct):
        comfy.model_management.throw_exception_if_processing_interrupted()
        tick(index, len(distinct), "captions")
        with torch.inference_mode():
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
        if check and not encoded:
            check(conditioning)
        extra = {} if guidance is None else {"guidance": guidance}
        with torch.inference_mode(False):
            encoded[caption] = [
                [kept(cond), {name: kept(v) for name, v in {**values, **extra}.items()}]
                for cond, values in conditioning
            ]
    return encoded


def encode_images(vae, model, dataset: Dataset, tick: Tick) -> list[Tensor]:
    """Latents (channels, ...) in the model's own scale, fp32 on the CPU, in the order of the examples.

    Pictures are encoded one at a time: a batch given to a video VAE is one clip.
    """
    check_sizes(vae, dataset)
    latents = []
    for index, example in enumerate(dataset.examples):
        comfy.model_management.throw_exception_if_processing_interrupted()
        tick(index, len(dataset.examples), "images")
        with torch.inference_mode():
            latents.append(_latent(vae, model, example))
    with torch.inference_mode(False):
        return [kept(latent) for latent in latents]


def check_sizes(vae, dataset: Dataset) -> None:
    """Raises ValueError when a bucket is no multiple of what the VAE compresses by."""
    factor = int(vae.spacial_compression_encode())
    for width, height in dataset.buckets():
        if width % factor or height % factor:
            raise ValueError(
                f"the bucket {width} x {height} is not a multiple of {factor}, which this VAE compresses by; "
                f"set bucket_step to a multiple of {factor}"
            )


def _latent(vae, model, example: Example) -> Tensor:
    latent = vae.encode(example.pixels[None].float())
    wanted = model.model.latent_format
    if latent.shape[1] != wanted.latent_channels:
        raise ValueError(
            f"this VAE makes {latent.shape[1]} latent channels but the model works on {wanted.latent_channels}; "
            "connect the VAE that belongs to the model"
        )
    if wanted.latent_dimensions == 3 and latent.ndim == 4:
        latent = latent[:, :, None]
    return model.model.process_latent_in(latent)[0]


def kept(value):
    """A tensor copied out of inference mode to the CPU; anything else, and lists of them, as they are."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    return [kept(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
