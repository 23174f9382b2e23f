"""Average Saved Steps makes one LoRA of what a run has saved, and says what of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_folders
from harness.calls import run_node
from harness.runs import train
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats, save
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.average_steps import AverageSteps


def averaged(run: str, from_step: int = 0, decay: float = 0.0) -> tuple[Adapter, str]:
    assert AverageSteps.validate_inputs(run, from_step) is True
    adapter, lora_model, report = run_node(AverageSteps, run=run, from_step=from_step, decay=decay)
    again = formats.decode(lora_model)
    assert all(again.layers[name].distance(layer) < 1e-6 for name, layer in adapter.layers.items())
    return adapter, report


def dense(layer: LowRank) -> torch.Tensor:
    return layer.to(torch.float64).delta_weight().flatten(1)


def test_of_a_run_of_train_lora(models, data: Any, runs: Path) -> None:
    trained = train(models("sd15"), data, save_every=1, learning_rate=0.05)
    (run,) = AverageSteps.GET_SCHEMA().inputs[0].options[1:]
    files = [runs / run / f"step_{step:06d}.safetensors" for step in (2, 3, 4)]
    steps = [formats.read(path) for path in files]
    made, report = averaged(run)
    assert made.layers.keys() == trained.adapter.layers.keys(), "in the model's names"
    lost = whole = 0.0
    for name, layer in made.layers.items():
        exact = sum(dense(each.layers[name]) for each in steps) / 3
        u, sigma, vh = torch.linalg.svd(exact, full_matrices=False)
        assert layer.rank <= 2 and (dense(layer) - u[:, :2] * sigma[:2] @ vh[:2]).norm() < 1e-5 * sigma.norm()
        lost, whole = lost + float(sigma[2:].square().sum()), whole + float(sigma.square().sum())
    assert f"relative error: {100 * (lost / whole) ** 0.5:.3g} % in total" in report
    assert report.startswith(f"The mean of 3 saved steps of {run} is ") and "last step, 4, " in report
    assert "2 x 0.333, 3 x 0.333, 4 x 0.333" in report
    told = made.metadata
    parents = json.loads(told["lora_loom.parents"])
    assert [(each["name"], each["sha256"]) for each in parents] == [
        (f"{run}, step {step}", data_hash(path)) for step, path in zip((2, 3, 4), files, strict=True)
    ]
    how = json.loads(told["lora_loom.merge"])
    assert (how["method"], how["run"], how["steps"], how["decay"]) == ("average", run, [2, 3, 4], 0)
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_learning_rate", "ss_seed", "ss_network_dim"):
        assert told[key] == trained.adapter.metadata[key], key
    last, report = averaged(run, 3, 0.9)
    assert "moving average, decay 0.9, of 2" in report and "3 x 0.9, 4 x 0.1" in report
    assert [each["strength"] for each in json.loads(last.metadata["lora_loom.parents"])] == pytest.approx([0.9, 0.1])


def test_what_cannot_be_averaged_is_a_sentence_before_it_runs(runs: Path) -> None:
    def said(run: str, first: int = 0) -> str:
        return str(AverageSteps.validate_inputs(run, first))

    folder = run_folders.run(runs)
    assert "no run is chosen" in said("None") and "has saved no LoRA" in said(folder.name)
    for gone in ("gone-00000001", "../lora_loom/ink-1234abcd", ".", ""):
        assert "is not in output/lora_loom any more" in said(gone)
    run_folders.lora(folder, 10)
    assert "has saved the steps 10, and an average needs 2" in said(folder.name) and "save_every" in said(folder.name)
    run_folders.lora(folder, 90)
    assert "saved the steps 10, 90" in said(folder.name) and "set from_step lower" in said(folder.name)
    assert said(folder.name, 10) == "True" and AverageSteps.validate_inputs(None, 0) is True
    before = AverageSteps.fingerprint_inputs(run=folder.name, from_step=10)
    run_folders.lora(folder, 90, rank=3)
    assert len(before) == 2 and before != AverageSteps.fingerprint_inputs(run=folder.name, from_step=10)


def test_a_run_of_dora(runs: Path) -> None:
    folder = run_folders.run(runs)
    for step in (10, 20):
        tensors = {"x.lora_down.weight": torch.ones(2, 4), "x.lora_up.weight": torch.ones(4, 2)}
        tensors["x.dora_scale"] = torch.ones(4, 1)
        save.save(folder / f"step_{step:06d}.safetensors", tensors, {}, overwrite=True)
    with pytest.raises(ValueError, match="trained DoRA weights.*set ema_decay in Training Optimizer"):
        averaged(folder.name, 10)
