"""A run gives back what it takes: after several runs in one ComfyUI no tensor and no patcher of theirs is left."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from harness.calls import run_node
from harness.runs import cancelled, on_forward, train
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.validation import TrainingValidation

TRIGGER = "sks"
pytestmark = pytest.mark.usefixtures("runs")


def held() -> tuple[Counter[Any], int]:
    """Tensors by shape and type, and ModelPatchers, that this process can still reach."""
    gc.collect()
    kinds = [(type(each), each) for each in gc.get_objects()]
    tensors = [each for kind, each in kinds if issubclass(kind, torch.Tensor)]
    patchers = sum(issubclass(kind, ModelPatcher) for kind, _ in kinds)
    return Counter((tuple(each.shape), each.dtype) for each in tensors), patchers


def watched(previewed: bool) -> dict[str, Any]:
    previews = run_node(
        TrainingPreviews, prompts="a sks", negative="", every=2, seed=1, strength=1.0, width=64, height=64, steps=2,
        cfg=1.0, sampler_name="euler", scheduler="simple",
    )[0]  # fmt: skip
    widgets = {field.id: field.default for field in TrainingValidation.GET_SCHEMA().inputs}
    validation = run_node(TrainingValidation, **{**widgets, "every": 2, "draws": 1, "keep": "best"})[0]
    return {"previews": previews, "validation": validation} if previewed else {}


def whole(trio: Any, data: Any, **choices: Any) -> None:
    train(trio, data, **choices)


def cut_off(trio: Any, data: Any, **choices: Any) -> None:
    with cancelled(trio, 3):
        train(trio, data, **choices)


def out_of_memory(trio: Any, data: Any, **choices: Any) -> None:
    def fail(number: int) -> None:
        if number >= 3:  # once more is tried
            raise torch.OutOfMemoryError("for the test")

    with on_forward(trio, fail), pytest.raises(torch.OutOfMemoryError):
        train(trio, data, **choices)


@pytest.mark.parametrize(
    ("family", "end", "count", "choices"),
    [
        ("wan_demo", whole, 5, {"previewed": True}),
        ("sd15", whole, 3, {"text_rank": 2}),
        ("flux1", whole, 3, {"offload": 1.0, "memory": "as set"}),
        ("wan_demo", cut_off, 5, {}),
        ("wan_demo", out_of_memory, 3, {}),
    ],
)
def test_runs_leave_nothing(models, data, family: str, end: Callable, count: int, choices: dict[str, Any]) -> None:
    trio = models(family)
    more = {name: value for name, value in choices.items() if name != "previewed"}
    run = partial(end, trio, data, resume="start over", **more, **watched("previewed" in choices))
    run(seed=0)
    comfy.model_management.unload_all_models()
    before = held()
    for seed in range(1, count):
        run(seed=seed)
    comfy.model_management.unload_all_models()
    after = held()
    assert after[0] - before[0] == Counter() and after[1] <= before[1]
