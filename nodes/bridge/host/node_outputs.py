"""Pictures in ComfyUI's form."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_image_batch(picture: Image.Image) -> Tensor:
    """IMAGE (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def as_picture(images: Tensor) -> Image.Image:
    """The first picture of an IMAGE (n, height, width, 3 or 4) in 0..1."""
    return Image.fromarray((images[0].cpu().float().clamp(0, 1) * 255).round().byte().numpy())


def as_one_batch(picture: Image.Image | None) -> Tensor:
    """The same, and 64 dark pixels square where there is no picture."""
    return as_image_batch(picture or Image.new("RGB", (64, 64)))
