"""Rows are what the low-rank path of a layer multiplies; layers that are given the same are known."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from lora_loom.nodes.bridge.quiet.inputs import Sharing, columns, rows, watched
from torch import nn

CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 9, 8)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1, stride=2), (2, 3, 9, 8)),
    "uneven": (nn.Conv2d(3, 4, (1, 5), padding=(0, 2), dilation=(1, 2)), (1, 3, 9, 12)),
    "same": (nn.Conv2d(3, 4, 4, padding="same"), (1, 3, 9, 8)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (1, 3, 9, 8)),
    "video": (nn.Conv3d(3, 4, (1, 2, 3), padding=(0, 1, 1)), (1, 3, 2, 6, 5)),
    "line": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 11)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_times_the_weight_are_the_convolution(name: str) -> None:
    module, shape = CONVOLUTIONS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = rows(module, x, 10_000, torch.Generator())
    wanted = rearrange(module(x).flatten(2) - module.bias[:, None], "n out places -> (n places) out")
    assert found.shape[1] == columns(module)
    torch.testing.assert_close(found @ module.weight.flatten(1).T, wanted, rtol=1e-4, atol=1e-5)


def test_at_most_so_many_are_drawn():
    x, draw = torch.arange(600.0).view(2, 100, 3), torch.Generator().manual_seed(0)
    found = rows(nn.Linear(3, 2), x.half(), 40, draw)
    assert found.shape == (40, 3) and found.dtype == torch.float32
    assert (found[:, 1] == found[:, 0] + 1).all() and len(found[:, 0].unique()) > 30
    assert rows(nn.Linear(3, 2), x, 200, draw).equal(x.view(200, 3))
    assert rows(nn.Conv2d(3, 2, 3), torch.randn(2, 3, 32, 32), 64, draw).shape == (64, 27)


def test_layers_with_one_input_are_found():
    """Copies of it count, as recomputed blocks make them; what is equal by chance or empty does not."""
    layers = {name: nn.Linear(4, 4) for name in ("q", "k", "late", "zero", "none", "uncalled")}
    layers |= {"conv": nn.Conv2d(4, 4, 1), "wide": nn.Conv2d(4, 4, 3), "third": nn.Conv2d(4, 4, 1)}
    sharing = Sharing()
    with watched(layers, sharing), torch.no_grad():
        for number in range(2):
            x = torch.randn(1, 5, 4)
            picture = torch.randn(1, 4, 5, 5)
            layers["q"](x), layers["k"](x.clone()), layers["late"](x if number else x + 1)
            layers["zero"](torch.zeros(1, 5, 4)), layers["none"](torch.zeros(1, 5, 4))
            layers["conv"](picture), layers["wide"](picture), layers["third"](picture)
    leaders = sharing.leaders()
    assert leaders == {"q": "q", "k": "q", "late": "late", "zero": "zero", "none": "none", "conv": "conv",
                       "wide": "wide", "third": "conv"}  # fmt: skip
    assert not any(module._forward_pre_hooks for module in layers.values())
