"""ComfyUI's stage C encoder, with that of Wuerstchen in it, makes the latents that Wuerstchen's does."""

from __future__ import annotations

import comfy.sd
import pytest
import torch
import torchvision
from comfy.ldm.cascade.stage_c_coder import EfficientNetEncoder
from harness.calls import relative_error
from harness.networks import shapes
from lora_loom.nodes.bridge.networks.wuerstchen_encoder import cascade_encoder, config
from tiny import wuerstchen
from torch import Tensor, nn

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return wuerstchen.encoder_weights()


@pytest.fixture(scope="module")
def latent_of(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A picture (1, 64, 96, 3) from 0 to 1, and its latent by the encoder that Wuerstchen was trained with."""
    network = nn.Module()
    network.backbone = torchvision.models.efficientnet_v2_s().features
    network.mapper = nn.Sequential(nn.Conv2d(1280, 16, kernel_size=1, bias=False), nn.BatchNorm2d(16))
    network.load_state_dict(weights)
    network.eval()
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        normal = ((picture - MEAN) / DEVIATION).movedim(-1, 1)
        return picture, network.mapper(network.backbone(normal))


def test_comfyuis_vae_encodes_as_it_does(weights: dict[str, Tensor], latent_of: tuple[Tensor, Tensor]) -> None:
    picture, wanted = latent_of
    vae = comfy.sd.VAE(sd=cascade_encoder(weights))
    assert wanted.std() > 0.1 and relative_error(vae.encode(picture), wanted) < 1e-4


def test_comfyui_alone_would_leave_out_the_last_scale_and_shift(weights, latent_of: tuple[Tensor, Tensor]) -> None:
    picture, wanted = latent_of
    assert relative_error(comfy.sd.VAE(sd=weights).encode(picture), wanted) > 0.1


def test_the_encoder_of_stable_cascade_stays_and_is_not_taken_for_it(weights: dict[str, Tensor]) -> None:
    cascade = EfficientNetEncoder(c_latent=16).state_dict()
    assert cascade_encoder(cascade) == cascade
    assert config(shapes(cascade)) is None and config({}) is None
    assert config(shapes(cascade_encoder(weights))) is None and config(shapes(weights)) == {"c_latent": 16}
