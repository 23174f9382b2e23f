"""Call a ComfyUI MODEL of any family as the training objective's Denoiser."""

from __future__ import annotations

from math import prod

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_sampling import CONST, COSMOS_RFLOW, EDM, V_PREDICTION
from torch import Tensor

from . import captions
from .attention import OVERRIDE
from .captions import Conditions
from .keys import family_of

_LEAST_SIGMA = 1e-3  # flow models are defined down to 0, where the output residual is 0 / 0

_TOKEN = 16  # pixels at the side of one


def prediction_type(model) -> str:
    """ModelSpec's word for what the network predicts."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, (CONST, COSMOS_RFLOW)):
        return "flow"
    return "v" if isinstance(sampling, V_PREDICTION) and not isinstance(sampling, EDM) else "epsilon"


class ComfyDenoiser:
    """Satisfies `lora_core.training.objective.Denoiser` for the model inside a loaded ModelPatcher."""

    def __init__(self, patcher):
        self.model = patcher.model
        self.device = patcher.load_device
        self.sampling = patcher.get_model_object("model_sampling")
        options = patcher.model_options.get("transformer_options", {})
        self.options = {name: value for name, value in options.items() if name != OVERRIDE}
        self.captions = family_of(patcher).captions

    def condition(self, conditioning: list, latent: Tensor, device: torch.device | None = None) -> Conditions:
        """ComfyUI CONDITIONING encoded for one latent (channels, ...): text, pooled vectors, size conditioning."""
        device = device or self.device
        batch = latent[None].to(device)
        conds = comfy.sampler_helpers.convert_cond(conditioning)
        conds = comfy.samplers.encode_model_conds(
            self.model.extra_conds, conds, batch, device, "positive",
            latent_image=batch, denoise_mask=None, seed=0, latent_shapes=[batch.shape],
        )  # fmt: skip
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds[0]["model_conds"].items()}

    def sigma(self, u: Tensor) -> Tensor:
        if isinstance(self.sampling, CONST):
            return u.clamp(_LEAST_SIGMA, 1.0)
        if isinstance(self.sampling, COSMOS_RFLOW):
            return u.clamp(_LEAST_SIGMA, 1 - _LEAST_SIGMA) / (1 - u.clamp(_LEAST_SIGMA, 1 - _LEAST_SIGMA))
        sigmas = self.sampling.sigmas.to(u.device)
        return sigmas[(u * len(sigmas)).long().clamp(max=len(sigmas) - 1)]

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.sampling.noise_scaling(sigma.view(-1, *(1 for _ in x0.shape[1:])), noise, x0, False)

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Conditions]) -> Tensor:
        groups = captions.groups(conditions, self.captions, self.model, x_t.shape)
        parts = [self._together(x_t[group], sigma[group], [conditions[i] for i in group]) for group in groups]
        order = torch.tensor([index for group in groups for index in group]).argsort()
        return torch.cat(parts)[order.to(x_t.device)]

    def output_scale(self, sigma: Tensor) -> Tensor:
        one = torch.ones_like(sigma)
        return self.sampling.calculate_denoised(sigma, one, torch.zeros_like(sigma))

    def snr(self, sigma: Tensor) -> Tensor:
        if isinstance(self.sampling, CONST):
            return ((1 - sigma) / sigma).square()
        return sigma.pow(-2)

    def tokens(self, shape: torch.Size) -> float:
        return prod(shape[-2:]) * (self.model.latent_format.spacial_downscale_ratio / _TOKEN) ** 2

    def _together(self, x_t: Tensor, sigma: Tensor, conditions: list[Conditions]) -> Tensor:
        joined = captions.join(conditions, self.captions, self.model, x_t.shape)
        conds = comfy.samplers.cond_cat(joined.conditions, device=x_t.device)
        options = self.options if joined.seen is None else {**self.options, OVERRIDE: joined.attention}
        with joined.filled(self.model.diffusion_model):
            return self.model.apply_model(x_t, sigma, transformer_options=options, **conds)
