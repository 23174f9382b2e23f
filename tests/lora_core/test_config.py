"""Choices are checked once, with the number and the limits; the fingerprint sees every one of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig, fingerprint


@pytest.mark.parametrize(
    ("kind", "name", "value", "limits"),
    [
        (LoraConfig, "rank", 0, "between 1 and 1024"), (LoraConfig, "rank", 1025, "between 1 and 1024"),
        (LoraConfig, "alpha", 0.0, "between 0.001 and 10000"), (LoraConfig, "alpha", float("nan"), "between"),
        (TrainConfig, "steps", 0, "between 1 and 1e+06"), (TrainConfig, "learning_rate", 0.0, "between 1e-09 and 1"),
        (TrainConfig, "learning_rate", float("nan"), "between"), (TrainConfig, "batch_size", 0, "between 1 and 1024"),
        (TrainConfig, "accumulation", 0, "between 1 and 1024"), (TrainConfig, "warmup", 1001, "between 0 and 1000"),
        (TrainConfig, "shift", 0.0, "between 0.01 and 100"), (TrainConfig, "snr_gamma", 0.0, "between 0.1 and 100"),
        (TrainConfig, "caption_dropout", 1.5, "between 0 and 1"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(kind, name, value, limits):
    with pytest.raises(ValueError) as caught:
        kind(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value}; it must be ") and limits in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(LoraConfig, "preset"), (TrainConfig, "weighting"), (TrainConfig, "timesteps"), (TrainConfig, "schedule")],
)
def test_unknown_names_are_refused_with_the_choices(kind, name):
    with pytest.raises(ValueError, match=r"is 'other'; choose one of \w+.*, ") as caught:
        kind(**{name: "other"})
    assert str(getattr(kind(), name)) in str(caught.value)


OTHER = dict(
    rank=3, alpha=2.0, preset="all-linear", include=("a",), exclude=("b",), steps=7, learning_rate=0.5, batch_size=2,
    accumulation=3, seed=1, schedule="constant", warmup=2, weighting="min_snr", snr_gamma=2.0, timesteps="shifted",
    shift=1.5, max_grad_norm=0.5, weight_decay=0.3, caption_dropout=0.9, preservation=1.0,
)  # fmt: skip


@pytest.mark.parametrize("kind", [LoraConfig, TrainConfig])
def test_the_fingerprint_changes_with_every_choice(kind):
    plain = fingerprint(kind(), "data", {"a": 1})
    assert len(plain) == 16 and int(plain, 16) >= 0 and plain == fingerprint(kind(), "data", {"a": 1})
    changed = [fingerprint(replace(kind(), **{f.name: OTHER[f.name]}), "data", {"a": 1}) for f in fields(kind)]
    changed += [fingerprint(kind(), "other", {"a": 1}), fingerprint(kind(), "data", {"a": 2}), fingerprint(kind())]
    assert len({plain, *changed}) == len(changed) + 1
