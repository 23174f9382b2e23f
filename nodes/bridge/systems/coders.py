"""VAEs of Kandinsky 2.2 and Wuerstchen v2 that ComfyUI does not read, and a CLIP vision model that serves as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor, nn

from ..host.wires import Model, Vae
from ..networks import movq, wuerstchen_encoder, wuerstchen_vqgan
from ..networks.parts import Shapes
from .files import refused
from .loading import weights_in
from .stages import shapes_of

_WANTED = "a VAE of Kandinsky 2.2 or Wuerstchen v2"
_DECODER, _ENCODER = "effnet_mappers.", "effnet_state_dict"  # signs of model_v2_stage_b.pt


@dataclass(frozen=True)
class Coder:
    """`factor` is how many pixels of a side one place of a latent stands for. `encode` and `decode` are how many
    numbers the network holds at once for each pixel, of what it reads and of what it makes."""

    name: str
    network: Callable[..., nn.Module]
    detect: Callable[[Shapes], dict[str, Any] | None]
    channels: int
    factor: int
    encode: float
    decode: float


CODERS = (
    Coder("MoVQ of Kandinsky 2.2", movq.MoVQ, movq.config, channels=4, factor=8, encode=1767, decode=2178),
    Coder(
        "the VQGAN of Wuerstchen v2", wuerstchen_vqgan.WuerstchenVqgan, wuerstchen_vqgan.config, channels=4, factor=4,
        encode=600, decode=600,
    ),
    Coder(
        "the encoder of Wuerstchen v2's prior", wuerstchen_encoder.WuerstchenEncoder, wuerstchen_encoder.config,
        channels=16, factor=32, encode=50, decode=1,
    ),
)  # fmt: skip


def load_vae(name: str) -> Vae:
    """Load a VAE of that name in vae. Raises ValueError for another file, saying what it is."""
    return _vae(folder_paths.get_full_path_or_raise("vae", name))


def _vae(path: str) -> Vae:
    weights = _weights(path)
    shapes = shapes_of(weights)
    for coder in CODERS:
        if (config := coder.detect(shapes)) is not None:
            vae = _fitted(coder, config, weights)
            vae.patcher.cached_patcher_init = (_patcher, (path,))
            return vae
    raise refused(path, weights, _WANTED)


def _weights(path: str) -> dict[str, Tensor]:
    """Wuerstchen's encoder is published beside the decoder, in a file of which ComfyUI reads the decoder alone."""
    weights = weights_in(path)
    if path.lower().endswith(".safetensors") or not any(name.startswith(_DECODER) for name in weights):
        return weights
    return torch.load(path, map_location="cpu", weights_only=True).get(_ENCODER, weights)


def _patcher(path: str, disable_dynamic: bool = False) -> Model:
    return _vae(path).patcher


def _fitted(coder: Coder, config: dict[str, Any], weights: dict[str, Tensor]) -> Vae:
    """Give ComfyUI's VAE of the pixel space, the one without weights, this network and what follows from it."""
    vae: Any = Vae(sd={"pixel_space_vae": torch.ones(())})
    management, size = comfy.model_management, comfy.model_management.dtype_size
    vae.latent_channels, vae.disable_offload, vae.size = coder.channels, False, None
    vae.downscale_ratio = vae.upscale_ratio = coder.factor
    vae.memory_used_encode = lambda shape, dtype: coder.encode * shape[2] * shape[3] * size(dtype)
    vae.memory_used_decode = lambda shape, dtype: coder.decode * shape[2] * shape[3] * coder.factor**2 * size(dtype)
    vae.vae_dtype = management.vae_dtype(vae.device, vae.working_dtypes)
    network = coder.network(dtype=vae.vae_dtype, operations=comfy.ops.disable_weight_init, **config).eval()
    management.archive_model_dtypes(network)
    vae.first_stage_model = network.requires_grad_(False)
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        network, load_device=vae.device, offload_device=management.vae_offload_device()
    )
    network.load_state_dict(weights, assign=vae.patcher.is_dynamic())
    vae.model_size()
    return vae


class ClipVisionVae:
    """A CLIP vision model where a VAE is wanted: a picture's latent is its image embedding, (batch, width, 1, 1)."""

    latent_dim = 2

    def __init__(self, clip_vision: ClipVisionModel) -> None:
        self.clip_vision = clip_vision
        self.first_stage_model, self.patcher = clip_vision.model, clip_vision.patcher
        self.vae_dtype, self.device = clip_vision.dtype, clip_vision.load_device
        self.latent_channels = int(clip_vision.config.get("projection_dim", 0))

    def spacial_compression_encode(self) -> int:
        """Return 1: a picture of any size has an embedding."""
        return 1

    spacial_compression_decode = spacial_compression_encode

    def encode(self, pixels: Tensor) -> Tensor:
        """Take (batch, height, width, 3) in 0..1, of which CLIP sees the square in the middle."""
        seen: Any = self.clip_vision.encode_image(pixels[..., :3])
        return seen.image_embeds[..., None, None]

    def decode(self, *_: Any, **__: Any) -> Tensor:
        raise ValueError(
            "an image embedding cannot be decoded by CLIP vision; the decoder of Kandinsky 2.2 makes a picture of it"
        )

    def memory_used_decode(self, *_: Any) -> int:
        return 0


@torch.inference_mode()
def grey_embedding(clip_vision: ClipVisionModel) -> Tensor:
    """Return the embedding (1, width, 1, 1) of a picture of CLIP's mean colour, all zero as the network sees it: what
    diffusers' pipeline guides away from without a negative prompt."""
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    side = clip_vision.image_size
    blank = torch.zeros(1, 3, side, side, device=clip_vision.load_device)
    seen = clip_vision.model(pixel_values=blank, intermediate_output=-2)[2]
    return seen.to(comfy.model_management.intermediate_device())[..., None, None]
