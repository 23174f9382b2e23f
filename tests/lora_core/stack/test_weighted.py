"""The exact sum of adapters against the sum of the dense corrections."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.weighted import Weighted, exact_sum

SHAPES = {"diffusion_model.q": (12, 10), "diffusion_model.v": (9, 14), "text_encoders.clip_l.k": (8, 8)}


def layer(seed: int, out: int, columns: int, rank: int, alpha: float, dtype=torch.float64) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((rank, columns), (out, rank)))
    return LowRank(a.to(dtype), b.to(dtype), alpha)


def part(seed: int, strength: float, text: float, names=tuple(SHAPES), rank: int = 3, alpha: float = 2.0) -> Weighted:
    layers = {name: layer(seed + i, *SHAPES[name], rank, alpha) for i, name in enumerate(names)}
    return Weighted(f"part {seed}", Adapter(layers), strength, text)


def dense(item: LowRank) -> torch.Tensor:
    return item.lora_B.double() @ item.lora_A.double() * (item.alpha / item.lora_A.shape[0])


def dense_sum(parts: list[Weighted], name: str) -> torch.Tensor:
    total = torch.zeros(SHAPES[name], dtype=torch.float64)
    for one in parts:
        if name in one.adapter.layers:
            strength = one.text_strength if name == "text_encoders.clip_l.k" else one.strength
            total += strength * dense(one.adapter.layers[name])
    return total


def check(parts: list[Weighted]) -> dict[str, LowRank]:
    merged = exact_sum(parts)
    for name, item in merged.items():
        torch.testing.assert_close(dense(item), dense_sum(parts, name), rtol=0, atol=1e-12)
    return merged


strengths = st.sampled_from([1.0, 0.5, -1.0, 0.3, 2.0])
some_layers = st.sets(st.sampled_from(sorted(SHAPES)), min_size=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.lists(
        st.tuples(strengths, strengths, some_layers, st.integers(1, 6), st.floats(0.1, 9)),
        min_size=1,
        max_size=4,
    )
)
def test_the_sum_of_any_parts(data):
    parts = [part(10 * i, s, t, tuple(sorted(names)), r, a) for i, (s, t, names, r, a) in enumerate(data)]
    merged = check(parts)
    assert set(merged) == {name for one in parts for name in one.adapter.layers}
    for name, item in merged.items():
        assert item.rank == sum(one.adapter.layers[name].rank for one in parts if name in one.adapter.layers)


def test_a_merge_of_one_is_itself():
    one = part(0, 1.0, 1.0)
    merged = check([one])
    assert list(merged) == list(one.adapter.layers)
    for name, item in merged.items():
        assert item.distance(one.adapter.layers[name]) <= 1e-14 * item.norm()


def test_the_order_of_the_parts_does_not_matter():
    parts = [part(seed, s, t, rank=r) for seed, s, t, r in ((0, 1.0, 0.5, 2), (10, -0.4, 1.0, 3), (20, 0.9, 0.1, 5))]
    first, shuffled = exact_sum(parts), list(parts)
    random.Random(1).shuffle(shuffled)
    assert shuffled != parts
    for name, item in exact_sum(shuffled).items():
        assert item.distance(first[name]) <= 1e-13 * item.norm()


def test_the_same_adapter_twice_is_twice_the_adapter():
    merged = exact_sum([part(0, 1.0, 1.0), part(0, 1.0, 1.0)])
    for name, item in merged.items():
        assert item.distance(part(0, 1.0, 1.0).adapter.layers[name].scaled(2.0)) <= 1e-13 * item.norm()


def test_an_adapter_minus_itself_is_nothing():
    for item in exact_sum([part(0, 0.7, 0.7), part(0, -0.7, -0.7)]).values():
        assert item.norm() <= 1e-7 and item.truncate(3).norm() <= 1e-12


def test_text_layers_take_the_text_strength():
    merged = check([part(0, 0.25, 4.0)])
    source = part(0, 1.0, 1.0).adapter.layers
    assert merged["text_encoders.clip_l.k"].norm() == pytest.approx(4 * source["text_encoders.clip_l.k"].norm())
    assert merged["diffusion_model.q"].norm() == pytest.approx(0.25 * source["diffusion_model.q"].norm())


def test_strength_zero_adds_no_rank_and_no_layer():
    merged = check([part(0, 1.0, 0.0), part(10, 0.0, 0.0)])
    assert set(merged) == {"diffusion_model.q", "diffusion_model.v"}
    assert all(item.rank == 3 for item in merged.values())
    assert exact_sum([part(0, 0.0, 0.0)]) == {} == exact_sum([])


def test_layers_in_only_some_parents():
    q_only, v_only = part(0, 1.0, 1.0, ("diffusion_model.q",)), part(10, 0.5, 1.0, ("diffusion_model.v",))
    merged = check([q_only, v_only, part(20, 2.0, 1.0)])
    assert [item.rank for item in merged.values()] == [6, 6, 3]


def test_parents_of_different_models_are_refused():
    other = Weighted("other", Adapter({"diffusion_model.q": layer(0, 5, 5, 2, 1.0)}), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"\(5, 5\), \(12, 10\)"):
        exact_sum([part(0, 1.0, 1.0), other])
