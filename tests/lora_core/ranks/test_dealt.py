"""What ranks make together of a merge, an extraction or a conversion is what one makes alone, to the last byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.ranks import on_ranks
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.kinds import Difference, LoHa
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.conversion import convert
from lora_loom.lora_core.merging.extraction import Extracted, cost, extract
from lora_loom.lora_core.merging.merge import merge
from lora_loom.lora_core.merging.settings import MergeSettings
from lora_loom.lora_core.merging.truncation import Limits
from lora_loom.lora_core.ranks.dealt import Wire, dealt, owners
from lora_loom.lora_core.ranks.group import ElsewhereError, Group, here
from lora_loom.lora_core.stack.weighted import Weighted
from torch import Tensor

KINDS = {"qkv": (48, 16), "out": (16, 16), "wide": (12, 40), "conv": (8, 6, 3, 3)}
SHAPES = {f"diffusion_model.{index}.{name}": shape for index in range(3) for name, shape in KINDS.items()}
MERGES = {
    "sum": (MergeSettings(), Limits()),
    "a rank": (MergeSettings(), Limits(4)),
    "a size": (MergeSettings(), Limits(megabytes=0.011)),
    "an energy": (MergeSettings(), Limits(energy=0.7)),
    "ties": (MergeSettings("ties"), Limits()),
    "by chance": (MergeSettings("dare", seed=7), Limits(3)),
}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(seed: int, name: str, rank: int) -> LowRank:
    out, columns, *kernel = SHAPES[name]
    down = random(seed, rank, columns * (9 if kernel else 1))
    up = random(seed + 1, out, rank)
    if name.endswith("qkv") and seed % 2:
        up[16:] = 0.0  # of q alone
    return LowRank(down, up, 2.0, tuple(kernel))


def parts() -> list[Weighted]:
    """Three LoRAs; in one layer two cancel each other, and one layer is in one LoRA alone."""
    names = list(SHAPES)
    made = [{name: layer(100 * part + index, name, 3 + part) for index, name in enumerate(names)} for part in range(3)]
    made[1][names[1]], made[2] = made[0][names[1]].scaled(-1.0), {n: made[2][n] for n in names[2:]}
    del made[1][names[3]]
    return [Weighted(f"part {index}", Adapter(each), 1.0, 1.0) for index, each in enumerate(made)]


def flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a value that has bytes or a figure, by where it is."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, dict):
        yield at, list(value)
        for name, each in value.items():
            yield from flat(each, f"{at}/{name}")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from flat(each, f"{at}/{index}")
    else:
        yield at, value


def all_of_it(group: Group) -> dict[str, Any]:
    made: dict[str, Any] = {name: merge(parts(), *each, group=group) for name, each in MERGES.items()}
    shapes = SHAPES | {"same": (9, 9)}
    wire = Wire(lambda part: part and part.packed(), lambda name, held: Extracted.unpacked(held) if held else None)

    def extracted(name: str) -> Extracted | None:
        return extract(random(3, *shapes[name]) * (name != "same"), 4, 0.9, name)

    made["extracted"] = dealt(group, {name: cost(shape, 4) for name, shape in shapes.items()}, extracted, wire)
    loha = LoHa(random(1, 12, 2), random(2, 2, 40), random(3, 12, 2), random(4, 2, 40))
    others = {"loha": (loha,), "whole": (Difference(random(5, 12, 40)),), "bias": (Difference(random(6, 12)),)}
    weights = {"loha": random(7, 12, 40), "whole": random(8, 12, 40), "bias": random(9, 12)}
    adapter = Adapter({"plain": layer(11, "diffusion_model.0.out", 2)}, {}, others)
    made["converted"] = convert(adapter, Limits(3), weights.__getitem__, lambda done, total: None, group=group)
    return dict(flat(made))


def together() -> dict[str, Any]:
    return {at: each if torch.is_tensor(each) else repr(each) for at, each in all_of_it(here()).items()}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_make_the_same_bytes_as_one(size: int, tmp_path: Path) -> None:
    alone = all_of_it(Group())
    assert "/a rank/cancelled/0" in alone, "a layer that cancels is among them"
    for found in on_ranks(size, together, tmp_path):
        assert list(found) == list(alone)
        for at, each in alone.items():
            same = torch.equal(found[at], each) if torch.is_tensor(each) else found[at] == repr(each)
            assert same, at


def shares() -> list[str]:
    worked: list[str] = []

    def work(name: str) -> str:
        worked.append(name)
        return name

    wire: Wire[str] = Wire(str, lambda name, held: held)
    found = dealt(here(), {"a": 1.0, "b": 9.0, "c": 5.0, "d": 3.0}, work, wire)
    assert list(found.items()) == [(name, name) for name in "abcd"]
    return worked


def broken() -> str:
    def work(name: str) -> str:
        if name == "b":
            raise ValueError("b holds NaN")
        return name

    try:
        dealt(here(), {"a": 2.0, "b": 1.0}, work, Wire(str, lambda name, held: held))
    except (ValueError, ElsewhereError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def both() -> list[Any]:
    return [shares(), broken()]


def test_each_does_its_share_alone_and_all_hear_of_a_problem(tmp_path: Path) -> None:
    first, second = on_ranks(2, both, tmp_path)
    assert (first[0], second[0]) == (["b"], ["a", "c", "d"])
    first, second = first[1], second[1]
    assert second == "ValueError: b holds NaN"
    assert first.startswith("ElsewhereError: ") and "rank 1" in first and "b holds NaN" in first


def test_the_costly_are_dealt_first_to_the_rank_with_the_least() -> None:
    assert owners([1.0, 9.0, 5.0, 3.0], 2) == [1, 0, 1, 1]
    assert owners([2.0, 2.0, 2.0], 3) == [0, 1, 2]
    assert owners([1.0, 2.0], 1) == [0, 0]
