"""Pictures in ComfyUI's form."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_image_batch(picture: Image.Image) -> Tensor:
    """IMAGE (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]
