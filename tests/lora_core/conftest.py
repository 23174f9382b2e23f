"""Tests of lora_core run without ComfyUI, but for those that its own code judges."""

from __future__ import annotations

import os

import pytest
import torch
from harness.inprocess import load_comfyui

torch.set_num_threads(1)  # with several, tensors as small as these take longer


@pytest.fixture(scope="session")
def comfyui() -> None:
    """`import comfy` works from here on. Continuous integration must have one."""
    try:
        load_comfyui()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
