"""Tests what a hash is told of a value, byte by byte, and that it tells values apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lora_loom.lora_core.nested_hash import HashSpelling, add, bytes_of
from lora_loom.lora_core.stored import stored

PLAIN = HashSpelling(repr)
TOLD = HashSpelling(
    lambda value: f"{value!r};", tensor="<{dtype} {shape}>", sequence="{count}:", record="{tag}/{count}:"
)  # fmt: skip
ONE = torch.tensor([1], dtype=torch.uint8)


@stored("a second=b", tag="Pair")
@dataclass(frozen=True)
class _Pair:
    a: Any
    b: Any


class Told:
    """A digest that keeps what it is told."""

    def __init__(self) -> None:
        self.data = b""

    def update(self, data: Any) -> None:
        self.data += bytes(data)


def told(value: Any, spelling: HashSpelling = TOLD) -> bytes:
    digest = Told()
    add(digest, value, spelling)
    return digest.data


def hashed(value: Any) -> str:
    digest = hashlib.sha256()
    add(digest, value, TOLD)
    return digest.hexdigest()


def test_what_is_told_of_each_kind_of_value() -> None:
    assert told("a") == b"'a';"
    assert told((1, ["a"], ())) == b"3:1;1:'a';0:"
    assert told({"b": 1, "a": 2}) == b"2:2:'a';2;2:'b';1;"
    assert told(ONE) == b"<torch.uint8 (1,)>\x01"
    assert told(_Pair(ONE, (2,))) == b"Pair/3:<torch.uint8 (1,)>\x011:2;"


def test_a_spelling_that_says_little() -> None:
    assert told((1, ("a", ONE)), PLAIN) == b"1'a'torch.uint8 (1,)\x01"
    assert told(_Pair(1, 2), PLAIN) == repr(_Pair(1, 2)).encode(), "without a record a class is nothing special"


def test_what_comes_before_each_field() -> None:
    marked = HashSpelling(repr, record="{tag}", field=lambda value: f"<{type(value).__name__}>")
    assert told(_Pair(1, _Pair("b", ())), marked) == b"Pair<int>1<_Pair>Pair<str>'b'<tuple>"


def test_a_part_of_a_tensor() -> None:
    every_second = HashSpelling(repr, taken=lambda tensor: tensor[::2])
    assert told(torch.tensor([1, 2, 3], dtype=torch.uint8), every_second) == b"torch.uint8 (3,)\x01\x03"


def test_it_tells_apart_what_is_not_the_same() -> None:
    values = torch.arange(6, dtype=torch.int16)
    different = [
        values, values.reshape(2, 3), values.to(torch.float16), values.view(torch.float16), (values,), [values, 0],
        (values, values), values.flip(0), _Pair(values, 0), ((values, 0),),
    ]  # fmt: skip
    assert len({hashed(each) for each in different}) == len(different)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_the_bytes_of_a_tensor_however_it_lies(dtype: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(dtype)
    turned = values.T.contiguous().T
    assert not turned.is_contiguous() and bytes_of(turned).tobytes() == bytes_of(values).tobytes()
    assert len(bytes_of(values)) == values.nbytes and len(bytes_of(values[0, 0])) == dtype.itemsize
    assert len(bytes_of(values[:0])) == 0 and bytes_of(torch.ones(1, requires_grad=True)).tobytes()


def test_what_cannot_be_told_raises() -> None:
    def only_numbers(value: Any) -> str:
        if isinstance(value, int):
            return str(value)
        raise TypeError("no number")

    with pytest.raises(TypeError, match="no number"):
        told([1, object()], HashSpelling(only_numbers))
