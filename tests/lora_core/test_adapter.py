"""Figures of a whole adapter, against the dense corrections."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank


def layer(seed: int, out: int, columns: int, rank: int, alpha: float, kernel=()) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((rank, columns), (out, rank)))
    return LowRank(a, b, alpha, kernel)


def dense(item: LowRank) -> torch.Tensor:
    return item.lora_B.double() @ item.lora_A.double() * (item.alpha / item.lora_A.shape[0])


@pytest.fixture
def adapter() -> Adapter:
    layers = {"diffusion_model.b": layer(0, 6, 18, 2, 1.0, (3, 3)), "diffusion_model.a": layer(1, 5, 7, 4, 3.0),
              "text_encoders.c": layer(2, 8, 3, 1, 0.5)}  # fmt: skip
    return Adapter(layers, {"ss_output_name": "x"})


def test_energies_and_norm_are_those_of_the_dense_corrections(adapter):
    energies = adapter.energies()
    assert list(energies) == list(adapter.layers)
    for name, item in adapter.layers.items():
        assert energies[name] == pytest.approx(float(dense(item).square().sum()), rel=1e-12)
    together = torch.cat([dense(item).flatten() for item in adapter.layers.values()]).norm()
    assert adapter.norm() == pytest.approx(float(together), rel=1e-12)


def test_rank_and_parameters(adapter):
    assert adapter.rank() == 4
    assert adapter.num_parameters() == 2 * (6 + 18) + 4 * (5 + 7) + 1 * (8 + 3)


def test_an_adapter_without_layers_has_rank_and_norm_zero():
    empty = Adapter({})
    assert (empty.rank(), empty.num_parameters(), empty.norm(), empty.energies()) == (0, 0, 0.0, {})


@pytest.mark.parametrize("strength", [0.0, -1.0, 0.3])
def test_scaled_scales_every_layer_and_keeps_order_and_metadata(adapter, strength):
    scaled = adapter.scaled(strength)
    assert list(scaled.layers) == list(adapter.layers) and scaled.metadata == adapter.metadata
    for name, item in adapter.layers.items():
        torch.testing.assert_close(dense(scaled.layers[name]), strength * dense(item), rtol=1e-12, atol=0)
    assert scaled.norm() == pytest.approx(abs(strength) * adapter.norm(), rel=1e-12)


def test_map_changes_each_layer_alone(adapter):
    mapped = adapter.map(lambda item: item.truncate(1))
    assert mapped.rank() == 1 and adapter.rank() == 4 and list(mapped.layers) == list(adapter.layers)
