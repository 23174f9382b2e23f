"""Wuerstchen v2 as small as it gets: configurations, and seeded weights under the names of the published files."""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch
from lora_loom.nodes.bridge.networks.wuerstchen_decoder import WuerstchenDecoder
from lora_loom.nodes.bridge.networks.wuerstchen_encoder import WuerstchenEncoder
from lora_loom.nodes.bridge.networks.wuerstchen_prior import WuerstchenPrior
from lora_loom.nodes.bridge.networks.wuerstchen_vqgan import WuerstchenVqgan
from torch import Tensor, nn

from .weights import seeded

PRIOR = {"c_in": 16, "c": 128, "c_cond": 64, "c_r": 32, "depth": 2}
DECODER = {
    "c_in": 4, "c_out": 4, "c_r": 32, "c_cond": 64, "c_hidden": [32, 64, 128], "blocks": [1, 2, 1],
    "level_config": ["CT", "CTA", "CTA"], "inject_effnet": [False, True, True],
    "effnet_embd": 16, "clip_embd": 64, "kernel_size": 3,
}  # fmt: skip
VQGAN = {"levels": 2, "bottleneck_blocks": 2, "c_hidden": 32, "c_latent": 4, "codebook_size": 8}


def prior_weights(seed: int = 0) -> dict[str, Tensor]:
    """WuerstchenPrior's, fp32, of the configuration PRIOR. What it divides by stays away from zero."""
    weights = seeded(_network(WuerstchenPrior, PRIOR).state_dict(), seed)
    weights["out.1.weight"][PRIOR["c_in"] :] *= 0.1
    return weights


def decoder_weights(seed: int = 0) -> dict[str, Tensor]:
    """WuerstchenDiffNeXt's, fp32, of the configuration DECODER."""
    return seeded(_network(WuerstchenDecoder, DECODER).state_dict(), seed)


def vqgan_weights(seed: int = 0) -> dict[str, Tensor]:
    """PaellaVQModel's, fp32, of the configuration VQGAN."""
    return seeded(_network(WuerstchenVqgan, VQGAN).state_dict(), seed)


def encoder_weights(seed: int = 0) -> dict[str, Tensor]:
    """The encoder's of the prior, fp32, at its real size: 20 million weights that tell pictures apart.

    The norm at its end scales, turns over and shifts.
    """
    weights = seeded(_network(WuerstchenEncoder, {}).state_dict(), seed, gain=1.2)
    centred = {name: value.zero_() for name, value in weights.items() if name.endswith("running_mean")}
    generator = torch.Generator().manual_seed(seed)
    last = {
        "mapper.1.running_var": torch.full((16,), 0.002),
        "mapper.1.weight": torch.randn(16, generator=generator),
        "mapper.1.bias": torch.randn(16, generator=generator) * 0.1,
    }
    return weights | centred | last


def _network(network: type[nn.Module], config: dict[str, Any]) -> nn.Module:
    return network(**config, device="meta", operations=comfy.ops.disable_weight_init)
