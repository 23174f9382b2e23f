"""Where fp64 is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lora_loom.lora_core import fp64
from lora_loom.lora_core.analysis.layer_sum import FigureSettings


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    fp64.has_fp64.cache_clear()
    yield
    fp64.has_fp64.cache_clear()


@pytest.mark.parametrize("error", [TypeError("no float64"), RuntimeError("Required aspect fp64 is not supported")])
def test_a_device_that_refuses_is_passed_over(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_args: object, **_choices: object) -> None:
        raise error

    factor = torch.ones(2, 3)
    assert fp64.with_fp64("meta") == torch.device("meta") == FigureSettings("meta").wide(factor).device
    fp64.has_fp64.cache_clear()
    monkeypatch.setattr(torch, "ones", refuse)
    assert fp64.with_fp64("meta") == torch.device("cpu")
    wide = FigureSettings("meta").wide(factor)
    assert wide.dtype == torch.float64 and wide.device.type == "cpu"
    assert FigureSettings("meta", brief=True).wide(factor).device.type == "meta"
