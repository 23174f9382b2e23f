"""Training Validation in ComfyUI: nothing of a run changes by it; it survives a cancel, stops, and keeps the best."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from harness.calls import refusals, run_node
from harness.runs import kept, on_forward
from harness.runs import train as run
from lora_loom.lora_core.files import card
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training import guided
from lora_loom.lora_core.training.config import OptimizerConfig, Validation
from lora_loom.lora_core.training.presets import preset_of
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.bridge.training.validation import Watch, weight_norms
from lora_loom.nodes.validation import TrainingValidation
from safetensors.torch import load_file

WIDGETS = {field.id: field.default for field in TrainingValidation.GET_SCHEMA().inputs}
FAMILIES = ["wan_demo", "sd15", "flux1"]
pytestmark = pytest.mark.usefixtures("runs")
train = partial(run, steps=6)


@pytest.fixture
def stories(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what each run that ends tells."""
    found, story = [], Watch.story

    def listen(self: Watch, *args: Any) -> Any:
        found.append(story(self, *args))
        return found[-1]

    monkeypatch.setattr(Watch, "story", listen)
    return found


def trio_family(trio: Any) -> str:
    return family_of(trio.model).preset_name


def chosen(**changes: Any) -> Validation:
    return run_node(TrainingValidation, **{**WIDGETS, "every": 2, "draws": 2, **changes})[0]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_looking_changes_nothing(models, data, runs: Path, family: str) -> None:
    """All pictures are trained on: the LoRA, the losses and the folder are those of the run without validation."""
    trio = models(family)
    without = train(trio, data)
    folders = list(runs.iterdir())
    seen = train(trio, data, resume="start over", validation=chosen(held_out=0.0))
    assert same(without[0], seen[0]) and without[1] == seen[1] and list(runs.iterdir()) == folders
    assert "training pictures (these cannot show overfitting)" in seen[4]
    assert seen[5].shape == without[5].shape == (1, 512, 1024, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_pictures_are_not_trained_on(models, data, stories: list[Any], family: str) -> None:
    trio = models(family)
    whole, held = train(trio, data), train(trio, data, validation=chosen())
    assert not same(whole.lora_model, held.lora_model)
    bare, watched = (story.record for story in stories)
    assert len(bare.images) == 4 and len(watched.images) == 3
    (picture,) = {index for _, index in stories[1].drawn}
    assert str(picture) not in watched.images
    assert [point.step for point in watched.points] == [2, 4, 6] and len(watched.base) == 2
    assert watched.points[-1].losses != watched.base
    assert 0 < stories[1].cost[0] < stories[1].cost[1]
    assert set(watched.guided) == {"0", "2", "4", "6"} and watched.guided["6"] != watched.guided["0"]
    assert len(watched.guided["0"]) == 1 and bare.guided == {}
    assert "guided answer: error" in held.report and (
        "Use it at" in held.report or "No strength is suggested: at 1" in held.report
    )
    assert [run.adapter.metadata["ss_num_train_images"] for run in (whole, held)] == ["4", "3"]


def test_average_is_what_is_looked_at(models, data, stories: list[Any]) -> None:
    """The EMA lags behind the trained factors, so its losses lie nearer to the base model's."""
    for decay in (0.0, 0.99):
        optimizer = OptimizerConfig(ema_decay=decay)
        train(models("wan_demo"), data, optimizer=optimizer, learning_rate=1e-2, validation=chosen(held_out=0.0))
    trained, average = (story.record for story in stories)
    assert trained.base == average.base and trained.points[-1].losses != average.points[-1].losses


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cancel_inside_validation_comes_soon_and_the_resumed_run_draws_the_same_curve(
    models, data, runs: Path, family: str
) -> None:
    trio, settings = models(family), {"validation": chosen(draws=4), "save_every": 1}
    whole = train(trio, data, **settings)
    files = kept(runs)
    shutil.rmtree(runs)
    answered = guided.STEPS * (1 if preset_of(trio_family(trio)).cfg == 1 else 2)
    asked = 2 + answered + 2 + 2  # the base and its answer, two steps, and the second batch of the first validation

    def cancel(number: int) -> None:
        if number == asked:
            comfy.model_management.interrupt_current_processing()

    with on_forward(trio, cancel) as forwards, pytest.raises(comfy.model_management.InterruptProcessingException):
        train(trio, data, **settings)
    assert len(forwards) == asked, "no other batch is looked at"
    (folder,) = runs.iterdir()
    assert (folder / "step_000002.safetensors").is_file() and not (folder / "best.safetensors").exists()
    again = train(trio, data, **settings)
    assert same(whole[0], again[0]) and whole[1] == again[1]
    after = kept(runs)
    assert {name: after[name] for name in files} == files
    assert whole[4].split("Validation took")[0] == again[4].split("Validation took")[0]


def test_the_strength_to_use_it_at_is_in_report_charts_and_header(models, data, runs: Path, stories: list[Any]) -> None:
    """It changes nothing of the LoRA, and a finished run still has it."""
    trio, held = models("wan_demo"), chosen(draws=8, every=40)
    settings = {"steps": 40, "learning_rate": 3e-3}
    found = train(trio, data, validation=held, **settings)
    curve, facts = stories[0].strength, found.adapter.metadata
    suggested = curve.suggested()
    assert float(facts["lora_loom.strength"]) == suggested.strength and 0 < suggested.strength <= 1
    assert facts["modelspec.usage_hint"] == curve.sentence() and f"{curve.sentence()} (held-out" in found.report
    assert "| strength | of the concept | of what else changes |" in found.report
    assert found.charts.shape == (1, 768, 1024, 3)
    (file,) = runs.rglob("step_000040.safetensors")
    assert card.read(file).strength == facts["lora_loom.strength"] and card.read(file).hint == curve.sentence()
    again = train(trio, data, validation=held, **settings)
    assert len(stories) == 1 and again.adapter.metadata == facts, "it was finished before"


HOT = {
    "learning_rate": 0.3, "steps": 30, "rank": 4, "alpha": 16.0,
    "optimizer": OptimizerConfig(schedule="constant", warmup=28, max_grad_norm=0.0),
}  # fmt: skip


def test_the_best_is_kept_and_is_not_the_last(models, data, runs: Path, stories: list[Any]) -> None:
    """The learning rate rises until the run falls apart."""
    trio = models("wan_demo")
    last = train(trio, data, **HOT, validation=chosen(held_out=0.0, draws=4))
    best = train(trio, data, **HOT, validation=chosen(held_out=0.0, draws=4, keep="best"))
    record, step = stories[1].record, stories[1].verdict.best
    means = record.standing()
    assert stories[0].verdict.kind == "diverged" and "lower the learning rate" in last[4]
    assert not same(last[0], best[0])
    kept_step = min(means, key=means.get)
    (file,) = runs.rglob("best.safetensors")
    found = load_file(file)
    assert all(torch.equal(found[name], value) for name, value in best[0].items())
    assert best[2].metadata["ss_steps"] == str(kept_step) != last[2].metadata["ss_steps"]
    assert step in (0, kept_step) and kept_step < 30


def test_early_stop_ends_the_run_and_stays_where_it_ended(models, data, stories: list[Any]) -> None:
    trio, stop = models("wan_demo"), {"validation": chosen(held_out=0.0, early_stop=True, patience=2)}
    settings = {"steps": 40, "learning_rate": 1e-9}
    ended = train(trio, data, **settings, **stop)
    steps = len(ended[1]["loss"])
    assert steps < 40 and "no measurable gain since step" in ended[4].lower() and stories[-1].verdict.kind == "plateau"
    again = train(trio, data, **settings, **stop)
    assert same(ended[0], again[0]) and len(again[1]["loss"]) == steps
    assert len(train(trio, data, **settings)[1]["loss"]) == 40


def test_text_encoders_and_offload_are_looked_at_too(models, data, stories: list[Any]) -> None:
    train(models("sd15"), data, text_rank=2, validation=chosen(), learning_rate=1e-2, preservation=0.0)
    train(models("flux1"), data, offload=1.0, validation=chosen(), learning_rate=1e-2)
    text, offloaded = (story.record for story in stories)
    assert all(len(record.points) == 3 and record.points[-1].losses != record.base for record in (text, offloaded))
    assert text.windows[-1].text_norm > 0 and len(text.windows[-1].sizes) == 2 and all(text.windows[-1].sizes)


def test_norm_of_a_weight(models) -> None:
    layers = {"q": torch.nn.Linear(64, 32), "conv": torch.nn.Conv2d(4, 8, 3), "large": torch.nn.Linear(1024, 4096)}
    found = weight_norms(layers)
    for name, module in layers.items():
        assert found[name] == pytest.approx(float(module.weight.norm()), rel=0.02 if name == "large" else 1e-5)


def test_too_few_pictures_to_hold_one_out(models, data) -> None:
    from dataclasses import replace

    one = replace(data, examples=data.examples[:1])
    with pytest.raises(ValueError, match="1 of 1 pictures would be held out and none is left"):
        train(models("sd15"), one, validation=chosen())


def test_a_state_from_before_has_no_record(models, data, runs: Path) -> None:
    assert checkpoint.Record().plain()["points"] == []
    assert "must be between" not in refusals_of(every=5)
    assert "bigger than max" in refusals_of(held_out=0.9)


def refusals_of(**changes: Any) -> str:
    from comfy_extras import nodes_preview_any

    import nodes

    nodes.NODE_CLASS_MAPPINGS["PreviewAny"] = nodes_preview_any.PreviewAny
    return refusals({
        "validation": {"class_type": "LoraLoom_Validation", "inputs": {**WIDGETS, **changes}},
        "out": {"class_type": "PreviewAny", "inputs": {"source": ["validation", 0]}},
    })  # fmt: skip


def test_a_run_that_is_ruined_at_once_goes_back_and_says_so_or_ends_with_a_sentence(models, data) -> None:
    trio, choices = models("wan_demo"), {"steps": 20, "batch_size": 1}
    found = run(trio, data, learning_rate=0.3, run_name="once", **choices)
    words = "The learning rate 0.3 was too high: the run went back once and continued with 0.09. "
    words += "Next time choose 0.09 or less"
    losses = found.loss_map["loss"]
    assert found.report.splitlines()[1] == f"{words}." and max(losses[-5:]) < 3 * losses[0]
    words = r"ruined the run by step \d: at equal noise the loss is [\d.]+ times that of step 0, even with .+ below 0.3"
    with pytest.raises(FloatingPointError, match=words):
        run(trio, data, learning_rate=1.0, run_name="twice", **choices)
