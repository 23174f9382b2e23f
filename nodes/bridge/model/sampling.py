"""Pictures made as ComfyUI's KSampler makes them, also in the middle of a training session."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import numpy as np
import torch
from comfy.patcher_extension import WrappersMP
from PIL import Image
from torch import Tensor, nn

from ....lora_core.stored import stored
from ....lora_core.swap import swapped
from ..host.device import release
from ..host.node_outputs import as_picture
from ..host.wires import Conditioning, Model, Vae
from .encoding import compression
from .fused_layers import heed_hooks, insisted
from .recast import cast_as_in_sampling

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
_KEY = "lora_loom"


@stored("width height steps cfg sampler scheduler seed", tag="Sampling")
@dataclass(frozen=True)
class Sampling:
    """Holds what a KSampler and an empty latent are set to; width and height in pixels."""

    width: int
    height: int
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0


def check_size(vae: Vae, width: int, height: int) -> None:
    """Raises ValueError when a picture of that size has no latent."""
    factor = max(compression(vae), 8)
    if width % factor or height % factor:
        raise ValueError(f"the size {width} x {height} is not a multiple of {factor}, which this VAE compresses by")


def empty_latent(patcher: Model, wanted: Sampling) -> Tensor:
    """That of a KSampler, (1, channels, ...) as the model has it."""
    empty = torch.zeros(1, 4, wanted.height // 8, wanted.width // 8)
    return comfy.sample.fix_empty_latent_channels(patcher, empty, 8)


def latents(
    patcher: Model, positive: Conditioning, negative: Conditioning, wanted: Sampling, seed: int | None = None
) -> Tensor:
    """Return what KSampler makes of an empty latent, (1, channels, ...). Raises the interrupt of a user who cancels."""
    seed = wanted.seed if seed is None else seed
    empty = empty_latent(patcher, wanted)
    return comfy.sample.sample(
        patcher, comfy.sample.prepare_noise(empty, seed), wanted.steps, wanted.cfg, wanted.sampler, wanted.scheduler,
        positive, negative, empty, callback=_look_for_cancel, disable_pbar=True, seed=seed,
    )  # fmt: skip


def _look_for_cancel(*_: Any) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


@torch.inference_mode()
def decoded(vae: Vae, latent: Tensor) -> Image.Image:
    """Return the picture of a latent (1, channels, ...); the first one of a clip."""
    pixels = vae.decode(latent)
    return as_picture(pixels.reshape(-1, *pixels.shape[-3:]))


@contextmanager
def sampling_inside(patcher: Model, text: nn.Module | None = None) -> Iterator[None]:
    """Inside, the model of a training session answers as ComfyUI samples it: without gradients, in the type it computes
    in otherwise, with the kernels of its layers. Its weights, and those of `text`, stay where the session has put them,
    whatever else is loaded; random numbers drawn inside are as if they had not been.
    """
    heed_hooks()
    base_model = patcher.model
    dtype = patcher.object_patches_backup.get("manual_cast_dtype", base_model.manual_cast_dtype)
    as_sampled = swapped([(base_model, "manual_cast_dtype", dtype), (comfy.model_management, "in_training", False)])
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, _where_it_is)
    try:
        with as_sampled, torch.no_grad(), _randomness_kept(patcher.load_device), _held((base_model, text)):
            with insisted(base_model), cast_as_in_sampling(base_model):
                yield
    finally:
        patcher.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, _KEY)
        patcher.pre_run()  # sampling has cleaned up after itself, and with it the session's state


def _where_it_is(execute: Any, model: Model, noise_shape: Any, conds: Any, **_: Any) -> tuple[nn.Module, Any, list]:
    """In the place of ComfyUI's loading before sampling: only room is made."""
    memory, _ = comfy.sampler_helpers.estimate_memory(model, noise_shape, conds)
    memory += comfy.model_management.extra_reserved_memory()
    if not comfy.model_management.is_device_cpu(model.load_device):
        comfy.model_management.free_memory(memory, model.load_device)
    return model.model, conds, []


@contextmanager
def _held(models: Sequence[nn.Module | None]) -> Iterator[None]:
    """ComfyUI does not see these loaded models, so it neither moves nor counts them when it loads others."""
    listed = comfy.model_management.current_loaded_models
    held = [loaded for loaded in listed if loaded.model is not None and loaded.model.model in models]
    listed[:] = [loaded for loaded in listed if loaded not in held]
    try:
        yield
    finally:
        listed[:0] = held


def drop(vae: Vae) -> None:
    """Take a VAE off the device: the memory beside a training session is the session's."""
    with torch.inference_mode():
        release(vae.patcher)


@contextmanager
def _randomness_kept(device: torch.device) -> Iterator[None]:
    """The global generators of torch, on the CPU and the device, of numpy and of Python."""
    python, arrays = random.getstate(), np.random.get_state()
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    own = device.type in ("cuda", "xpu")
    try:
        with torch.random.fork_rng([device] if own else [], device_type=device.type if own else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        if mps is not None:
            torch.mps.set_rng_state(mps)
