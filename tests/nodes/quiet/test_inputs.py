"""Layers that are given the same are known."""

from __future__ import annotations

import torch
from lora_loom.nodes.bridge.quiet.inputs import Sharing, watched
from torch import nn

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
