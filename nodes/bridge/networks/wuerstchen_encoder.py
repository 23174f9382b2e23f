"""The encoder of Wuerstchen v2's prior: EfficientNetV2-s and a projection, from 32 x 32 pixels to one of a latent."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.cascade.stage_c_coder import EfficientNetEncoder
from torch import Tensor, nn

from .parts import Shapes

_SCALE = "mapper.1.weight"  # of the norm at the end


class WuerstchenEncoder(EfficientNetEncoder):
    """Encodes pictures as the prior's latents. Its weights have the names of `effnet_state_dict` in the published
    model_v2_stage_b.pt, which are those of OneTrainer's effnet_encoder, too.

    It is Stable Cascade's stage C encoder, but the norm at its end has a scale and a shift for each of `c_latent`
    channels, which ComfyUI would leave out. ComfyUI's `operations` are not used: the backbone has none.
    """

    def __init__(
        self,
        *,
        c_latent: int = 16,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **_: Any,
    ) -> None:
        with torch.device(device or "cpu"):
            super().__init__(c_latent)
            self.mapper[1] = nn.BatchNorm2d(c_latent)
        for name in ("mean", "std"):  # of the pixels, which are no part of the file
            colours = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, colours, persistent=False)
        self.to(dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (batch, c_latent, height / 32, width / 32) of pictures (batch, 3, ...) from -1 to 1."""
        return self(x)

    def decode(self, x: Tensor) -> Tensor:
        """Raises ValueError: there is no way back but the decoder of Wuerstchen."""
        raise ValueError(
            "the encoder of Wuerstchen's prior cannot decode; the decoder of Wuerstchen makes a picture of its latent"
        )


def config(shapes: Shapes) -> dict[str, int] | None:
    """Return the keywords of WuerstchenEncoder for weights of these shapes by name; None if they are another network's,
    such as Stable Cascade's encoder, whose last norm has no weights."""
    if "backbone.7.0.weight" not in shapes or _SCALE not in shapes:
        return None
    return {"c_latent": shapes[_SCALE][0]}
