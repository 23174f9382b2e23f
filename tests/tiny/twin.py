"""The same network in diffusers: its own class with a tiny ComfyUI model's weights, and the same input for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Arguments of one forward pass as the raw network takes them."""

    x: Tensor
    time: Tensor
    context: Tensor
    pooled: Tensor | None
    guidance: Tensor

    @classmethod
    def random(cls, channels: int, time: list[float], context: int, pooled: int = 0, seed: int = 0) -> Call:
        g, batch = torch.Generator().manual_seed(seed), len(time)
        x, text = torch.randn(batch, channels, 16, 8, generator=g), torch.randn(batch, 10, context, generator=g)
        vector = torch.randn(batch, pooled, generator=g) if pooled else None
        return cls(x, torch.tensor(time), text, vector, torch.full((batch,), 3.5))


@torch.inference_mode()
def comfy_output(model: Any, call: Call) -> Tensor:
    """The raw network of a MODEL with its patches applied."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    network = model.model.diffusion_model
    return network(call.x, call.time, context=call.context, y=call.pooled, guidance=call.guidance)


class UNet:
    """SD 1.5 at a tenth of its width (`sd15_full`)."""

    call = Call.random(4, [500.0, 20.0], 768)

    def __init__(self, model: Any) -> None:
        self.network = UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64, 128, 128), cross_attention_dim=768, attention_head_dim=8
        ).requires_grad_(False)
        weights = _weights(model)
        names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        self.network.load_state_dict({name: weights[key] for name, key in names.items() if key in weights})

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.network(self.call.x, self.call.time, self.call.context).sample


class Flux:
    """FLUX.1, dev or schnell."""

    call = Call.random(16, [0.5, 0.02], 64, 64)

    def __init__(self, model: Any) -> None:
        config = model.model.model_config.unet_config
        self.network = FluxTransformer2DModel(
            num_layers=config["depth"], num_single_layers=config["depth_single_blocks"], num_attention_heads=1,
            joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=config["guidance_embed"],
        ).requires_grad_(False)  # fmt: skip
        weights = dict(_flux_weights(config, _weights(model)))
        self.network.load_state_dict({name: weights[name] for name in self.network.state_dict()})

    @torch.no_grad()
    def __call__(self) -> Tensor:
        call = self.call
        rows, columns = (side // 2 for side in call.x.shape[2:])
        packed = rearrange(call.x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
        text_places = torch.zeros(call.context.shape[1], 3)
        guidance = call.guidance if self.network.config.guidance_embeds else None
        out = self.network(packed, call.context, call.pooled, call.time, places, text_places, guidance).sample
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=2, q=2)


def _weights(model: Any) -> dict[str, Tensor]:
    """Of the MODEL as it is; until it is loaded, its network may still have a clone's patches on."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return model.model.diffusion_model.state_dict()


def _flux_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, target in comfy.utils.flux_to_diffusers(config).items():
        key, rows, change = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
        key = key if key in weights else f"{key.removesuffix('.weight')}.scale"  # norms
        if key in weights:
            part = weights[key] if rows is None else weights[key].narrow(*rows)
            yield name, change(part) if change else part


TWINS: dict[str, type[UNet] | type[Flux]] = {"sd15_full": UNet, "flux1": Flux, "flux1_schnell": Flux}
