"""Tensors on their way to a device and back."""

from __future__ import annotations

import torch
from lora_loom.lora_core.training.steps import brought, looked_at


def test_tensors_of_one_type_come_together_and_keep_their_shapes() -> None:
    there = torch.zeros(2, device="meta")
    given = [torch.rand(2, 3), None, torch.rand(4).half(), there, torch.rand(()), torch.rand(1, 5)]
    found = brought(given, torch.device("meta"))
    assert found[1] is None and found[3] is there
    pairs = [(own, come) for own, come in zip(given, found, strict=True) if own is not None]
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) and b.device.type == "meta" for a, b in pairs)
    assert found[0].untyped_storage()._cdata == found[5].untyped_storage()._cdata, "one copy"


def test_tensors_that_are_there_stay_what_they_are() -> None:
    given = [torch.rand(2), None, torch.rand(3)]
    assert all(own is come for own, come in zip(given, brought(given, torch.device("cpu")), strict=True))


def test_values_come_back_as_they_are() -> None:
    given = [torch.rand(()), torch.rand(2, dtype=torch.float64), torch.rand(3)]
    assert looked_at(given) == [own.flatten().tolist() for own in given]
