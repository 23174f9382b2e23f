"""The stage C latent of each picture: what Stable Cascade's stage B is conditioned on, besides the caption."""

from __future__ import annotations

from functools import partial

import comfy.utils
from torch import Tensor

from ....lora_core.data.dataset import Dataset
from ..host.wires import Model, Vae
from .encoding import Tick, compression, encoded_views
from .names import family_of

_COMPRESSION = 42  # pixels to a stage C latent: the default of ComfyUI's Stable Cascade nodes
_ENCODER = (16, 32)  # latent channels of the stage C encoder, and what it compresses by


def check_prior(model: Model, vae: Vae, prior_vae: Vae | None) -> None:
    """Raises ValueError when the VAEs are not those that this model's family needs."""
    family = family_of(model)
    if not family.prior:
        if prior_vae is not None:
            raise ValueError(
                f"{family.name} does not use prior_vae; disconnect it (it is only for Stable Cascade stage B)"
            )
        return
    if prior_vae is None:
        raise ValueError(
            f"{family.name} is conditioned on the stage C latent of each picture; connect the stage C encoder "
            "(effnet_encoder, by Load VAE) to prior_vae"
        )
    if (channels_and_factor := _kind(prior_vae)) != _ENCODER:
        raise ValueError(
            "the VAE at prior_vae makes {} latent channels and compresses by {}, but the stage C encoder makes {} and "
            "compresses by {}; connect effnet_encoder there".format(*channels_and_factor, *_ENCODER)
        )
    wanted = model.model.latent_format.spacial_downscale_ratio
    if (factor := _kind(vae)[1]) != wanted:
        raise ValueError(
            f"this VAE compresses by {factor} but {family.name} works on latents of {wanted} x {wanted} pixels; "
            "connect the VAE of stage A"
        )


def encode_priors(prior_vae: Vae | None, model: Model, dataset: Dataset, tick: Tick) -> list[dict[str, Tensor]]:
    """Return what CONDITIONING needs besides the caption, per view: its stage C latent (1, 16, height, width), fp32 on
    the CPU, of the size that ComfyUI's StableCascade_StageC_VAEEncode gives it. Empty for families without a prior."""
    name = family_of(model).prior
    if not name or prior_vae is None:  # `check_prior` has asked for one where there is a prior
        return [{} for example in dataset.examples for _ in range(example.num_views)]
    resized = partial(_resized, factor=_ENCODER[1])
    return [
        {name: prior} for prior in encoded_views(prior_vae, "priors", dataset, tick, "images for the prior", resized)
    ]


def _resized(pixels: Tensor, factor: int) -> Tensor:
    """(1, height, width, 3), with `factor` pixels to each pixel of the latent."""
    height, width = (max(side // _COMPRESSION, 1) * factor for side in pixels.shape[1:3])
    return comfy.utils.common_upscale(pixels.movedim(-1, 1), width, height, "bicubic", "center").movedim(1, -1)


def _kind(vae: Vae) -> tuple[int, int]:
    return int(vae.latent_channels), compression(vae)
