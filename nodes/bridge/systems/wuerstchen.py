"""The prior and the decoder of Wuerstchen v2 (arXiv 2306.00637) as ComfyUI's models, and how they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, cast

import comfy.conds
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_base import BaseModel, ModelType
from comfy.model_sampling import EPS, StableCascadeSampling
from comfy.supported_models_base import BASE
from torch import Tensor

from ..networks.wuerstchen_decoder import WuerstchenDecoder
from ..networks.wuerstchen_prior import WuerstchenPrior
from ..networks.wuerstchen_vqgan import SCALE
from .stage_config import StageConfig
from .titles import LOAD_TEXT, TO_CONDITIONING

PRIOR = "wuerstchen_prior"  # in CONDITIONING: (batch, channels, height, width), as the prior's latent
STEP = 64  # pixels: a latent's 16, which the decoder halves four times
PLACE = 42.67  # pixels of a side to each place of the prior's latent, what is left over being one, too

_SIZE, _SHIFT = 42.0, 1.0  # a latent of the encoder is what the prior works on, times this and less that
_CLIPS = {1280: "CLIP ViT-bigG, which is the prior's", 1024: "CLIP ViT-H, which is the decoder's"}


class PriorLatent(LatentFormat):
    """The latent of the prior's encoder, in units of the prior's noise."""

    latent_channels = 16
    spacial_downscale_ratio = 42

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent + _SHIFT) / _SIZE

    def process_out(self, latent: Tensor) -> Tensor:
        return latent * _SIZE - _SHIFT


class VqganLatent(LatentFormat):
    """The latent of the VQGAN, in units of the decoder's noise."""

    latent_channels = 4
    spacial_downscale_ratio = 4
    scale_factor = 1 / SCALE


class WuerstchenSampling(StableCascadeSampling, EPS):
    """The cosine schedule of Stable Cascade without its shift, that of diffusers' DDPMWuerstchenScheduler.

    Its noise is limited, so that all levels beyond 0.9936 are as noisy. Of those, ComfyUI's class tells the network the
    least, but Wuerstchen's pipelines begin with 1.
    """

    def timestep(self, sigma: Tensor) -> Tensor:
        level = super().timestep(sigma)
        return torch.where(sigma < self.sigma_max.to(sigma), level, torch.ones_like(level))


class Wuerstchen2Prior(StageConfig):
    """ComfyUI's configuration of the prior, for what `wuerstchen_prior.config` reads off a file."""

    latent_format = PriorLatent
    memory_usage_factor = 8.0  # 6144 numbers for each place of a latent, several times

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> BaseModel:
        return PriorModel(self, device=device)


class Wuerstchen2Decoder(StageConfig):
    """ComfyUI's configuration of the decoder, for what `wuerstchen_decoder.config` reads off a file."""

    latent_format = VqganLatent
    memory_usage_factor = 1.0

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> BaseModel:
        return DecoderModel(self, device=device)


class PriorModel(BaseModel):
    def __init__(self, model_config: BASE, device: Any = None) -> None:
        super().__init__(model_config, ModelType.STABLE_CASCADE, device, cast(Any, WuerstchenPrior))
        self.model_sampling = WuerstchenSampling(model_config)

    def extra_conds(self, **given: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Raises ValueError for text that was encoded with another encoder than the prior's."""
        return {"c_crossattn": _text(given, "the prior", self.model_config.unet_config["c_cond"])}


class DecoderModel(BaseModel):
    def __init__(self, model_config: BASE, device: Any = None) -> None:
        super().__init__(model_config, ModelType.STABLE_CASCADE, device, cast(Any, WuerstchenDecoder))
        self.model_sampling = WuerstchenSampling(model_config)

    def extra_conds(self, **given: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Raises ValueError for text that was encoded with another encoder than the decoder's, and without what the
        prior made."""
        config, prior = self.model_config.unet_config, given.get(PRIOR)
        if prior is None or prior.shape[1] != config["effnet_embd"]:
            raise ValueError(
                f"the decoder of Wuerstchen v2 draws from what its prior makes, a latent of {config['effnet_embd']} "
                f"channels, and this conditioning has none; connect it through {TO_CONDITIONING}"
            )
        return {
            "c_crossattn": _text(given, "the decoder", config["clip_embd"]),
            "effnet": comfy.conds.CONDRegular(prior),
        }


def empty(config: BASE, width: int, height: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a prior's and a decoder's latent for a picture. Raises ValueError for other sizes than it
    can draw."""
    if width % STEP or height % STEP:
        near = " x ".join(str(max(round(side / STEP), 1) * STEP) for side in (width, height))
        raise ValueError(
            f"Wuerstchen v2 draws pictures whose sides are multiples of {STEP}, but {width} x {height} is asked for; "
            f"take {near}"
        )
    prior = (PriorLatent.latent_channels, ceil(height / PLACE), ceil(width / PLACE))
    return prior, (VqganLatent.latent_channels, height // 4, width // 4)


def _text(given: Mapping[str, Any], stage: str, width: int) -> comfy.conds.CONDRegular:
    text = given.get("cross_attn")
    if text is None or text.shape[-1] != width:
        found = "none" if text is None else _told(text.shape[-1])
        raise ValueError(
            f"{stage} of Wuerstchen v2 reads text of {_told(width)}, but this is {found}; encode it with the CLIP of "
            f"{LOAD_TEXT}, loaded from the file that belongs to {stage}"
        )
    return comfy.conds.CONDRegular(text)


def _told(width: int) -> str:
    return _CLIPS.get(width, f"an encoder of {width} numbers")
