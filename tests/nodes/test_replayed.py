"""Steps replayed from graphs, for which a tape of operators stands: the bytes of steps without, or none is replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import count
from typing import Any

import comfy.model_management
import pytest
import tiny
import torch
from harness.calls import encode
from harness.quiet import quieting_of
from harness.runs import train as run_train
from harness.session import training_session
from harness.tape import Tape, without_casts, without_last
from lora_loom.lora_core.training import replayed
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.pairs import Copied
from lora_loom.lora_core.training.replayed import Replayed
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.trainer import Sample, TrainState, make_optimizer, train
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.session import graphs
from lora_loom.nodes.bridge.session.memory_plan import Planner
from tiny.stored import load_stored
from torch import Tensor
from torch.utils._python_dispatch import _len_torch_dispatch_stack as _len_mode_stack

TEXTS = ("a", "many words, " * 30)
STEPS = 12
CHANCES = LayersConfig(rank_dropout=0.3, max_norm=1.0)


@pytest.fixture(scope="module")
def trios(models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tiny.Loaded]:
    """Models by family, stored and computed in a type."""
    folder = tmp_path_factory.mktemp("stored")

    @cache
    def load(family: str, dtype: str) -> tiny.Loaded:
        whole = models(family)  # those of all tests, before anything is patched
        if dtype == "fp32":
            return whole
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(comfy.model_management, "should_use_bf16", lambda *_, **__: True)
            return replace(whole, model=load_stored(family, folder, dtype))

    return load


@pytest.fixture(scope="module")
def without(trios) -> Callable[[str, str, str], list[Tensor]]:
    """Return what steps without a graph find."""
    return cache(lambda family, dtype, way: steps_of(trios(family, dtype), **WAYS[way]))


def samples_of(trio: tiny.Loaded, denoiser: ComfyDenoiser) -> list[Sample]:
    """Return samples of two shapes with captions of two lengths each; those of one shape are masked."""
    draw, encoded = torch.Generator().manual_seed(0), [encode(trio.clip, text, guidance=1.0) for text in TEXTS]
    samples = []
    for tall in (1, 2):
        for text in encoded:
            latent = torch.randn(tiny.latent_shape(trio.model, 1, tall=tall)[1:], generator=draw)
            condition, kept = denoiser.condition(text, latent), denoiser.condition(encoded[0], latent)
            mask = torch.rand(latent[:1].shape, generator=draw) if tall == 2 else None
            samples.append(Sample(latent, condition, kept, (kept,), mask))
    return samples


def steps_of(
    trio: tiny.Loaded,
    gradient: Replayed | None = None,
    layers: LayersConfig | None = None,
    quiet: bool = False,
    between: Callable[[ComfyDenoiser], object] = lambda _: None,
    **choices: Any,
) -> list[Tensor]:
    """The factors after each step, then the losses; the buffers of graphs are NaN from step to step."""
    config = TrainConfig(**{"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, **choices})
    with torch.inference_mode(), training_session(trio.model, checkpointing=False) as patcher:
        draw, denoiser = torch.Generator().manual_seed(0), ComfyDenoiser(patcher)
        modules = select(patcher.model.diffusion_model, LoraConfig(4), PREFIX)
        own = quieting_of(modules) if quiet else None
        factors = Factors(modules, 4, 3.0, draw, device=patcher.load_device, options=layers, quiet=own)
        samples = samples_of(trio, denoiser)
        batches = Batches([sample.latent.shape for sample in samples], config.batch_size, 1, draw)
        state, found = TrainState(factors, batches, draw, make_optimizer(factors, config)), []
        with attached(factors.branches):
            for _ in train(config, state, denoiser, samples, gradient=gradient):
                found.append(factors.flat.clone())
                for graph in gradient.made.values() if gradient else ():
                    spoilt(graph.inputs + graph.outputs)
                between(denoiser)
        return [*found, torch.tensor(state.losses)]


def spoilt(buffers: list[Tensor]) -> None:
    for buffer in buffers:
        buffer.fill_(float("nan") if buffer.is_floating_point() else 1)


def equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    assert len(found) == len(wanted) and all(each.isfinite().all() for each in wanted)
    assert not torch.equal(wanted[0], wanted[-2])
    return all(map(torch.equal, found, wanted))


WAYS = {
    "plain": {},
    "chances": {
        "layers": CHANCES,
        "caption_dropout": 0.3,
        "steps": 18,
        "objective": ObjectiveConfig(weighting="min_snr"),
    },
    "preserving": {
        "preservation": 0.5,
        "preserve_every": 2,  # batches of a shape are of two kinds then
        "clear_dropout": 1e-9,  # which drops none here, so that there are not too many kinds
        "steps": STEPS // 2,
        "accumulation": 3,  # two of one kind in each step
        "objective": ObjectiveConfig(loss="huber", huber_c=0.1),
    },
    "dora": {"layers": LayersConfig(dora=True)},
    "quiet": {"layers": CHANCES, "quiet": True},
}


@pytest.mark.parametrize(
    ("family", "dtype", "way"),
    [
        ("sd15", "fp32", "chances"), ("sd15", "bf16", "preserving"), ("sd15", "bf16", "dora"),
        ("flux1", "bf16", "plain"), ("flux1", "fp32", "chances"),
        ("flux1", "bf16", "quiet"), ("flux1", "fp32", "quiet"),
    ],
)  # fmt: skip
def test_steps_are_to_the_bit_those_without_a_graph(trios, without, family: str, dtype: str, way: str) -> None:
    tape, told = Tape(), []
    assert equal(steps_of(trios(family, dtype), Replayed(tape, told.append), **WAYS[way]), without(family, dtype, way))
    assert not told and tape.captured >= 2, told
    assert tape.replayed - replayed.HELD * tape.captured >= 4, "steps by the graph alone"


class Shared(Replayed):
    """As on a rank whose picture is all of a batch, then half of one of two: the same shapes, another gradient."""

    calls = 0

    def __call__(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        self.calls += 1
        return super().__call__(*given[:-1], 1.0 if self.calls % 2 else 0.5)


def test_a_share_of_a_batch_has_a_graph_of_its_own(trios) -> None:
    trio, tape, told = trios("sd15", "fp32"), Tape(), []
    plain = Shared(Tape(), told.append)
    plain.graphs = None
    wanted = steps_of(trio, plain, steps=18)
    assert equal(steps_of(trio, Shared(tape, told.append), steps=18), wanted) and not told
    assert tape.replayed > replayed.HELD * tape.captured > 4


@pytest.mark.parametrize("spoil", [without_last, without_casts])
def test_a_wrong_graph_is_found_and_changes_nothing(trios, without, spoil: Callable) -> None:
    tape, told = Tape(spoil), []
    gradient = Replayed(tape, told.append)
    assert equal(steps_of(trios("flux1", "bf16"), gradient), without("flux1", "bf16", "plain"))
    (sentence,) = told
    assert "it found another gradient than the step without it" in sentence
    assert tape.replayed <= replayed.HELD * tape.captured and tape.closed == 1 and not gradient.made


def test_a_step_that_cannot_be_captured_goes_on_without(trios, without, monkeypatch) -> None:
    """Neither half a gradient of the capture nor its mark on the factors' copies stays."""
    scale, tape, told = ComfyDenoiser.output_scale, Tape(), []
    wanted = without("flux1", "bf16", "plain")
    monkeypatch.setattr(ComfyDenoiser, "output_scale", lambda self, sigma: scale(self, sigma) * float(sigma[0] > -1))
    gradient = Replayed(tape, told.append)
    assert equal(steps_of(trios("flux1", "bf16"), gradient), wanted)
    (sentence,) = told
    assert "could not be captured (aten._local_scalar_dense" in sentence and "as here" not in sentence
    assert tape.captured == tape.replayed == 0 and gradient.graphs is None


def test_a_capture_that_breaks_in_the_backward_pass_leaves_nothing(trios, without, monkeypatch) -> None:
    """Half of the gradients are collected by then."""
    tape, told, collect, calls = Tape(), [], Copied.collect, count()

    def breaking(*args: Any) -> Any:
        if _len_mode_stack() and next(calls) == 5:
            raise RuntimeError("out of memory")
        return collect(*args)

    wanted = without("flux1", "bf16", "plain")
    monkeypatch.setattr(Copied, "collect", breaking)
    assert equal(steps_of(trios("flux1", "bf16"), Replayed(tape, told.append)), wanted)
    assert len(told) == 1 and "could not be captured (out of memory)" in told[0]


def test_guests_are_never_captured(trios) -> None:
    trio, tape, told = trios("flux1", "fp32"), Tape(), []
    model = trio.model.clone()
    model.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    steps_of(replace(trio, model=model), Replayed(tape, told.append), steps=4)
    assert tape.captured == 0 and not told


def test_no_more_graphs_than_there_may_be(trios, without, monkeypatch) -> None:
    monkeypatch.setattr(replayed, "MOST", 1)
    tape, told = Tape(), []
    assert equal(steps_of(trios("flux1", "bf16"), Replayed(tape, told.append)), without("flux1", "bf16", "plain"))
    assert tape.captured == 1 and not told and tape.replayed > replayed.HELD


def test_memory_of_graphs_can_be_had_back(trios, without) -> None:
    tape, told = Tape(), []
    gradient = Replayed(tape, told.append)

    def run_out(_denoiser: ComfyDenoiser) -> None:
        if tape.replayed > replayed.HELD * 2:
            gradient.give_up("memory ran out")

    assert equal(steps_of(trios("flux1", "bf16"), gradient, between=run_out), without("flux1", "bf16", "plain"))
    assert told == ["steps are no longer replayed from a graph: memory ran out; they are as right without, and slower"]
    assert tape.closed == 1 and not gradient.made


def test_a_device_that_does_not_repeat_itself_is_held_to_what_it_repeats() -> None:
    right, off = [torch.ones(4), torch.ones(2)], [torch.full((4,), 1.0 + 2**-20), torch.ones(2)]
    assert replayed._near(off, right, off) and not replayed._near(off, right, right)
    assert not replayed._near([torch.full((4,), 1.001), torch.ones(2)], right, off)
    assert not replayed._near([torch.full((4,), float("nan")), torch.ones(2)], right, off)
    assert replayed._same(right, right) and not replayed._same([torch.zeros(1)], [-torch.zeros(1)])


def test_a_run_takes_graphs_when_it_is_asked_to(models, data, runs, monkeypatch, caplog) -> None:
    """And only then, and only where nothing is recomputed; what comes out is the same."""
    tapes: list[Tape] = []
    expected, foreseen = Planner.expected, []
    monkeypatch.setattr(Planner, "expected", lambda *args: foreseen.append(expected(*args)) or foreseen[-1])
    monkeypatch.setattr(graphs, "CudaGraphs", lambda _device: tapes.append(Tape()) or tapes[-1])
    monkeypatch.setattr(graphs, "lacking", lambda _device: "")
    run = partial(run_train, models("flux1"), data, resume="start over", memory="as set", steps=14, batch_size=1)
    plain = run(gradient_checkpointing=False)
    run(gradient_checkpointing=True, cuda_graphs=True)
    assert not tapes and "steps replayed from CUDA graphs" not in caplog.text
    assert "cuda_graphs is not used: gradient_checkpointing is on" in caplog.text
    with caplog.at_level("INFO"):
        again = run(gradient_checkpointing=False, cuda_graphs=True)
    (tape,) = tapes
    assert "steps replayed from CUDA graphs" in caplog.text and "graphs of the step" in caplog.text
    assert tape.replayed > replayed.HELD * tape.captured > 0 and tape.closed == 1
    first, _, last = foreseen
    assert last.step > first.step and last.seconds == 2 * first.seconds, "the first steps are taken with and without"
    assert plain.loss_map == again.loss_map
    assert all(torch.equal(each, again.lora_model[name]) for name, each in plain.lora_model.items())


class Full(Tape):
    """There is no memory for a seventh run."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = super().capture(work)

        def full() -> None:
            if self.replayed == 6:
                raise torch.OutOfMemoryError("out of memory")
            replay()

        return full


def test_a_run_out_of_memory_gives_graphs_up_before_it_steps_again(models, data, runs, monkeypatch, caplog) -> None:
    tape = Full()
    monkeypatch.setattr(graphs, "CudaGraphs", lambda _device: tape)
    monkeypatch.setattr(graphs, "lacking", lambda _device: "")
    run = partial(run_train, models("flux1"), data, resume="start over", memory="as set", steps=10, batch_size=1)
    plain = run(gradient_checkpointing=False)
    assert run(gradient_checkpointing=False, cuda_graphs=True).loss_map == plain.loss_map
    assert tape.replayed == 6 and tape.closed == 1 and "memory ran out in a step" in caplog.text
