"""Answers what ComfyUI asks of the configuration of every model, for the stages of these systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.supported_models_base import BASE


class StageConfig(BASE):
    """Names no further settings of its network, which is never an inpainting one."""

    unet_extra_config: Mapping[str, Any] = {}

    def inpaint_model(self) -> bool:
        return False
