"""Training Previews: what KSampler would show, and a run that ends in the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import pytest
import torch
from harness.calls import encode, loaded, run_node
from harness.runs import STEPS, cancelled, kept, on_forward, read
from harness.runs import train as run
from lora_loom.lora_core.drawing.sheet import SheetRow, sheet
from lora_loom.lora_core.training import trainer
from lora_loom.nodes.bridge.host.node_outputs import as_picture
from lora_loom.nodes.previews import TrainingPreviews
from PIL import Image

import nodes

TRIGGER = "sks"
pytestmark = pytest.mark.usefixtures("runs")
train = partial(run, alpha=4.0, learning_rate=0.1, lr_schedule="constant", preserve="cat", quiet="off")
SAMPLING = {"width": 64, "height": 96, "steps": 3, "cfg": 2.5, "sampler_name": "euler_ancestral", "scheduler": "simple"}


def previews(**changes: Any) -> Any:
    inputs = {"prompts": "a sks in the sun\na tree", "negative": "dull", "every": 2, "seed": 11, "strength": 1.0}
    return run_node(TrainingPreviews, **{**inputs, **SAMPLING, **changes})[0]


def pages(runs: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)).astype(int) for path in sorted(runs.rglob("step_*.png"))}


def drawn(trio: Any, model: Any, clip: Any, prompt: str, seed: int = 11) -> Image.Image:
    """By KSampler and VAE Decode."""
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(SAMPLING["width"], SAMPLING["height"])
        (samples,) = nodes.common_ksampler(
            model, seed, SAMPLING["steps"], SAMPLING["cfg"], SAMPLING["sampler_name"], SAMPLING["scheduler"],
            encode(clip, prompt), encode(clip, "dull"), latent,
        )  # fmt: skip
        (pixels,) = nodes.VAEDecode().decode(trio.vae, samples)
    return as_picture(pixels)


@cache
def untouched(trio: Any, prompt: str) -> Image.Image:
    """Return what the model draws without a LoRA, which no test changes."""
    return drawn(trio, trio.model, trio.clip, prompt)


PROMPTS = (("a sks in the sun", "a cat in the sun"), ("sks, a tree", "cat, a tree"))


def expected(trio: Any, step: int, name: str | None, strength: float = 1.0) -> np.ndarray:
    """The sheet, of KSampler's pictures with a file that ComfyUI's own loader applies."""
    model, clip = trio.model, trio.clip
    if name:
        model, clip = nodes.LoraLoader().load_lora(trio.model, trio.clip, name, strength, strength)
    rows = []
    for prompts in PROMPTS:
        both = [(untouched(trio, p), drawn(trio, model, clip, p) if name else untouched(trio, p)) for p in prompts]
        labels = ["base", f"step {step}"] * 2
        rows.append(SheetRow("  |  ".join(prompts), [picture for pair in both for picture in pair], labels))
    return np.asarray(sheet(rows, f"step {step} of {STEPS}")).astype(int)


STREAMED = {"offload": 1.0, "memory": "as set"}


@pytest.fixture(scope="module")
def plain(models, data, comfy_base: Path) -> Callable[..., dict[str, bytes]]:
    """Return what a run without previews leaves on disk, which is made once of each model and then taken away."""
    folder = comfy_base / "output" / "lora_loom"

    @cache
    def made(family: str, **choices: Any) -> dict[str, bytes]:
        train(models(family), data, **choices)
        found = kept(folder)
        shutil.rmtree(folder)
        return found

    return made


@pytest.mark.parametrize(("family", "choices"), [("sd15", {}), ("flux1", STREAMED), ("wan_demo", {})])
def test_same_bytes_with_and_without(models, data, plain, runs: Path, family: str, choices: dict) -> None:
    trio = models(family)
    before = loaded(trio.model)
    without = plain(family, **choices)
    assert len(without) == 2
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    page = train(trio, data, previews=previews(), **choices)[3]
    assert kept(runs) == without
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert (np.random.get_state()[1] == states[1]).all()
    found = pages(runs)
    assert list(found) == ["step_000000", "step_000002", "step_000004"]
    assert np.abs(page[0].numpy() * 255 - found["step_000004"]).max() < 0.6
    assert all(torch.equal(value, before[key]) for key, value in trio.model.model.state_dict().items())
    assert not comfy.model_management.in_training and trio.model.model.current_patcher is None


@pytest.mark.parametrize(
    ("family", "strength", "choices"),
    [("sd15", 1.0, {}), ("sd15", 1.0, {"text_rank": 2}), ("flux1", 0.6, STREAMED), ("wan_demo", 0.6, {})],
)
def test_a_preview_is_what_ksampler_makes_with_the_lora_of_that_step(
    models, data, runs: Path, loras: Path, family: str, strength: float, choices: dict
) -> None:
    trio = models(family)
    with watched(trio, cancel_in_step(3)), pytest.raises(comfy.model_management.InterruptProcessingException):
        train(trio, data, previews=previews(strength=strength), **choices)
    (folder,) = runs.iterdir()
    shutil.copy(folder / "step_000002.safetensors", loras / "two.safetensors")
    found = pages(runs)
    assert list(found) == ["step_000000", "step_000002"]
    assert np.abs(found["step_000000"] - expected(trio, 0, None)).max() <= 1, "the base model"
    wanted = expected(trio, 2, "two.safetensors", strength)
    assert np.abs(found["step_000002"] - wanted).max() <= 2
    assert np.abs(wanted - expected(trio, 2, "two.safetensors", strength * 0.9)).max() > 4, "the strength is seen"


def watched(trio: Any, call: Callable[[bool], None]) -> AbstractContextManager[list[int]]:
    """Calls `call(in_preview)` before each forward of the diffusion network."""
    return on_forward(trio, lambda _: call(not torch.is_grad_enabled()))


def cancel_in_step(number: int) -> Callable[[bool], None]:
    """At the number-th forward of training."""
    done = [0]

    def call(in_preview: bool) -> None:
        done[0] += not in_preview
        comfy.model_management.interrupt_current_processing(done[0] == number)

    return call


def test_cancelled_inside_a_preview(models, data, plain, runs: Path) -> None:
    trio, without, trained = models("wan_demo"), plain("wan_demo"), [0]

    def cancel(in_preview: bool) -> None:
        trained[0] += not in_preview
        if in_preview and trained[0] == 2:
            comfy.model_management.interrupt_current_processing(True)

    with watched(trio, cancel), pytest.raises(comfy.model_management.InterruptProcessingException):
        train(trio, data, previews=previews())
    assert list(pages(runs)) == ["step_000000"]
    assert {Path(name).name for name in kept(runs)} == {"state.safetensors", "step_000002.safetensors"}
    train(trio, data, previews=previews())
    assert list(pages(runs)) == ["step_000000", "step_000002", "step_000004"]
    assert {name: kept(runs)[name] for name in without} == without


def test_steps_that_are_done_again_have_no_preview_until_then(models, data, runs: Path, monkeypatch) -> None:
    """A run that diverges twice, and one that starts over and is cut off."""
    trio = models("wan_demo")
    with monkeypatch.context() as patched, pytest.raises(FloatingPointError):
        patched.setattr(trainer, "diverged", lambda losses: len(losses) == 3)
        train(trio, data, previews=previews())
    assert list(pages(runs)) == ["step_000000"]
    train(trio, data, previews=previews(), resume="start over")
    assert list(pages(runs)) == ["step_000000", "step_000002", "step_000004"]
    with cancelled(trio, 16):
        train(trio, data, previews=previews(), resume="start over")
    assert list(pages(runs)) == ["step_000000"]


def test_a_finished_run_shows_its_last_sheet_again(models, data, runs: Path) -> None:
    trio, forwards = models("wan_demo"), []
    page = train(trio, data, previews=previews())[3]
    with watched(trio, forwards.append):
        assert torch.equal(train(trio, data, previews=previews())[3], page)
        assert not forwards
        assert not torch.equal(train(trio, data, previews=previews(seed=12))[3], page), "other settings, other pictures"
    assert forwards and all(forwards)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_in_a_preview_does_not_end_the_run(
    models, data, plain, runs: Path, caplog, error: type[Exception]
) -> None:
    trio, calls, without = models("wan_demo"), [], plain("wan_demo")
    kind = comfy.model_management.OOM_EXCEPTION if issubclass(error, RuntimeError) else error

    def fail(in_preview: bool) -> None:
        calls.append(in_preview)
        if in_preview and calls.count(False) == 2:
            raise kind("for the test")

    with watched(trio, fail):
        train(trio, data, previews=previews())
    assert calls.count(False) == STEPS and kept(runs) == without
    assert [line for line in caplog.messages if "without previews" in line] and list(pages(runs)) == ["step_000000"]
    assert calls[calls.index(False) :].count(True) == 1, "none is tried again"


def test_another_error_is_not_hidden(models, data) -> None:
    def fail(in_preview: bool) -> None:
        if in_preview:
            raise RuntimeError("a fault")

    with watched(models("wan_demo"), fail), pytest.raises(RuntimeError, match="a fault"):
        train(models("wan_demo"), data, previews=previews())


def test_the_vae_comes_and_goes_and_the_model_stays(models, data) -> None:
    """While it trains, ComfyUI's list holds the model; the VAE is off the device after each preview."""
    trio, seen = models("wan_demo"), []

    def look(in_preview: bool) -> None:
        networks = [entry.model.model for entry in comfy.model_management.current_loaded_models]
        seen.append((in_preview, trio.model.model in networks, trio.vae.first_stage_model in networks))

    with watched(trio, look):
        train(trio, data, previews=previews())
    assert {entry[1:] for entry in seen if not entry[0]} == {(True, False)}
    assert {entry[1] for entry in seen if entry[0]} == {False}, "sampling can move what it sees"


def test_without_a_trigger_there_is_one_kind_of_picture(models, runs: Path, pictures: Path) -> None:
    data = read(pictures)
    train(models("wan_demo"), data, previews=previews(prompts="a tree", every=0, width=0, height=0))
    ((name, page),) = pages(runs).items()
    assert name == "step_000004" and page.shape[1] == 2 * (64 + 8) + 8


def test_no_previews_is_a_valid_picture(models, data) -> None:
    assert train(models("wan_demo"), data, steps=1)[3].shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("choices", "words"), [({"prompts": ""}, "no prompt"), ({"width": 72, "height": 60}, "72 x 60 is not a multiple")]
)
def test_refused_before_anything_is_encoded(models, pictures: Path, choices: dict, words: str) -> None:
    data = read(pictures)
    with pytest.raises(ValueError, match=words):
        train(models("wan_demo"), data, previews=previews(**choices))
