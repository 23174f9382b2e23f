"""The ranks of a run: what one says reaches all, and no rank waits for one that has failed."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from harness.ranks import on_ranks
from lora_loom.lora_core.ranks import exchange
from lora_loom.lora_core.ranks.exchange import packed, unpacked
from lora_loom.lora_core.ranks.group import ALONE, ElsewhereError, Group, here

TREE = {"a": [1, 2.5, None, True, "\N{EURO SIGN}"], "empty": [], "deep": {"t": [torch.arange(6.0)[::2]]}}


def everything() -> dict:
    """What a rank gets of each kind of call."""
    group = here()
    exchange._MOST = 7  # bytes
    mine = torch.tensor([10.0**group.rank, 1.0])
    found = {
        "place": [group.rank, group.size, group.first], "sum": group.sum_(mine), "same": mine,
        "agreed": group.agreed({"host": "x" * group.rank, "step": group.rank}),
        "shared": group.shared(lambda: made_by(group)), "gathered": group.gathered(7, lambda own: squares(group, own)),
        "none": group.gathered(0, lambda own: [i for i in own]), "errors": [],
    }  # fmt: skip
    for work in (on_the_second, on_all):
        try:
            group.every(lambda work=work: work(group))
        except (ElsewhereError, ValueError) as error:
            found["errors"].append([type(error).__name__, str(error)])
    return found | {"after": group.agreed(group.rank)}


def made_by(group: Group) -> dict:
    assert group.first
    return TREE


def squares(group: Group, own: range) -> list:
    return [[group.rank, torch.full((2,), i * i, dtype=torch.bfloat16)] for i in own]


def on_the_second(group: Group) -> int:
    if group.rank == 1:
        raise ValueError("no picture")
    return 3


def on_all(group: Group) -> int:
    raise ValueError(f"bad {group.rank}")


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_what_ranks_say_reaches_all_of_them(tmp_path):
    found = on_ranks(3, everything, tmp_path)
    assert [own["place"] for own in found] == [[0, 3, True], [1, 3, False], [2, 3, False]]
    for own in found:
        assert own["sum"].tolist() == own["same"].tolist() == [111, 3]
        assert own["agreed"] == [{"host": "x" * rank, "step": rank} for rank in range(3)]
        assert same(own["shared"], TREE) and own["none"] == [] and own["after"] == [0, 1, 2]
        assert same(own["gathered"], [[r, torch.full((2,), i * i, dtype=torch.bfloat16)] for i, r in PLACES])
    one, all_of_them = zip(*(own["errors"] for own in found), strict=True)
    elsewhere = f"another rank could not go on. rank 1 ({socket.gethostname()}): ValueError: no picture"
    assert list(one) == [["ElsewhereError", elsewhere], ["ValueError", "no picture"], ["ElsewhereError", elsewhere]]
    assert list(all_of_them) == [["ValueError", f"bad {rank}"] for rank in range(3)]


PLACES = list(enumerate([0, 0, 1, 1, 2, 2, 2]))  # of seven values, and who makes them


def test_alone_nothing_is_sent():
    mark, tensor = object(), torch.ones(2)
    assert here() == ALONE and ALONE.first and ALONE.sum_(tensor) is tensor and tensor.tolist() == [1, 1]
    assert ALONE.agreed(mark) == [mark] and ALONE.shared(lambda: mark) is mark
    assert ALONE.gathered(3, lambda own: [own]) == [range(3)]


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_shares_are_even_and_leave_nothing_out(count):
    shares = [Group(rank, 3).share(count) for rank in range(3)]
    assert [i for own in shares for i in own] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_bytes_on_the_way_are_json_and_tensors():
    data = packed(TREE)
    assert data.dtype == torch.uint8 and same(unpacked(data), TREE)
    assert json.loads(bytes(data.tolist())[8:].partition(b"}}")[0] + b"}}")  # the head of safetensors
    for other in (object(), {1: 2}, (1,), b"x"):
        with pytest.raises(TypeError, match="cannot be kept"):
            packed(other)
