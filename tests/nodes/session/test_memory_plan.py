"""The needs of a run are known before its first step: predicted on tensors without memory, held to by real steps."""

from __future__ import annotations

import gc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import psutil
import pytest
import tiny
import torch
from harness.calls import encode, run_node
from lora_loom.lora_core.data.task import LearnPreference
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.meter import Meter
from lora_loom.lora_core.training.plan import GB, SPARE, Measures
from lora_loom.lora_core.training.preference import Preference
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.host.device import leaves_weights_in_ram
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.recast import cast_layers
from lora_loom.nodes.bridge.model.sampling import Sampling, empty_latent, latents, sampling_inside
from lora_loom.nodes.bridge.model.text_encoders import TextDenoiser, text_layers, tokenized
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.session import memory_plan
from lora_loom.nodes.bridge.session.memory_plan import Planner
from lora_loom.nodes.bridge.session.offload import Stream
from lora_loom.nodes.bridge.session.rehearsal import (
    Job,
    Trace,
    _condition,
    _without_memory,
    sampled,
    stored_bytes,
    traced,
)
from lora_loom.nodes.bridge.session.session import aside, blocks, loaded, prepared, trainable
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.previews import TrainingPreviews
from lora_loom.nodes.train_lora import TrainLora
from tiny.stored import load_stored
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FAMILIES = ["sd15", "sd15_full", "flux1", "wan_demo", *tiny.MORE]
SHARES = (0.0, 0.5, 1.0)
WAYS = [Measures(False), Measures(), Measures(True, 0.5), Measures(True, 1.0)]
TEXT = "a red heart"
WINDOWS = "a (blue:1.4) square, " + "many words " * 60  # a weighted word, and several windows of tokens


def job_of(trio: Any, batch: int = 2, **choices: Any) -> Job:
    latent = tiny.latent_shape(trio.model, tall=2)[1:]
    lora = LoraConfig(4, 4.0, choices.pop("preset", "attention"))
    conditioning = encode(trio.clip, TEXT, guidance=1.0)
    conditioning[0][1].update(choices.pop("extra", {}))
    return Job(lora, TrainConfig(batch_size=batch, **choices), latent, conditioning, 64)


def text_job_of(trio: Any, text: str, batch: int = 2, **choices: Any) -> Job:
    """The same with the text encoder trained along."""
    (conditioning,) = tokenized(trio.clip, [text]).values()
    return replace(job_of(trio, batch, **choices), conditioning=conditioning, text_rank=8)


def measured(patcher: Any, job: Job, measures: Measures, meter_of: Any = Meter, clip: Any = None) -> Trace:
    """A real step under the same meter, or another one."""
    with aside(clip and clip.patcher) as encoders, loaded(patcher, measures, text=encoders):
        denoiser = TextDenoiser(patcher, clip) if clip else ComfyDenoiser(patcher)
        layers = select(patcher.model.diffusion_model, job.lora, PREFIX)
        layers |= text_layers(clip.patcher.model, job.lora) if clip else {}
        generator = torch.Generator().manual_seed(0)
        factors = Factors(layers, job.lora.rank, job.lora.alpha, generator, job.text_rank)
        x0 = torch.zeros(job.config.batch_size, *job.latent)
        shown = job.task.shown(x0)
        conditions = [denoiser.condition(deepcopy(job.conditioning), latent) for latent in shown]
        sigma = denoiser.sigma(torch.full((len(x0),), 0.5))
        kept = conditions if job.config.preservation else []
        gc.collect()
        with attached(factors.branches), meter_of(CPU) as meter:
            job.task.add_gradient(job.config, factors, denoiser, x0, torch.zeros_like(shown), sigma, conditions, kept)
        return Trace(meter.peak, meter.work, factors.flat.numel())


@pytest.mark.parametrize("measures", WAYS, ids=str)
@pytest.mark.parametrize("family", ["sd15", "flux1", "kandinsky5", "zimage"])
def test_prediction_against_a_real_step(models, family: str, measures: Measures) -> None:
    job = job_of(models(family))
    with trainable(models(family).model) as patcher:
        found, real = traced(patcher, job, measures), measured(patcher, job, measures)
    assert found.peak == pytest.approx(real.peak, rel=0.02)
    assert (found.work.flops, found.trained) == (real.work.flops, real.trained)
    # some operators come in other parts on tensors without memory; these two only feed the time that is shown
    assert (found.work.launches, found.work.moved) == pytest.approx((real.work.launches, real.work.moved), rel=0.1)


@pytest.mark.parametrize("measures", WAYS[:2], ids=str)
def test_prediction_of_pairs(models, measures: Measures) -> None:
    """Two pictures forward and backward for each pair, and two more forward."""
    single = job_of(models("sd15"))
    job = replace(single, latent=(2, *single.latent), task=Preference(LearnPreference()))
    with trainable(models("sd15").model) as patcher:
        found, real = traced(patcher, job, measures), measured(patcher, job, measures)
        twice = traced(patcher, replace(single, config=TrainConfig(batch_size=4)), measures)
    assert found.peak == pytest.approx(real.peak, rel=0.02) and found.peak >= 0.99 * twice.peak
    assert found.work.flops == real.work.flops and 1.15 < found.work.flops / twice.work.flops < 1.7


@pytest.mark.parametrize(
    ("family", "measures", "text"),
    [("sd15", Measures(False), TEXT), ("sd15", Measures(True, 1.0), WINDOWS), ("sdxl", Measures(), WINDOWS)],
)
def test_prediction_with_text_encoders(models, family: str, measures: Measures, text: str) -> None:
    trio = models(family)
    job = text_job_of(trio, text)
    with trainable(trio.model) as patcher:
        found, real = traced(patcher, job, measures, trio.clip), measured(patcher, job, measures, clip=trio.clip)
        without = traced(patcher, job_of(trio), measures)
    assert found.peak == pytest.approx(real.peak, rel=0.02)
    assert (found.work.flops, found.trained) == (real.work.flops, real.trained)
    assert found.work.flops > without.work.flops and found.trained > without.trained


@pytest.mark.parametrize("family", ["flux1", "flux2", "kandinsky5", "hidream"])
def test_prediction_against_the_allocator(models, family: str) -> None:
    """Torch's profiler counts what a real step allocates, including what operators hold inside (convolutions: more)."""
    job = job_of(models(family), preset="attention+mlp")
    with trainable(models(family).model) as patcher:
        found, real = traced(patcher, job, Measures()), measured(patcher, job, Measures(), Allocated)
    assert found.peak == pytest.approx(real.peak, rel=0.1)


class Allocated:
    """The most bytes that torch's CPU allocator held inside, beyond what it held before."""

    def __init__(self, _: torch.device) -> None:
        self.work, self.peak = None, 0
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)

    def __enter__(self) -> Allocated:
        self.profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.profiler.__exit__(*error)
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            self.peak = max(self.peak, held)


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith(("cascade", "wuerstchen"))])
def test_no_weight_is_used_outside_its_streamed_block(models, family: str) -> None:
    """On a device that is not here, where a weight that was left in RAM does not mix with what is on the device.

    Stable Cascade and Wuerstchen move a constant there, for which torch wants the driver.
    """
    job, model = job_of(models(family), batch=1), models(family).model
    with trainable(model) as patcher, torch.no_grad():
        home, patcher.load_device = patcher.load_device, CUDA
        everything = blocks(patcher.model.diffusion_model)
        with FakeTensorMode(allow_non_fake_inputs=True), _without_memory(patcher.model, everything, CUDA):
            denoiser, stream = ComfyDenoiser(patcher), Stream(CUDA, ahead=True)
            x, sigma = torch.zeros(1, *job.latent, device=CUDA), torch.full((1,), 0.5, device=CUDA)
            with prepared(patcher, Measures(True, 1.0), stream):
                out = denoiser.denoised(x, sigma, [_condition(denoiser, job)])
        patcher.load_device = home
    assert out.shape == x.shape and out.device == CUDA


@pytest.mark.parametrize(
    ("family", "measures", "text"),
    [("sd15", Measures(), False), ("sd15", Measures(), True), ("flux1", Measures(True, 1.0), False)],
)
def test_prediction_of_a_preview(models, family: str, measures: Measures, text: bool) -> None:
    """Compare with what a KSampler holds when it draws from the loaded model one picture larger than those of
    training."""
    trio, wanted = models(family), Sampling(128, 192, 2, 1.0)
    job = replace(text_job_of(trio, TEXT) if text else job_of(trio), config=TrainConfig())
    with trainable(trio.model) as patcher:
        shape = empty_latent(patcher, wanted).shape
        found = sampled(patcher, replace(job, latent=tuple(shape[1:])), measures, trio.clip if text else None)
        conditioning = encode(trio.clip, TEXT, guidance=1.0)
        with loaded(patcher, measures), sampling_inside(patcher):
            with Meter(CPU) as meter:
                latents(patcher, conditioning, conditioning, wanted)
    assert found.peak == pytest.approx(meter.peak, rel=0.06) and not found.kept


def test_casts_that_are_kept_lie_beside_the_decoding(models, tmp_path: Path) -> None:
    with torch.inference_mode():
        half = load_stored("flux1", tmp_path, "fp16")
    with trainable(half) as patcher:
        linear = sum(layer.weight.numel() for layer in cast_layers(patcher.model.diffusion_model, torch.float32))
        job = job_of(models("flux1"), batch=1)
        each, once = (sampled(patcher, job, Measures(keep_casts=keep)).kept for keep in (False, True))
    assert not each and once == pytest.approx(4 * linear, rel=0.1)


def test_preservation_is_counted(models) -> None:
    trio = models("sd15")
    with trainable(trio.model) as patcher:
        plain, kept = (traced(patcher, job_of(trio, preservation=weight), Measures()) for weight in (0.0, 1.0))
        real = measured(patcher, job_of(trio, preservation=1.0), Measures())
    assert kept.work.flops > 1.8 * plain.work.flops
    assert kept.peak == pytest.approx(real.peak, rel=0.02)


def test_a_step_takes_in_the_mean_what_preserving_adds_to_some(models) -> None:
    trio = models("sd15")
    with trainable(trio.model) as patcher:
        planner = Planner(patcher)
        choices = ({}, {"preservation": 1.0}, {"preservation": 1.0, "preserve_every": 8})
        plain, every, eighth = (planner.seconds(job_of(trio, **each), Measures()) for each in choices)
        needs = [planner.need(job_of(trio, **each), Measures()).total for each in choices[1:]]
    assert every > 1.5 * plain and eighth == pytest.approx(plain + (every - plain) / 8)
    assert needs[0] == needs[1]


@pytest.mark.parametrize("family", ["flux1", "anima", "lumina2"])
def test_nothing_of_a_prediction_stays_in_the_model(models, family: str) -> None:
    network = models(family).model.model
    with trainable(models(family).model) as patcher:
        traced(patcher, job_of(models(family)), Measures(True, 0.5))
    held = [value for module in network.modules() for value in vars(module).values()]
    held += [*network.parameters(), *network.buffers()]
    assert not any(isinstance(value, FakeTensor) for value in held)


def test_a_model_is_traced_once(models, monkeypatch) -> None:
    trio, calls = models("sd15"), []
    monkeypatch.setattr(memory_plan, "_traces", {})
    monkeypatch.setattr(memory_plan, "traced", lambda *args: calls.append(args) or traced(*args))
    with trainable(trio.model) as patcher:
        first, second = (Planner(patcher).trace(job_of(trio), Measures()) for _ in range(2))
        Planner(patcher).trace(job_of(trio, batch=1), Measures())
    assert first is second and len(calls) == 2


# -- through the node --------------------------------------------------------------------------------------------------


@pytest.fixture
def data(pictures) -> Any:
    return run_node(LoraDataset, folder=str(pictures), trigger="", resolution=64, repeats=1, bucket_step=16)[0]


def train(trio: Any, data: Any, **changes: Any) -> tuple[Any, ...]:
    inputs = {
        "steps": 2, "rank": 2, "alpha": 2.0, "learning_rate": 1e-3, "targets": "attention", "seed": 7, "batch_size": 2,
        "accumulation": 1, "run_name": "memory", "resume": "start over", **changes,
    }  # fmt: skip
    return run_node(TrainLora, model=trio.model, clip=trio.clip, vae=trio.vae, dataset=data, **inputs)


def with_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """As if so many bytes of RAM were free, which is what a run on the CPU has."""
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=round(size)))


@pytest.mark.parametrize(
    ("family", "text_rank"), [("flux1", 0), ("flux2", 0), ("cascade_c", 0), ("kandinsky5", 0), ("sd15", 2)]
)
def test_measures_change_no_byte(models, data, family: str, text_rank: int) -> None:
    results = [train(models(family), data, offload=share, text_rank=text_rank)[0] for share in SHARES]
    for other in results[1:]:
        assert all(torch.equal(other[key], value) for key, value in results[0].items())


def test_a_run_that_does_not_fit_is_refused(models, data, monkeypatch) -> None:
    with_free(monkeypatch, 2**20)
    with pytest.raises(ValueError, match=r"training needs [\d.]+ GB but 0.00098 GB is free") as refused:
        train(models("flux1"), data, memory="as set", gradient_checkpointing=False, rank=64)
    text = str(refused.value)
    assert text.count(" needs ") == 4 and "gradient_checkpointing on needs" in text and "batch_size 1 needs" in text


def test_previews_that_do_not_fit_are_refused(models, data, monkeypatch) -> None:
    """Where training would fit; smaller ones help."""
    trio = models("flux1")
    shown = {"prompts": "a tree", "negative": "", "every": 0, "steps": 1, "cfg": 1.0, "seed": 0, "strength": 1.0,
             "sampler_name": "euler", "scheduler": "simple"}  # fmt: skip
    large, small = (run_node(TrainingPreviews, **shown, width=side, height=side)[0] for side in (512, 64))
    with_free(monkeypatch, 0.1 * GB)
    for previews in (None, small):
        train(trio, data, previews=previews)
    words = r"training needs ([\d.]+) GB but 0.1 GB is free \(LoRA and optimiser [\d.]+, previews [\d.]+; checkpointing"
    with pytest.raises(ValueError, match=words) as refused:
        train(trio, data, previews=large)
    assert ": smaller previews (half as wide and high) needs " in str(refused.value)


def test_auto_takes_checkpointing_when_it_must(models, data, monkeypatch, caplog) -> None:
    trio = models("flux1")
    with trainable(trio.model) as patcher:
        planner, job = Planner(patcher), job_of(trio)
        plain, again = (planner.need(job, measures).total for measures in (Measures(False), Measures()))
        with_free(monkeypatch, (plain + again) / 2)
        settled, line = planner.settle(job, Measures(False), automatic=True)
        assert settled.measures == Measures() and "(checkpointing, no offload)" in line
        with pytest.raises(ValueError, match="gradient_checkpointing on needs"):
            planner.settle(job, Measures(False), automatic=False)
        with_free(monkeypatch, GB)
        assert planner.settle(job, Measures(False), automatic=True)[0].measures == Measures(False)


def test_auto_casts_once_where_there_is_room(models, tmp_path: Path, monkeypatch) -> None:
    trio = models("flux1")
    with torch.inference_mode():
        half = load_stored("flux1", tmp_path, "fp16")
    for model, cast in ((half, True), (trio.model, False)):
        with trainable(model) as patcher:
            planner, job = Planner(patcher), job_of(trio)
            with_free(monkeypatch, GB)
            assert planner.settle(job, Measures(), automatic=True)[0].measures == Measures(keep_casts=cast)
            assert planner.settle(job, Measures(), automatic=False)[0].measures == Measures()
            each, once = (planner.need(job, Measures(keep_casts=keep)).total for keep in (False, True))
            linear = sum(layer.weight.numel() for layer in cast_layers(patcher.model.diffusion_model, torch.float32))
            assert bool(linear) == cast and (
                once - each == pytest.approx(4 * linear, rel=0.1) if cast else once == each
            )


def test_auto_holds_the_casts_of_a_block_where_there_is_room_for_no_more(models, tmp_path: Path, monkeypatch) -> None:
    """A block's are held while it goes backward: less than all of them, and counted."""
    with torch.inference_mode():
        half = load_stored("flux1", tmp_path, "fp16")
    with trainable(half) as patcher:
        planner, job = Planner(patcher), job_of(models("flux1"))
        each, held, once = (
            planner.need(job, measures).total
            for measures in (Measures(), Measures(hold_casts=True), Measures(keep_casts=True))
        )
        assert each < held < once
        real = measured(patcher, job, Measures(hold_casts=True))
        assert traced(patcher, job, Measures(hold_casts=True)).peak == pytest.approx(real.peak, rel=0.02)
        for free, wanted in (((held + once) / 2 / SPARE, Measures(hold_casts=True)), (each * 1.01, Measures())):
            with_free(monkeypatch, free)
            assert planner.settle(job, Measures(), automatic=True)[0].measures == wanted


@pytest.mark.parametrize("text_rank", [0, 4])
def test_what_is_needed_is_logged_before_the_first_step(models, data, caplog, text_rank: int) -> None:
    with caplog.at_level("INFO", logger="lora_loom"):
        train(models("sd15"), data, text_rank=text_rank)
    assert any("GB free:" in record.message and "s a step" in record.message for record in caplog.records)


def test_weights_that_stay_on_the_device(models) -> None:
    trio = models("flux1")
    with trainable(trio.model) as patcher:
        whole, half, least = (Planner(patcher).resident(Measures(True, share)) for share in (0.0, 0.5, 1.0))
        with_text = Planner(patcher, trio.clip).resident(Measures())
    assert whole == stored_bytes(trio.model.model)
    assert with_text == whole + stored_bytes(trio.clip.cond_stage_model)
    assert 0 < least < half < whole and least < 0.5 * whole


def test_novram_means_that_all_blocks_are_offloaded(models, monkeypatch) -> None:
    """ComfyUI would load no weight, and cast each into a buffer that is used again: the device is the stand-in's."""
    monkeypatch.setattr(memory_plan, "leaves_weights_in_ram", lambda _device: True)
    with trainable(models("flux1").model) as patcher:
        planner, job = Planner(patcher), job_of(models("flux1"), batch=1)
        assert planner.settle(job, Measures(), True)[0].measures.offload == 1
        assert planner.settle(job, Measures(), False)[0].measures.offload == 0, "as set"


def test_what_is_loaded_is_loaded_in_full_under_novram(models, monkeypatch) -> None:
    manager = comfy.model_management
    states, load = [], manager.load_models_gpu
    monkeypatch.setattr(manager, "vram_state", manager.VRAMState.NO_VRAM)
    monkeypatch.setattr(manager, "load_models_gpu", lambda *a, **k: states.append(manager.vram_state) or load(*a, **k))
    assert leaves_weights_in_ram(CUDA) and not leaves_weights_in_ram(CPU)
    with trainable(models("flux1").model) as patcher, loaded(patcher, Measures()):
        assert states == [manager.VRAMState.NORMAL_VRAM]
        assert manager.vram_state == manager.VRAMState.NO_VRAM


@pytest.mark.parametrize("automatic", [True, False], ids=["auto", "as set"])
def test_a_trace_that_fails_stops_no_training(models, data, monkeypatch, caplog, automatic: bool) -> None:
    """Torch's tensors without memory may raise anything, as AssertionError when two threads use them at once."""

    def fails(*_: Any) -> Trace:
        raise AssertionError("in two threads")

    monkeypatch.setattr(memory_plan, "traced", fails)
    with caplog.at_level("INFO", logger="lora_loom"):
        trained = train(models("flux1"), data, memory="auto" if automatic else "as set", gradient_checkpointing=False)
    taken = "checkpointing" if automatic else "no checkpointing"
    line = f"could not be predicted (AssertionError: in two threads); training uses {taken}, no offload, which leaves "
    assert line in caplog.text and trained


def test_an_interrupt_ends_a_trace(models, monkeypatch) -> None:
    def interrupted(*_: Any) -> Trace:
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(memory_plan, "_traces", {})
    monkeypatch.setattr(memory_plan, "traced", interrupted)
    with trainable(models("flux1").model) as patcher:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            Planner(patcher).trace(job_of(models("flux1")), Measures())
