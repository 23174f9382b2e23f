"""Choices are checked once, with the number and the limits; the fingerprint sees every one of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from lora_loom.lora_core.training.config import OPTIMIZERS, LoraConfig, OptimizerConfig, TrainConfig, fingerprint
from lora_loom.lora_core.training.layers import LayersConfig, Rule
from lora_loom.lora_core.training.objective_config import ObjectiveConfig


@pytest.mark.parametrize(
    ("kind", "name", "value", "limits"),
    [
        (LoraConfig, "rank", 0, "between 1 and 1024"), (LoraConfig, "rank", 1025, "between 1 and 1024"),
        (LoraConfig, "alpha", 0.0, "between 0.001 and 10000"), (LoraConfig, "alpha", float("nan"), "between"),
        (TrainConfig, "steps", 0, "between 1 and 1e+06"), (TrainConfig, "learning_rate", 0.0, "between 1e-09 and 1"),
        (TrainConfig, "learning_rate", float("nan"), "between"), (TrainConfig, "batch_size", 0, "between 1 and 1024"),
        (TrainConfig, "accumulation", 0, "between 1 and 1024"), (OptimizerConfig, "warmup", -1, "between 0 and 1e+06"),
        (OptimizerConfig, "restarts", 0, "between 1 and 1000"), (OptimizerConfig, "beta1", 1.0, "between 0 and 1"),
        (OptimizerConfig, "beta2", -0.1, "between 0 and 1"), (OptimizerConfig, "eps", float("nan"), "between 0 and 1"),
        (OptimizerConfig, "weight_decay", 11.0, "between 0 and 10"), (OptimizerConfig, "ema_decay", 1.0, "between"),
        (OptimizerConfig, "max_grad_norm", -1.0, "between 0 and 1e+09"),
        (ObjectiveConfig, "shift", 0.0, "between 0.01 and 100"), (ObjectiveConfig, "snr_gamma", 0.0, "between 0.1"),
        (ObjectiveConfig, "huber_c", 0.0, "between 0.0001 and 10000"), (ObjectiveConfig, "logit_std", 0.0, "between"),
        (ObjectiveConfig, "logit_mean", 11.0, "between -10 and 10"), (ObjectiveConfig, "mode_scale", 1.76, "-1 and"),
        (ObjectiveConfig, "noise_offset", -0.1, "between 0 and 1"), (ObjectiveConfig, "unmasked", 1.1, "between 0 and"),
        (ObjectiveConfig, "prior_weight", -1.0, "between 0 and 100"), (LayersConfig, "max_norm", -1.0, "between 0 and"),
        (LayersConfig, "lora_plus_ratio", 0.0, "between 0.01"), (LayersConfig, "rank_dropout", 0.95, "0 and 0.9"),
        (LayersConfig, "layer_dropout", float("nan"), "between 0 and 0.9"),
        (TrainConfig, "caption_dropout", 1.5, "between 0 and 1"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(kind, name, value, limits):
    with pytest.raises(ValueError) as caught:
        kind(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value}; it must be ") and limits in str(caught.value)


NAMED = ("loss", "huber_schedule", "weighting", "timesteps")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(LoraConfig, "preset"), (LayersConfig, "scaling"), *((ObjectiveConfig, name) for name in NAMED)],
)
def test_unknown_names_are_refused_with_the_choices(kind, name):
    with pytest.raises(ValueError, match=r"is 'other'; choose one of \w+.*, ") as caught:
        kind(**{name: "other"})
    assert str(getattr(kind(), name)) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "sgd", "optimizer is 'sgd'; choose one of adamw, adamw8bit, adafactor, lion, prodigy, "),
        ("schedule", "step", "lr_schedule is 'step'; choose one of constant, cosine, "),
    ],
)
def test_unknown_optimisers_and_schedules_are_refused_by_the_names_on_the_node(field, value, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(name="adafactor", beta1=0.9), "adafactor does not use beta1; set it to 0"),
        (dict(name="adafactor", beta2=0.9), "adafactor does not use beta2; set it to 0"),
        (dict(name="muon", beta2=0.9), "muon does not use beta2; set it to 0"),
        (dict(name="lion", eps=1e-8), "lion does not use eps; set it to 0"),
        (
            dict(name="schedule_free_adamw"),
            "schedule_free_adamw needs no schedule; set lr_schedule to constant, not cosine",
        ),
        (
            dict(name="schedule_free_adamw", schedule="constant", ema_decay=0.9),
            "schedule_free_adamw averages by itself; set ema_decay to 0, not 0.9",
        ),
    ],
)
def test_choices_that_contradict_each_other_are_refused(choices, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        OptimizerConfig(**choices)


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup is 11; it must be between 0 and 10"):
        TrainConfig(steps=10, optimizer=OptimizerConfig(warmup=11))


def test_prodigy_at_the_learning_rate_of_another_is_refused():
    with pytest.raises(ValueError, match="learning_rate multiplies it; set it to 1 or to 0 .auto., not 0.0001"):
        TrainConfig(optimizer=OptimizerConfig("prodigy"))


def test_every_optimiser_starts_from_a_rate_of_its_own():
    rates = {}
    for name in OPTIMIZERS:
        config = OptimizerConfig(name, "constant")
        rates[name] = TrainConfig(learning_rate=config.usual_rate(5e-5), optimizer=config).learning_rate
    assert rates.pop("prodigy") == 1 and rates["adamw"] == rates["muon"] == 5e-5
    assert rates["lion"] < rates["adamw"] < rates["schedule_free_adamw"] and max(rates.values()) < 2e-4


def test_metadata_names_the_optimiser_and_what_is_not_as_usual():
    assert OptimizerConfig(schedule="rex", warmup=5).described() == "AdamW"
    assert (
        OptimizerConfig("lion", weight_decay=0.1, ema_decay=0.99).described()
        == "Lion(weight_decay=0.1, ema_decay=0.99)"
    )


OTHER = dict(
    rank=3, alpha=2.0, preset="all-linear", include=("a",), exclude=("b",), steps=7, learning_rate=0.5, batch_size=2,
    accumulation=3, seed=1, caption_dropout=0.9, objective=ObjectiveConfig(shift=1.5),
    preservation=1.0, preserve_every=8, clear_dropout=0.5, quiet=0.01, optimizer=OptimizerConfig(warmup=2),
    name="prodigy", schedule="constant", warmup=2, restarts=2, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=0.1,
    max_grad_norm=0.5, ema_decay=0.5,
    options=LayersConfig(max_norm=1.0), loss="huber", huber_c=0.2, huber_schedule="constant", weighting="min_snr",
    snr_gamma=2.0, timesteps="shifted", shift=1.5, logit_mean=0.5, logit_std=0.5, mode_scale=0.5, noise_offset=0.1,
    unmasked=0.1, prior_weight=0.5, scaling="alpha / sqrt(rank)", lora_plus_ratio=2.0, rank_dropout=0.1,
    layer_dropout=0.1, max_norm=2.0, dora=True, rules=(Rule("a", rank=2),),
)  # fmt: skip


@pytest.mark.parametrize("kind", [LoraConfig, LayersConfig, ObjectiveConfig, OptimizerConfig, TrainConfig])
def test_the_fingerprint_changes_with_every_choice(kind):
    plain = fingerprint(kind(), "data", {"a": 1})
    assert len(plain) == 16 and int(plain, 16) >= 0 and plain == fingerprint(kind(), "data", {"a": 1})
    changed = [fingerprint(replace(kind(), **{f.name: OTHER[f.name]}), "data", {"a": 1}) for f in fields(kind)]
    changed += [fingerprint(kind(), "other", {"a": 1}), fingerprint(kind(), "data", {"a": 2}), fingerprint(kind())]
    assert len({plain, *changed}) == len(changed) + 1


def test_a_run_that_goes_on_loud_preserves_where_its_concepts_are_kept_apart():
    quiet = TrainConfig(preservation=2.0, preserve_every=4, quiet=0.003, clear_dropout=0.5)
    assert quiet.loud() == TrainConfig()
    assert quiet.loud(preserving=True) == TrainConfig(preservation=2.0, preserve_every=4)
    every = replace(quiet, preserve_every=1)
    assert every.loud() == every.loud(preserving=True) == TrainConfig(preservation=2.0)
