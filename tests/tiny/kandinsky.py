"""Kandinsky 2.2 in small: the keywords of our networks, and seeded weights in the names of the published files.

All three fit together: the prior makes embeddings of `EMBED` numbers, and the decoder latents of the VAE's 4 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ops
import torch
from lora_loom.nodes.bridge.networks.kandinsky_decoder import KandinskyDecoder
from lora_loom.nodes.bridge.networks.kandinsky_prior import KandinskyPrior
from lora_loom.nodes.bridge.networks.movq import MoVQ
from torch import Tensor

from .weights import seeded

EMBED = 64
PRIOR = {"width": 128, "depth": 2, "embed": EMBED, "words": 77}
DECODER = {"channels": (64, 64, 128), "layers": 2, "context": 32, "embed": EMBED, "tokens": 4}
MOVQ = {"channels": (32, 32, 64, 64), "layers": 1, "latent": 4, "codes": 16}  # 8 pixels to a latent's, as in the file


def prior_weights(sizes: Mapping[str, Any] = PRIOR) -> dict[str, Tensor]:
    """Weights of a `KandinskyPrior` of those sizes; its tokens' places and its statistics are told apart."""
    weights = _seeded(KandinskyPrior, sizes)
    generator = torch.Generator().manual_seed(1)
    for name in ("positional_embedding", "prd_embedding", "clip_mean"):
        weights[name] = torch.randn(weights[name].shape, generator=generator) * 0.2
    weights["clip_std"] = torch.rand(weights["clip_std"].shape, generator=generator) + 0.5
    return weights


def decoder_weights(sizes: Mapping[str, Any] = DECODER) -> dict[str, Tensor]:
    return _seeded(KandinskyDecoder, sizes)


def movq_weights(sizes: Mapping[str, Any] = MOVQ) -> dict[str, Tensor]:
    return _seeded(MoVQ, sizes)


def _seeded(network: Any, sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    return seeded(network(**sizes, operations=comfy.ops.disable_weight_init, device="meta").state_dict())
