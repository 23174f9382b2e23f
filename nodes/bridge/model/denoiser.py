"""Call a ComfyUI MODEL of any family as the training objective's Denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from math import prod
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_sampling import CONST, COSMOS_RFLOW, EDM, V_PREDICTION
from torch import Tensor

from ..host.wires import Conditioning, Model
from . import caption_padding
from .attention import OVERRIDE
from .caption_padding import Conditions, Joined
from .guests import Guests
from .names import family_of

_LEAST_SIGMA = 1e-3  # flow models are defined down to 0, where the output residual is 0 / 0

_TOKEN = 16  # pixels at the side of one


def prediction_type(model: Model) -> str:
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

    def __init__(self, patcher: Model):
        self.model = patcher.model
        self.device = patcher.load_device
        self.sampling: Any = patcher.get_model_object("model_sampling")
        self.guests = Guests(patcher)
        self.captions = family_of(patcher).captions

    def condition(self, conditioning: Conditioning, latent: Tensor, device: torch.device | None = None) -> Conditions:
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
        sigmas = self._sigmas.to(u.device)
        return sigmas[(u * len(sigmas)).long().clamp(max=len(sigmas) - 1)]

    @cached_property
    def _sigmas(self) -> Tensor:
        """The model's table of noise levels, read back from the device once."""
        return self.sampling.sigmas.cpu()

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.sampling.noise_scaling(sigma.view(-1, *(1 for _ in x0.shape[1:])), noise, x0, False)

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Conditions]) -> Tensor:
        """All that a forward needs is on the device before the first begins: later copies would wait for it."""
        groups = caption_padding.groups(conditions, self.captions, self.model, x_t.shape)
        parts = self._of_one_level(groups, sigma)
        calls = [
            self._call(_of(x_t, own), _of(sigma, own), [conditions[i] for i in own], level) for own, level in parts
        ]
        if len(calls) == 1:
            return calls[0]()
        rows = {i: row for (own, _), call in zip(parts, calls, strict=True) for i, row in zip(own, call(), strict=True)}
        return torch.stack([rows[index] for index in range(len(rows))])

    def output_scale(self, sigma: Tensor) -> Tensor:
        one = torch.ones_like(sigma)
        return self.sampling.calculate_denoised(sigma, one, torch.zeros_like(sigma))

    def snr(self, sigma: Tensor) -> Tensor:
        if isinstance(self.sampling, CONST):
            return ((1 - sigma) / sigma).square()
        return sigma.pow(-2)

    def tokens(self, shape: torch.Size) -> float:
        return prod(shape[-2:]) * (self.model.latent_format.spacial_downscale_ratio / _TOKEN) ** 2

    def _of_one_level(self, groups: Sequence[Sequence[int]], sigma: Tensor) -> list[tuple[Sequence[int], float | None]]:
        """The groups parted by sigma, with it; into single samples where tensors have no values; as they are, without
        it, where nothing looks at it."""
        if not self.guests.look_at_sigma:
            return [(group, None) for group in groups]
        if self.level is not None:
            return [([index], self.level) for group in groups for index in group]
        parts: dict[tuple[int, float], list[int]] = {}
        levels = sigma.tolist()
        for number, group in enumerate(groups):
            for index in group:
                parts.setdefault((number, levels[index]), []).append(index)
        return [(own, level) for (_, level), own in parts.items()]

    def _call(
        self, x_t: Tensor, sigma: Tensor, conditions: list[Conditions], level: float | None
    ) -> Callable[[], Tensor]:
        """A forward that is ready to begin."""
        if self.level is not None and level is not None:
            sigma = torch.tensor([level] * len(sigma), device=sigma.device)  # of known value, also without memory
        joined = caption_padding.join(conditions, self.captions, self.model, x_t.shape, x_t.device)
        conds = comfy.samplers.cond_cat(joined.conditions, device=x_t.device)
        if joined.seen is not None:
            conds["transformer_options"] = {OVERRIDE: joined.attention}
        conds = self.guests.told(sigma, conds, level, rehearsed=self.level is not None)
        return partial(self._forward, joined, x_t, sigma, conds)

    def _forward(self, joined: Joined, x_t: Tensor, sigma: Tensor, conds: dict[str, Any]) -> Tensor:
        with joined.filled(self.model.diffusion_model):
            return self.guests.call(self.model, x_t, sigma, conds)


def _of(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows, without a copy of their numbers to the device, as an index would be."""
    return tensor if list(rows) == list(range(len(tensor))) else torch.stack([tensor[row] for row in rows])
