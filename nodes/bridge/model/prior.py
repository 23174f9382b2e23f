"""Encodes what pictures are made from besides their captions, where a family has earlier stages: Stable Cascade's
stage B is conditioned on the stage C latent of a picture, Kandinsky 2.2's decoder on its CLIP image embedding."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ....lora_core.data.dataset import Dataset
from ....lora_core.families.table import FAMILIES, Family, Prior
from ....lora_core.ranks.group import ALONE, Group
from ..host.wires import Model, Vae
from .encoding import Tick, compression, encoded_views, resized
from .names import family_of


def check_prior(model: Model, vae: Vae, prior_vae: Vae | None) -> None:
    """Raises ValueError when the VAEs are not those that this model's family needs."""
    family = family_of(model)
    _check_vae(family, model, vae)
    if family.prior is None:
        if prior_vae is not None:
            others = " and ".join(row.name for row in FAMILIES if row.prior)
            raise ValueError(f"{family.name} does not use prior_vae; disconnect it (it is only for {others})")
        return
    if prior_vae is None:
        raise ValueError(
            f"{family.name} is conditioned on {family.prior.what} of each picture; connect {family.prior.encoder} "
            "to prior_vae"
        )
    _check_encoder(family, family.prior, model, prior_vae)
    wanted = model.model.latent_format.spacial_downscale_ratio
    if (factor := compression(vae)) != wanted:
        raise ValueError(
            f"this VAE compresses by {factor} but {family.name} works on latents of {wanted} x {wanted} pixels; "
            f"connect {family.vae or 'the VAE that belongs to the model'}"
        )


def encode_priors(
    prior_vae: Vae | None, model: Model, dataset: Dataset, tick: Tick, group: Group = ALONE
) -> list[dict[str, Tensor]]:
    """Return what CONDITIONING needs besides the caption, per view: (1, channels, height, width), fp32 on the CPU. A
    stage C latent has the size that ComfyUI's StableCascade_StageC_VAEEncode gives it, an image embedding is one place.
    Empty for families without a prior. The ranks of a `group` make them together."""
    prior = family_of(model).prior
    if prior is None or prior_vae is None:  # `check_prior` has asked for one where there is a prior
        return [{} for example in dataset.examples for _ in range(example.num_views)]
    prepare = partial(resized, places=prior.places, factor=prior.factor)
    made = encoded_views(prior_vae, "priors", dataset, tick, "images for the prior", prepare, group)
    return [{prior.name: value} for value in made]


def _check_vae(family: Family, model: Model, vae: Vae) -> None:
    """One of other figures is refused by them, and nothing is known of one without a network."""
    network = getattr(vae, "first_stage_model", None)
    if not family.vae_has or not isinstance(network, nn.Module):
        return
    there = any(name.rpartition(".")[2] == family.vae_has for name, _ in network.named_modules())
    if not there and int(vae.latent_channels) == model.model.latent_format.latent_channels:
        raise ValueError(
            f"the VAE is a {type(network).__name__}, but {family.name} works on what {family.vae} makes; connect that"
        )


def _check_encoder(family: Family, prior: Prior, model: Model, prior_vae: Vae) -> None:
    channels, factor = int(prior_vae.latent_channels), compression(prior_vae)
    wanted = prior.channels or _read_by(model, prior.reads)
    if (channels, factor) == (wanted, prior.factor or factor):
        return
    raise ValueError(
        f"the VAE at prior_vae makes {channels} latent channels and compresses by {factor}, but {family.name} is "
        f"conditioned on {prior.what}, which has {wanted} channels"
        f"{f' and is compressed by {prior.factor}' if prior.factor else ''}; connect {prior.encoder} there"
    )


def _read_by(model: Model, layer: str) -> int:
    return int(model.model.diffusion_model.get_submodule(layer).in_features)
