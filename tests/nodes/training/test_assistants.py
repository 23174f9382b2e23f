"""Assistants are on in every step of a run, and in nothing else: not in what is looked at, and not in the result."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import encode, relative_error, run_node
from harness.problem import Problem
from harness.runs import cancelled, kept, on_forward, train
from harness.session import training_session
from harness.tape import Tape
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.files.lineage import made_of
from lora_loom.lora_core.stack.rows import Row
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.plan import in_gb
from lora_loom.nodes.bridge.merging.save import save_proven
from lora_loom.nodes.bridge.session import graphs
from lora_loom.nodes.bridge.training.assistants import Assistants, read_assistants
from lora_loom.nodes.bridge.training.checks import warnings
from lora_loom.nodes.bridge.training.validation import Watch
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.validation import TrainingValidation
from safetensors.torch import save_file
from tiny.stored import load_stored
from torch import Tensor

import nodes

INK = [("ink.safetensors", 0.8, 1.0)]
pytestmark = pytest.mark.usefixtures("runs")


def widgets(node: Any, **changes: Any) -> Any:
    given = {field.id: field.default for field in node.GET_SCHEMA().inputs}
    return run_node(node, **{**given, **changes})[0]


@pytest.fixture
def ink(make_lora, loras: Path) -> Path:
    """A loud LoRA for SD 1.5."""
    make_lora("sd15", loras / "ink.safetensors", preset="attention+mlp", size=0.3)
    return loras / "ink.safetensors"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what each run that ends has measured."""
    found, story = [], Watch.story

    def listen(self: Watch, *args: Any) -> Any:
        found.append(self.state.record)
        return story(self, *args)

    monkeypatch.setattr(Watch, "story", listen)
    return found


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(("family", "preset"), [("sd15_full", "linear+conv"), ("flux1", "attention+mlp")])
def test_gradients_are_those_of_a_model_with_it_merged(
    models, make_lora, loras: Path, family: str, preset: str, checkpointing: bool
) -> None:
    trio = models(family)
    for seed, name in enumerate(("one", "two")):
        make_lora(family, loras / f"{name}.safetensors", seed=seed, preset=preset, size=0.2)
    rows, merged = [("one.safetensors", 0.7, 1.0), ("two.safetensors", -0.5, 0.0)], trio.model
    for name, strength, _ in rows:
        merged = nodes.LoraLoaderModelOnly().load_lora_model_only(merged, name, strength)[0]
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]

    def gradient(model: Any, assistants: Assistants | None = None, on: bool = True) -> Tensor:
        with torch.inference_mode(), training_session(model, checkpointing) as patcher:
            problem = Problem.of_model(patcher, conditioning)
            assisting = (assistants or Assistants()).beside(patcher.model, problem.factors.flat.device)
            with attached(assisting.branches):
                if not on:
                    return problem.gradient()
                with assisting.on():
                    return problem.gradient()

    chosen = read_assistants(rows, trio.model)
    found, plain = gradient(trio.model, chosen), gradient(trio.model)
    assert relative_error(found, gradient(merged)) < 1e-4 < 1e-2 < relative_error(found, plain)
    assert relative_error(gradient(trio.model, chosen, on=False), plain) < 1e-5


def test_what_is_looked_at_and_kept_is_without(models, data, ink: Path, records: list[Any]) -> None:
    """The result on the plain model is validated as it was in the run, and is no larger than one without."""
    trio, seen = models("sd15"), {"validation": widgets(TrainingValidation, every=1, draws=2, held_out=0.0)}
    plain = train(trio, data, steps=1, **seen)
    run = train(trio, data, steps=1, learning_rate=0.02, assistants=INK, **seen)
    save_proven(run.adapter, ink.parent / "made.safetensors", "native", torch.float32, trio.model)
    train(trio, data, steps=1, continue_from="made.safetensors", learning_rate=1e-9, **seen)
    without, beside, again = records
    assert beside.base == pytest.approx(without.base, rel=1e-5) and plain.loss_map != run.loss_map
    assert beside.points[0].losses == pytest.approx(again.points[0].losses, rel=1e-4)
    assert beside.points[0].losses != pytest.approx(beside.base, rel=1e-3)
    assert {n: (t.lora_A.shape, t.lora_B.shape) for n, t in run.adapter.layers.items()} == {
        n: (t.lora_A.shape, t.lora_B.shape) for n, t in plain.adapter.layers.items()
    }


def test_steps_alone_are_with_it(models, data, ink: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews, validation and the suggested strength are without."""
    trio, made, beside = models("sd15"), [], Assistants.beside
    monkeypatch.setattr(Assistants, "beside", lambda *args: made.append(beside(*args)) or made[-1])
    found: list[tuple[bool, bool]] = []

    def look(_: int) -> None:
        on = any(not branch.muted for branch in made[0].branches.values()) if made else False
        found.append((torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), on))

    previews = widgets(TrainingPreviews, prompts="a heart", every=1, steps=1, width=64, height=64)
    with on_forward(trio, look):
        train(trio, data, steps=2, assistants=INK, previews=previews, validation=widgets(TrainingValidation, draws=1))
    steps = [on for graded, on in found if graded]
    assert steps and all(steps) and len(steps) == sum(on for _, on in found) < len(found)


def test_header_names_it_and_no_parent(models, data, ink: Path, runs: Path) -> None:
    trio = models("sd15")
    without, run = train(trio, data, steps=1), train(trio, data, steps=1, assistants=INK)
    (told,) = json.loads(run.adapter.metadata["lora_loom.assistants"])
    assert told == {"name": "ink", "sha256": data_hash(ink), "strength": 0.8}
    assert made_of(run.adapter.metadata) == [] and "lora_loom.rights" not in run.adapter.metadata
    assert "lora_loom.assistants" not in without.adapter.metadata
    settings = [json.loads((each / "run.json").read_text())["settings"] for each in runs.iterdir()]
    assert sorted(each.get("assistants", []) for each in settings) == [[], [f"ink {data_hash(ink)[:8]} at 0.8"]]
    again = train(trio, data, steps=1, assistants=[Row("ink.safetensors", 0.8, 0.0)])
    assert len([*runs.iterdir()]) == 2 and again.loss_map == run.loss_map, "its text strength is not used"
    train(trio, data, steps=1, assistants=[("ink.safetensors", 0.7, 1.0)])
    assert len([*runs.iterdir()]) == 3
    train(trio, data, steps=1, assistants=[("ink.safetensors", 0.0, 1.0)])
    assert len([*runs.iterdir()]) == 3, "one that is off on the model is none"


def test_a_cancelled_run_goes_on_to_the_same_bytes(models, data, ink: Path, runs: Path) -> None:
    trio, settings = models("sd15"), {"assistants": INK, "save_every": 1, "steps": 3}
    train(trio, data, **settings)
    whole = kept(runs)
    with cancelled(trio, 2):
        train(trio, data, resume="start over", **settings)
    assert kept(runs) != whole
    train(trio, data, **settings)
    assert kept(runs) == whole


def test_those_that_cannot_be_are_refused_before_anything_is_encoded(
    models, data, make_lora, random_adapter, ink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio = models("sd15")
    monkeypatch.setattr(trio.clip, "encode_from_tokens_scheduled", lambda *_, **__: pytest.fail("encoded"))

    def refused(rows: list[Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            train(trio, data, assistants=rows)

    make_lora("flux1", ink.parent / "flux.safetensors")
    refused([("flux.safetensors", 1.0, 1.0)], "flux.safetensors .*FLUX")
    layer, change = next(iter(random_adapter(trio.model).layers.items()))
    save_file({f"{layer}.diff": change.delta_weight()}, ink.parent / "whole.safetensors")
    refused([("whole.safetensors", 1.0, 1.0)], "the assistant whole holds .* but an assistant must be plain LoRA")
    late = Row("ink.safetensors", 1.0, 1.0, start=0.5)
    refused([late], "ink is on from 0.5 to 1 of sampling, but assistants are on in every step")
    broken = {"lora_down.weight": change.lora_A * torch.nan, "lora_up.weight": change.lora_B}
    save_file({f"{layer}.{name}": value for name, value in broken.items()}, ink.parent / "nan.safetensors")
    refused([("nan.safetensors", 1.0, 1.0)], "NaN or infinite values")


def test_a_model_of_few_steps(models, data) -> None:
    model = models("flux1_schnell").model
    (line,) = [text for text in warnings(model, data, ["schnell_adapter"]) if "distilled" in text]
    assert line == (
        "flux1_schnell.safetensors seems to be distilled for few steps ('schnell'), which only an assistant made for "
        "it keeps: if schnell_adapter is not, train on FLUX.1 dev and use the LoRA with the fast model"
    )


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_tensorwise"])
def test_on_a_quantised_base_gradients_are_those_of_one_that_has_it(
    models, make_lora, loras: Path, tmp_path: Path, form: str
) -> None:
    """Beside its layers, where it is exact, too."""
    trio = models("flux1")
    make_lora("flux1", loras / "one.safetensors", preset="attention+mlp", size=0.3)
    with torch.inference_mode():
        model = load_stored("flux1", tmp_path, form)
        has_it = run_node(LoadLoraStack, model=model, rows="<lora:one:0.7>", apply="beside")[0]
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]

    def gradient(model: Any, assistants: Assistants | None = None) -> Tensor:
        with torch.inference_mode(), training_session(model, False) as patcher:
            problem = Problem.of_model(patcher, conditioning)
            assisting = (assistants or Assistants()).beside(patcher.model, problem.factors.flat.device)
            with attached(assisting.branches), assisting.on():
                return problem.gradient()

    chosen = read_assistants([("one.safetensors", 0.7, 1.0)], model)
    found, wanted, plain = gradient(model, chosen), gradient(has_it), gradient(model)
    assert relative_error(found, wanted) < 0.02 < 0.1 < relative_error(found, plain)  # bf16


def test_replayed_steps_are_with_it(models, data, make_lora, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a run without graphs."""
    make_lora("flux1", loras / "one.safetensors", preset="attention+mlp", size=0.3)
    tapes: list[Tape] = []
    monkeypatch.setattr(graphs, "CudaGraphs", lambda _device: tapes.append(Tape()) or tapes[-1])
    monkeypatch.setattr(graphs, "lacking", lambda _device: "")
    run = partial(
        train, models("flux1"), data, resume="start over", memory="as set", steps=12, batch_size=1,
        gradient_checkpointing=False, assistants=[("one.safetensors", 1.0, 1.0)],
    )  # fmt: skip
    plain, again = run(), run(cuda_graphs=True)
    assert tapes[0].replayed > 0 and plain.loss_map == again.loss_map
    assert all(torch.equal(each, again.lora_model[name]) for name, each in plain.lora_model.items())


def test_the_plan_counts_it(models, data, ink: Path, caplog: pytest.LogCaptureFixture) -> None:
    trio, chosen = models("sd15"), read_assistants(INK, models("sd15").model)
    needs = []
    for assistants in (None, INK):
        caplog.clear()
        with caplog.at_level("INFO"):
            train(trio, data, steps=1, assistants=assistants, resume="start over")
        needs += [line for line in caplog.text.splitlines() if "GB free: " in line]
    without, beside = needs
    assert "assistants" not in without and f"assistants {in_gb(chosen.bytes())}" in beside
