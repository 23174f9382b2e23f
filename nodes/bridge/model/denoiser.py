"""Call a ComfyUI MODEL of any family as the training objective's Denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_sampling import CONST, COSMOS_RFLOW, EDM, V_PREDICTION, X0
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ....lora_core.training.replayed import Ready
from ..host.wires import Conditioning, Model
from . import caption_padding
from .attention import OVERRIDE
from .caption_padding import Conditions, Joined
from .guests import Guests
from .names import family_of

_LEAST_SIGMA = 1e-3  # flow models are defined down to 0, where the output residual is 0 / 0

_TOKEN = 16  # pixels at the side of one
_PLAIN = (bool, int, float, str, type(None))


def prediction_type(model: Model) -> str:
    """ModelSpec's word for what the network predicts; diffusers' for a clean sample, which ModelSpec has none for."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, (CONST, COSMOS_RFLOW)):
        return "flow"
    if isinstance(sampling, X0):
        return "sample"
    return "v" if isinstance(sampling, V_PREDICTION) and not isinstance(sampling, EDM) else "epsilon"


@dataclass(frozen=True)
class Part:
    """Holds what one forward takes beside latents and noise levels: which `rows` of the batch go through it, at which
    `level` if anything looks at it, and their conditions as ComfyUI passes them."""

    rows: Sequence[int]
    level: float | None
    joined: Joined
    conds: dict[str, Any]


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

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
        """All that a forward needs is on the device before the first begins: later copies would wait for it. Instead of
        Conditions there may be Parts, which a `Ready` makes, and which have all of it."""
        ready = isinstance(conditions[0], Part)
        parts: list[Part] = conditions if ready else self._parts(x_t.shape, x_t.device, sigma, conditions)
        calls = [self._call(_of(x_t, part.rows), _of(sigma, part.rows), part) for part in parts]
        if len(calls) == 1:
            return calls[0]()
        rows = {
            i: row for part, call in zip(parts, calls, strict=True) for i, row in zip(part.rows, call(), strict=True)
        }
        return torch.stack([rows[index] for index in range(len(rows))])

    def ready(self, shape: torch.Size, conditions: list[Conditions]) -> Ready | None:
        """The conditions for latents of this shape on the device; None where a forward depends on more than their
        values and the kinds of them: guests act in it, or a part of the network that is trained reads captions."""
        if self.guests.look_at_sigma or self.captions == "adapter":
            return None
        parts = self._parts(shape, self.device, None, conditions)
        leaves, spec = tree_flatten([(part.joined.seen, part.joined.blank, part.conds) for part in parts])
        kinds = tuple("tensor" if torch.is_tensor(leaf) else (type(leaf), leaf) for leaf in leaves)
        if not all(self._is_there(leaf) if torch.is_tensor(leaf) else isinstance(leaf, _PLAIN) for leaf in leaves):
            return None
        kind = tuple((tuple(part.rows), part.joined.pictures) for part in parts), str(spec), kinds

        def rebuilt(tensors: Sequence[Tensor]) -> list[Part]:
            values = iter(tensors)
            whole = [next(values) if torch.is_tensor(leaf) else leaf for leaf in leaves]
            return [
                Part(part.rows, None, replace(part.joined, seen=seen, blank=blank, _masks={}), conds)
                for part, (seen, blank, conds) in zip(parts, tree_unflatten(whole, spec), strict=True)
            ]

        return Ready([leaf for leaf in leaves if torch.is_tensor(leaf)], kind, rebuilt)

    def output_scale(self, sigma: Tensor) -> Tensor:
        one = torch.ones_like(sigma)
        return self.sampling.calculate_denoised(sigma, one, torch.zeros_like(sigma))

    def snr(self, sigma: Tensor) -> Tensor:
        if isinstance(self.sampling, CONST):
            return ((1 - sigma) / sigma).square()
        return sigma.pow(-2)

    def tokens(self, shape: torch.Size) -> float:
        return prod(shape[-2:]) * (self.model.latent_format.spacial_downscale_ratio / _TOKEN) ** 2

    def _is_there(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type

    def _parts(
        self, shape: torch.Size, device: torch.device, sigma: Tensor | None, conditions: list[Conditions]
    ) -> list[Part]:
        groups = caption_padding.groups(conditions, self.captions, self.model, shape)
        return [
            self._part(own, level, [conditions[i] for i in own], torch.Size([len(own), *shape[1:]]), device)
            for own, level in self._of_one_level(groups, sigma)
        ]

    def _part(
        self, rows: Sequence[int], level: float | None, conditions: list[Conditions], shape: torch.Size,
        device: torch.device,
    ) -> Part:  # fmt: skip
        joined = caption_padding.join(conditions, self.captions, self.model, shape, device)
        return Part(rows, level, joined, comfy.samplers.cond_cat(joined.conditions, device=device))

    def _of_one_level(
        self, groups: Sequence[Sequence[int]], sigma: Tensor | None
    ) -> list[tuple[Sequence[int], float | None]]:
        """The groups parted by sigma, with it; into single samples where tensors have no values; as they are, without
        it, where nothing looks at it."""
        if sigma is None or not self.guests.look_at_sigma:
            return [(group, None) for group in groups]
        if self.level is not None:
            return [([index], self.level) for group in groups for index in group]
        parts: dict[tuple[int, float], list[int]] = {}
        levels = sigma.tolist()
        for number, group in enumerate(groups):
            for index in group:
                parts.setdefault((number, levels[index]), []).append(index)
        return [(own, level) for (_, level), own in parts.items()]

    def _call(self, x_t: Tensor, sigma: Tensor, part: Part) -> Callable[[], Tensor]:
        """A forward that is ready to begin."""
        level, joined, conds = part.level, part.joined, dict(part.conds)
        if self.level is not None and level is not None:
            sigma = torch.tensor([level] * len(sigma), device=sigma.device)  # of known value, also without memory
        if joined.seen is not None:
            conds["transformer_options"] = {OVERRIDE: joined.attention}
        conds = self.guests.arguments(sigma, conds, level, rehearsed=self.level is not None)
        return partial(self._forward, joined, x_t, sigma, conds)

    def _forward(self, joined: Joined, x_t: Tensor, sigma: Tensor, conds: dict[str, Any]) -> Tensor:
        with joined.filled(self.model.diffusion_model):
            return self.guests.call(self.model, x_t, sigma, conds)


def _of(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows, without a copy of their numbers to the device, as an index would be."""
    return tensor if list(rows) == list(range(len(tensor))) else torch.stack([tensor[row] for row in rows])
