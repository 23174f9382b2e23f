"""The encoder of Wuerstchen's prior makes the latents that the prior was trained on."""

from __future__ import annotations

import pytest
import torch
import torchvision
from comfy.ldm.cascade.stage_c_coder import EfficientNetEncoder
from harness.calls import relative_error
from harness.parity import shapes_of
from lora_loom.nodes.bridge.networks.wuerstchen_encoder import WuerstchenEncoder, config
from tiny import wuerstchen
from torch import Tensor, nn

MEAN, DEVIATION = (torch.tensor(each)[:, None, None] for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


class Published(nn.Module):
    """As those have it who train the prior, with pixels that torchvision normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.efficientnet_v2_s().features
        self.mapper = nn.Sequential(nn.Conv2d(1280, 16, kernel_size=1, bias=False), nn.BatchNorm2d(16))

    def forward(self, picture: Tensor) -> Tensor:
        return self.mapper(self.backbone((picture - MEAN) / DEVIATION))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return wuerstchen.encoder_weights()


def test_names_shapes_and_latents_are_those_of_the_published_encoder(weights: dict[str, Tensor]) -> None:
    theirs, ours = Published().eval(), WuerstchenEncoder().eval()
    for network in (theirs, ours):
        network.load_state_dict(weights)
    assert shapes_of(ours) == shapes_of(theirs) and len(shapes_of(ours)) == 786
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(picture)
        assert wanted.std() > 0.1 and relative_error(ours.encode(picture * 2 - 1), wanted) < 1e-5


def test_it_is_told_from_stable_cascades() -> None:
    assert config(shapes_of(WuerstchenEncoder(device="meta"))) == {"c_latent": 16}
    with torch.device("meta"):
        assert config(shapes_of(EfficientNetEncoder())) is None and config({}) is None


def test_it_says_that_it_cannot_decode() -> None:
    with pytest.raises(ValueError, match="the decoder of Wuerstchen makes a picture"):
        WuerstchenEncoder(device="meta").decode(torch.zeros(1, 16, 3, 3))
