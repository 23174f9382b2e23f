"""Training Optimizer: what it shows is what a run does without it, and every choice trains through ComfyUI."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from comfy_extras import nodes_preview_any, nodes_primitive
from harness.calls import refusals, run_node
from harness.runs import cancelled, kept, train
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig
from lora_loom.nodes.optimizer import TrainingOptimizer
from safetensors.torch import load_file

import nodes

WIDGETS = {field.id: field.default for field in TrainingOptimizer.GET_SCHEMA().inputs}
pytestmark = pytest.mark.usefixtures("runs")
RATES = {"prodigy": 1.0, "lion": 3e-3, "muon": 0.1}


@pytest.fixture
def trio(models) -> tiny.Loaded:
    return models("sd15")


def chosen(**changes: Any) -> OptimizerConfig:
    return run_node(TrainingOptimizer, **{**WIDGETS, **changes})[0]


def choice(name: str) -> dict[str, Any]:
    return {"optimizer": name, "lr_schedule": "constant" if OPTIMIZERS[name].averages else "cosine"}


def test_as_it_comes_it_changes_nothing(trio, data, runs: Path) -> None:
    train(trio, data)
    without = kept(runs)
    shutil.rmtree(runs)
    train(trio, data, optimizer=chosen())
    assert kept(runs) == without and without


def test_it_replaces_what_train_lora_says(trio, data, runs: Path) -> None:
    said = {"lr_schedule": "constant", "warmup": 1, "max_grad_norm": 1e-3}
    train(trio, data, **said)
    by_train_lora = kept(runs)
    train(trio, data, optimizer=chosen(**said), warmup=3)
    assert kept(runs) == by_train_lora
    train(trio, data, optimizer=chosen(), **said)
    assert len(kept(runs)) == 2 * len(by_train_lora)


LONG = {"steps": 12, "batch_size": 4}


@pytest.fixture(scope="module")
def still(models, data) -> list[float]:
    """The losses of a run that does not move."""
    return train(models("sd15"), data, **LONG, learning_rate=1e-9)[1]["loss"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_learns(trio, data, still: list[float], name: str) -> None:
    """Better, at the end and in the very same draws, than a run that stands still."""
    config = chosen(**choice(name), weight_decay=0.1)
    _, losses, adapter, *_ = train(trio, data, **LONG, optimizer=config, learning_rate=RATES.get(name, 1e-2))
    assert losses["loss"][0] == still[0] and all(map(math.isfinite, losses["loss"]))
    if OPTIMIZERS[name].rate is not None:  # to find one takes longer than that
        assert sum(losses["loss"][-4:]) < 0.995 * sum(still[-4:])
    assert sum(layer.norm() > 0 for layer in adapter.layers.values()) >= 0.7 * len(adapter.layers)
    assert adapter.metadata["ss_optimizer"] == f"{OPTIMIZERS[name].title}(weight_decay=0.1)"


@pytest.mark.parametrize("name", ["adamw", "schedule_free_adamw"])
def test_the_average_is_what_comes_out_and_a_cancelled_run_keeps_both(trio, data, runs: Path, name: str) -> None:
    config = chosen(**choice(name), ema_decay=0.9 if name == "adamw" else 0.0)
    whole = train(trio, data, optimizer=config)[0]
    files = kept(runs)
    (lora,), (state,) = (list(runs.rglob(pattern)) for pattern in ("step_*.safetensors", "state.safetensors"))
    out, trained = load_file(lora), load_file(state)["factors"]
    assert all(torch.equal(out[key], value) for key, value in whole.items())
    flat = torch.cat([out[key].flatten() for key in out if "lora_" in key]).sort().values
    assert flat.shape == trained.shape and not torch.allclose(flat, trained.sort().values, rtol=1e-3)
    shutil.rmtree(runs)
    with cancelled(trio, 2):
        train(trio, data, optimizer=config)
    assert 0 < len(kept(runs)) and kept(runs) != files
    train(trio, data, optimizer=config)
    again = kept(runs)
    assert {name: again[name] for name in files} == files


def test_text_encoders_have_their_own_rate_with_every_kind_of_state(trio, data) -> None:
    for name in ("prodigy", "muon"):
        choices = {"text_rank": 2, "optimizer": chosen(**choice(name)), "learning_rate": RATES[name], "steps": 2}
        adapter = train(trio, data, **choices, text_learning_rate=1.0)[2]
        other = train(trio, data, **choices, text_learning_rate=0.5)[2]
        first = {key: layer.lora_A for key, layer in adapter.layers.items() if "text_encoders." in key}
        assert first and any(not torch.equal(value, other.layers[key].lora_A) for key, value in first.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adafactor", "beta1": 0.9}, "adafactor has no beta1; leave it at 0"),
        ({"optimizer": "schedule_free_adamw"}, "set lr_schedule to constant, not cosine"),
        ({"optimizer": "schedule_free_adamw", "lr_schedule": "constant", "ema_decay": 0.9}, "set ema_decay to 0"),
        ({"optimizer": "sgd"}, "choose one of adamw, "),
        ({"restarts": 0}, "restarts is 0; it must be between 1 and 1000"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused_when_the_graph_is_queued(changes: dict[str, Any], message: str) -> None:
    assert message in refusals(graph(**changes))


def test_what_comes_over_a_wire_is_looked_at_when_it_is_there() -> None:
    assert refusals(graph(optimizer="schedule_free_adamw", warmup=["other", 0])) == ""
    with pytest.raises(ValueError, match="set lr_schedule to constant, not cosine"):
        chosen(optimizer="schedule_free_adamw")


def graph(**changes: Any) -> dict[str, Any]:
    nodes.NODE_CLASS_MAPPINGS |= {"Number": nodes_primitive.Int, "PreviewAny": nodes_preview_any.PreviewAny}
    return {
        "other": {"class_type": "Number", "inputs": {"value": 5}},
        "optimizer": {"class_type": "LoraLoom_Optimizer", "inputs": {**WIDGETS, **changes}},
        "out": {"class_type": "PreviewAny", "inputs": {"source": ["optimizer", 0]}},
    }


def test_prodigy_at_another_ones_learning_rate_is_refused_before_anything_is_encoded(trio, data) -> None:
    with pytest.raises(
        ValueError, match="learning_rate is a factor on it; set it to 1 or to 0, which is auto, not 0.0001"
    ):
        train(trio, data, optimizer=chosen(optimizer="prodigy"), learning_rate=1e-4)


def test_auto_is_a_rate_that_suits_the_optimiser(trio, data) -> None:
    for name, rate in (("prodigy", "1"), ("lion", "2e-05"), ("adamw", "0.0001")):
        adapter = train(trio, data, steps=1, learning_rate=0.0, optimizer=chosen(**choice(name)))[2]
        assert float(adapter.metadata["ss_learning_rate"]) == float(rate)


def test_choices_are_plain_data_that_comfyui_can_cache() -> None:
    assert chosen() == chosen() == OptimizerConfig() and hash(chosen()) == hash(OptimizerConfig())
    assert json.loads(json.dumps(WIDGETS))["optimizer"] == "adamw"
