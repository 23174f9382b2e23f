"""Norms of corrections from their factors are those of the products."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.adapter import TEXT_PREFIX
from lora_loom.lora_core.training import norms
from lora_loom.lora_core.training.inject import Factors
from torch import nn


def test_from_factors_as_from_the_product() -> None:
    layers = {"q": nn.Linear(12, 8), "conv": nn.Conv2d(4, 6, 3), TEXT_PREFIX + "k": nn.Linear(5, 7)}
    draw = torch.Generator().manual_seed(0)
    factors = Factors(layers, 4, 2.0, draw, text_rank=2)
    assert set(norms.correction_norms(factors).values()) == {0.0}, "B begins as zero"
    with torch.no_grad():
        factors.flat.copy_(torch.randn(factors.flat.shape, generator=draw))
    found = norms.correction_norms(factors)
    for name, layer in factors.low_ranks().items():
        assert found[name] == pytest.approx(float(layer.delta_weight().norm()), rel=1e-5)


def test_shares_of_model_and_text() -> None:
    sizes = {"a": 3.0, "b": 4.0, "unknown": 100.0, TEXT_PREFIX + "c": 1.0}
    weights = {"a": 6.0, "b": 8.0, TEXT_PREFIX + "c": 10.0}
    assert norms.relative(sizes, weights) == [pytest.approx(0.5), pytest.approx(0.1)]
    assert norms.relative({"a": 3.0}, weights) == [0.5] and norms.relative({"unknown": 1.0}, weights) == [0.0]


def test_the_largest_come_first() -> None:
    found = norms.largest({"a": 1.0, "b": 3.0, "c": 2.0, "unknown": 9.0}, {"a": 1.0, "b": 2.0, "c": 1.0}, count=2)
    assert found == [("c", 2.0), ("b", 1.5)]
