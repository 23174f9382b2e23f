"""Layers that no gradient reaches are told after the first step that moves anything."""

from __future__ import annotations

import torch
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.unmoved import Unmoved
from torch import nn
from torch.nn import functional


def factors(**options: float) -> tuple[Factors, nn.ModuleDict]:
    """Three layers, of which `idle` is not called and of `last` nothing is used."""
    net = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("used", "idle", "last")}).requires_grad_(False)
    made = Factors(dict(net.items()), 2, 2.0, torch.Generator().manual_seed(0), options=LayersConfig(**options))
    return made, net


def stepped(made: Factors, net: nn.ModuleDict, rate: float) -> None:
    optimizer = torch.optim.AdamW([made.flat], lr=rate)
    with attached(made.branches):
        hidden = net["used"](torch.randn(3, 4))
        (functional.linear(hidden, net["idle"].weight) + 0 * net["last"](hidden)).square().sum().backward()
    optimizer.step()


def test_it_is_told_once_and_after_a_step_that_moves() -> None:
    made, net = factors()
    unmoved = Unmoved(made)
    stepped(made, net, 0.0)  # as a warm-up begins
    assert unmoved.look() == unmoved.sentence == ""
    stepped(made, net, 1e-4)
    told = unmoved.look()
    assert (
        told.startswith("2 of 3 layers learn nothing (the first is idle): no gradient")
        and "Add them to exclude" in told
    )
    assert unmoved.look() == "" and unmoved.sentence == told


def test_nothing_is_told_of_layers_that_all_learn_or_are_left_out_at_random() -> None:
    made, net = factors()
    unmoved = Unmoved(made)
    for branch in made.trained.values():
        branch.lora_B.detach().add_(1e-6)
    assert unmoved.look() == unmoved.sentence == ""
    made, net = factors(layer_dropout=0.5)
    unmoved = Unmoved(made)
    stepped(made, net, 1e-4)
    assert unmoved.look() == unmoved.sentence == ""
