"""LoHa and LoKr go to a file and come back as they were, whole or cut into the slices that a format has."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.written import FileLayer
from lora_loom.lora_core.kinds import Correction, LoHa, LoKr


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CORE = randn(3, 3, 3, 3)
CHANGES = {
    "LoHa": LoHa(randn(12, 3), randn(3, 8), randn(12, 3), randn(3, 8), 0.25),
    "LoHa tucker": LoHa(randn(3, 12), randn(3, 8), randn(3, 12), randn(3, 8), 0.5, CORE, CORE),
    "LoKr whole": LoKr((randn(3, 2),), (randn(4, 4),), 0.3),
    "LoKr pair": LoKr((randn(3, 2),), (randn(4, 2), randn(2, 4)), 0.3),
    "LoKr pairs": LoKr((randn(3, 2), randn(2, 2)), (randn(4, 2), randn(2, 4)), 0.3),
    "LoKr first a pair": LoKr((randn(3, 2), randn(2, 2)), (randn(4, 4),), 0.3),
    "LoKr tucker": LoKr((randn(3, 2),), (randn(2, 4), randn(2, 4), randn(2, 2, 3, 3)), 0.3),
}


def added(change: Correction) -> torch.Tensor:
    return change.difference(torch.zeros(12, 8, *((3, 3) if len(change.shape) > 2 else ()), dtype=torch.float64))


@pytest.mark.parametrize("kind", CHANGES)
def test_written_and_read_it_is_the_same(kind: str) -> None:
    change = CHANGES[kind]
    tensors = formats.encode(Adapter({}, others={"x": (change,)}), "native", dtype=torch.float32)
    (found,) = formats.decode(tensors).others["x"]
    assert torch.allclose(added(found), added(change), rtol=1e-6)


@pytest.mark.parametrize("kind", CHANGES)
def test_slices_are_the_rows_of_the_whole(kind: str) -> None:
    change, places = CHANGES[kind], [FileLayer("a", (0, 4)), FileLayer("b", (4, 8))]
    tensors = formats.encode(Adapter({}, others={"x": (change,)}), "kohya", {"x": places}, torch.float32)
    found = formats.decode(tensors).others
    for place in places:
        (part,), (start, length) = found[place.name], place.rows
        zeros = torch.zeros(length, *added(change).shape[1:], dtype=torch.float64)
        assert torch.allclose(part.difference(zeros), added(change)[start : start + length], rtol=1e-6)


def test_what_cannot_be_written_is_said() -> None:
    adapter = Adapter({}, others={"x": (CHANGES["LoKr pair"],)})
    with pytest.raises(ValueError, match="1 layers are LoKr, for example x, which the diffusers format cannot contain"):
        formats.encode(adapter, "peft")
    with pytest.raises(ValueError, match="the LoKr of a cannot be cut where this format splits"):
        formats.encode(adapter, "kohya", {"x": [FileLayer("a", (0, 6))]})
