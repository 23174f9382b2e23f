"""Call a ComfyUI MODEL of any family as the training objective's Denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_sampling import CONST, COSMOS_RFLOW, EDM, V_PREDICTION
from torch import Tensor

from . import captions
from .attention import OVERRIDE
from .captions import Conditions
from .guests import Guests
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
    """Satisfies `lora_core.training.objective.Denoiser` for the model inside a loaded ModelPatcher.

    What other nodes have put on the MODEL finds what a sampler gives it. As that looks at one noise level, samples of
    several go through the model one after the other when there is any. `level` is the sigma of all samples where
    tensors have no values.
    """

    level: float | None = None

    def __init__(self, patcher):
        self.model = patcher.model
        self.device = patcher.load_device
        self.sampling = patcher.get_model_object("model_sampling")
        self.guests = Guests(patcher)
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
        parts = [part for group in groups for part in self._of_one_level(group, sigma)]
        done = [self._together(x_t[own], sigma[own], [conditions[i] for i in own], level) for own, level in parts]
        order = torch.tensor([index for own, _ in parts for index in own]).argsort()
        return torch.cat(done)[order.to(x_t.device)]

    def output_scale(self, sigma: Tensor) -> Tensor:
        one = torch.ones_like(sigma)
        return self.sampling.calculate_denoised(sigma, one, torch.zeros_like(sigma))

    def snr(self, sigma: Tensor) -> Tensor:
        if isinstance(self.sampling, CONST):
            return ((1 - sigma) / sigma).square()
        return sigma.pow(-2)

    def tokens(self, shape: torch.Size) -> float:
        return prod(shape[-2:]) * (self.model.latent_format.spacial_downscale_ratio / _TOKEN) ** 2

    def _of_one_level(self, group: Sequence[int], sigma: Tensor) -> list[tuple[list[int], float | None]]:
        """The indices parted by sigma, with it; each alone where tensors have no values; all together, without it,
        where nothing looks at it."""
        if not self.guests.look_at_sigma:
            return [(list(group), None)]
        if self.level is not None:
            return [([index], self.level) for index in group]
        parts: dict[float, list[int]] = {}
        for index, level in zip(group, sigma[group].tolist(), strict=True):
            parts.setdefault(level, []).append(index)
        return [(own, level) for level, own in parts.items()]

    def _together(self, x_t: Tensor, sigma: Tensor, conditions: list[Conditions], level: float | None) -> Tensor:
        if level is not None:
            sigma = torch.tensor([level] * len(sigma), device=sigma.device)  # of known value, also without memory
        joined = captions.join(conditions, self.captions, self.model, x_t.shape, x_t.device)
        conds = comfy.samplers.cond_cat(joined.conditions, device=x_t.device)
        if joined.seen is not None:
            conds["transformer_options"] = {OVERRIDE: joined.attention}
        with joined.filled(self.model.diffusion_model):
            return self.guests.call(self.model, x_t, sigma, conds, level, rehearsed=self.level is not None)
