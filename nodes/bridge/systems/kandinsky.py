"""The prior and the decoder of Kandinsky 2.2 (arXiv 2310.03502) as ComfyUI's models, and how they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import comfy.conds
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_base import BaseModel, ModelType
from comfy.model_sampling import X0, ModelSamplingDiscrete
from comfy.supported_models_base import BASE
from torch import Tensor

from ..networks.kandinsky_decoder import KandinskyDecoder
from ..networks.kandinsky_prior import KandinskyPrior
from .stage_config import StageConfig
from .titles import LOAD_TEXT, TO_CONDITIONING

IMAGE_EMBEDDING = "kandinsky_image_embedding"  # in CONDITIONING: (batch, width, 1, 1), as the prior's latent
CLIP_WIDTHS = {768: "CLIP ViT-L", 1024: "CLIP ViT-H", 1280: "CLIP ViT-bigG"}  # numbers in an image embedding
STEP = 64  # pixels: a latent's 8, which the decoder halves three times
REACH = 10.0  # of a clean embedding, in units of the noise: its scheduler clips it there, after guidance

_BETAS, _OFFSET, _MOST = 1000, 0.008, 0.999  # of the cosine schedule, as UnCLIPScheduler has them


class ImageEmbedding(LatentFormat):
    """A CLIP image embedding as a latent of one pixel; `mean` and `std` (1, width, 1, 1) are of the prior's file."""

    latent_channels = 1280
    spacial_downscale_ratio = 64
    mean: Tensor = torch.zeros(())
    std: Tensor = torch.ones(())

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        return latent * self.std.to(latent) + self.mean.to(latent)


class MovqLatent(LatentFormat):
    """The latent of MoVQ, which the decoder takes as it is."""

    latent_channels = 4


class UnclipSampling(ModelSamplingDiscrete, X0):
    """A network that predicts the clean sample on the capped cosine schedule of unCLIP.

    ComfyUI has the schedule, too, but its ModelSamplingDiscrete fails with it: it is an array, not a tensor.
    """

    def _register_schedule(self, *_: Any, **__: Any) -> None:
        times = torch.arange(_BETAS + 1, dtype=torch.float64) / _BETAS
        kept = torch.cos((times + _OFFSET) / (1 + _OFFSET) * torch.pi / 2) ** 2
        super()._register_schedule(given_betas=(1 - kept[1:] / kept[:-1]).clamp(max=_MOST).float())


class Kandinsky22Prior(StageConfig):
    """ComfyUI's configuration of the prior, for what `kandinsky_prior.config` reads off a file."""

    latent_format = ImageEmbedding
    memory_usage_factor = 500.0  # of a latent of one pixel: 81 tokens go through the network

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> BaseModel:
        return PriorModel(self, device=device)


class Kandinsky22Decoder(StageConfig):
    """ComfyUI's configuration of the decoder, for what `kandinsky_decoder.config` reads off a file."""

    latent_format = MovqLatent
    sampling_settings: Mapping[str, Any] = {  # ComfyUI's name for betas that grow linearly
        "beta_schedule": "sqrt_linear", "linear_start": 0.00085, "linear_end": 0.012,
    }  # fmt: skip

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> BaseModel:
        return DecoderModel(self, device=device)


class PriorModel(BaseModel):
    def __init__(self, model_config: BASE, device: Any = None) -> None:
        super().__init__(model_config, ModelType.EPS, device, cast(Any, KandinskyPrior))
        self.model_sampling = UnclipSampling(model_config)
        self.latent_format.latent_channels = model_config.unet_config["embed"]

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", assign: bool = False) -> BaseModel:
        mean, std = (sd[f"{unet_prefix}clip_{name}"].float()[..., None, None] for name in ("mean", "std"))
        self.latent_format.mean, self.latent_format.std = mean.clone(), std.clone()
        return super().load_model_weights(sd, unet_prefix, assign)

    def extra_conds(self, **given: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Raises ValueError for text that is not encoded as the prior was trained with it."""
        config, text = self.model_config.unet_config, given.get("cross_attn")
        pooled, mask = given.get("pooled_output"), given.get("attention_mask")
        if text is None or pooled is None or mask is None:
            raise ValueError(
                "the prior of Kandinsky 2.2 reads text as CLIP ViT-bigG gives it after its last norm, with a mask, and "
                f"this text was encoded for another model; encode it with the CLIP of {LOAD_TEXT}"
            )
        for width in (text.shape[-1], pooled.shape[-1]):
            if width != config["embed"]:
                raise ValueError(
                    f"the prior of Kandinsky 2.2 reads {_told(config['embed'])}, but this text was encoded with "
                    f"{_told(width)}; choose the encoder of the prior in {LOAD_TEXT}"
                )
        conds = {"c_crossattn": text, "y": pooled, "attention_mask": mask}
        return {name: comfy.conds.CONDRegular(value) for name, value in conds.items()}


class DecoderModel(BaseModel):
    def __init__(self, model_config: BASE, device: Any = None) -> None:
        super().__init__(model_config, ModelType.EPS, device, cast(Any, KandinskyDecoder))

    def extra_conds(self, **given: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Raises ValueError when there is no image embedding, or one of another width."""
        embedding, width = image_embedding(given), self.model_config.unet_config["embed"]
        if embedding is None:
            raise ValueError(
                "the decoder of Kandinsky 2.2 draws from an image embedding, and this conditioning has none; connect "
                f"what the prior of Kandinsky 2.2 makes, through {TO_CONDITIONING}"
            )
        if embedding.shape[-1] != width:
            raise ValueError(
                f"the decoder of Kandinsky 2.2 draws from image embeddings of {_told(width)}, but this one is "
                f"of {_told(embedding.shape[-1])}; connect what the prior of Kandinsky 2.2 makes"
            )
        return {"y": comfy.conds.CONDRegular(embedding)}


def empty(config: BASE, width: int, height: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a prior's and a decoder's latent for a picture. Raises ValueError for other sizes than it
    can draw."""
    if width % STEP or height % STEP:
        near = " x ".join(str(max(round(side / STEP), 1) * STEP) for side in (width, height))
        raise ValueError(
            f"Kandinsky 2.2 draws pictures whose sides are multiples of {STEP}, but {width} x {height} is asked for; "
            f"take {near}"
        )
    return (config.unet_config["embed"], 1, 1), (MovqLatent.latent_channels, height // 8, width // 8)


def image_embedding(given: Mapping[str, Any]) -> Tensor | None:
    """Return the image embedding (batch, width) that CONDITIONING holds, or the sum of those that ComfyUI's
    unCLIPConditioning put there, times their strengths; None without any."""
    if (embedding := given.get(IMAGE_EMBEDDING)) is not None:
        return embedding.flatten(1)
    if seen := given.get("unclip_conditioning"):
        return torch.stack([each["clip_vision_output"].image_embeds * each["strength"] for each in seen]).sum(0)
    return None


def _told(width: int) -> str:
    return f"{CLIP_WIDTHS.get(width, 'another model')} ({width} numbers)"
