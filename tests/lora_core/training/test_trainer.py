"""The loop: the same seed gives the same bytes, cut off or not, and nothing broken reaches the factors."""

from __future__ import annotations

import math
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.toy import CHANNELS, CONFIG, SHAPES, Run, Toy, config_of, make_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.adapter import TEXT_PREFIX
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training import objective, schedules, validation
from lora_loom.lora_core.training.config import OPTIMIZERS, SCHEDULES, LoraConfig, OptimizerConfig, Recipe, TrainConfig
from lora_loom.lora_core.training.health import Health
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.layers import LayersConfig, parse_rules
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.sample import place_weights
from lora_loom.lora_core.training.trainer import Sample, StepResult, Trouble, train
from torch import Tensor

TEXT_LAYER = TEXT_PREFIX + "leave"


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, list[StepResult]]:
    """The run nobody disturbs."""
    run = Run()
    results = run.go()
    return run.bytes(), results


# --- determinism ---


def test_the_same_seed_gives_the_same_bytes(whole):
    run = Run()
    results = run.go()
    assert run.bytes() == whole[0] and results == whole[1]
    assert run.state.step == len(results) == CONFIG.steps and [r.step for r in results] == list(range(1, 13))
    assert run.state.losses == [result.loss for result in results]


def test_the_globals_have_no_say(whole):
    torch.manual_seed(1234)
    run = Run()
    run.go(4)
    torch.rand(7)
    run.go()
    assert run.bytes() == whole[0]


@pytest.mark.parametrize(
    "change",
    [dict(seed=12), dict(learning_rate=3.1e-3), dict(accumulation=3), dict(batch_size=1), dict(caption_dropout=1.0),
     *(dict(objective=replace(CONFIG.objective, **choice)) for choice in (
         dict(weighting="none"), dict(snr_gamma=0.5), dict(timesteps="uniform"), dict(loss="huber"),
         dict(logit_mean=0.5), dict(logit_std=0.5),
         dict(noise_offset=0.1), dict(timesteps="mode"), dict(timesteps="resolution_shifted"))),
     *(dict(optimizer=OptimizerConfig(**{"warmup": 3, **choice})) for choice in (
         dict(schedule="constant"), dict(warmup=0), dict(max_grad_norm=1e-3), dict(weight_decay=0.5), dict(beta1=0.8),
         dict(beta2=0.9), dict(eps=1e-3)))],
    ids=str,
)  # fmt: skip
def test_every_choice_changes_the_result(whole, change):
    run = Run(replace(CONFIG, **change))
    run.go()
    assert run.bytes() != whole[0]


def test_the_shift_changes_the_shifted_law():
    runs = [Run(replace(CONFIG, objective=ObjectiveConfig(timesteps="shifted", shift=shift))) for shift in (1.0, 4.0)]
    for run in runs:
        run.go(3)
    assert runs[0].bytes() != runs[1].bytes()


# --- what a step is ---


@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
def test_a_toy_problem_is_learnt(weighting):
    """All latents are one constant picture, which a few steps of a rank-3 path can tell from noise."""
    samples = [Sample(torch.full((CHANNELS, 6, 6), 1.5), 0.0, -9.0)] * 4
    choices = ObjectiveConfig(weighting=weighting)
    config = TrainConfig(150, 2e-2, batch_size=4, objective=choices, caption_dropout=0.0)
    run = Run(config, samples)
    run.go()
    first, last = (sum(part) / 20 for part in (run.state.losses[:20], run.state.losses[-20:]))
    assert last < 0.6 * first


def test_one_step_is_adamw_on_the_mean_gradient_of_its_micro_batches():
    """Against torch's own AdamW over separate tensors, without flat buffers, hooks or generators' bookkeeping."""
    config = replace(CONFIG, steps=1, optimizer=OptimizerConfig(schedule="constant", max_grad_norm=1e9))
    run = Run(config)
    before = {name: pair.to(torch.float32) for name, pair in run.state.factors.low_ranks().items()}
    gradients: list[Tensor] = []
    original = run.state.optimizer.step
    run.state.optimizer.step = lambda: (gradients.append(run.state.factors.flat.grad.clone()), original())[1]
    (result,) = run.go()
    parts = [t for pair in before.values() for t in (pair.lora_A, pair.lora_B)]
    leaves = [part.clone().requires_grad_() for part in parts]
    for leaf, grad in zip(leaves, gradients[0].split([leaf.numel() for leaf in leaves]), strict=True):
        leaf.grad = grad.view(leaf.shape).clone()
    torch.optim.AdamW(leaves, lr=config.learning_rate, weight_decay=0.01).step()
    expected = torch.cat([leaf.detach().flatten() for leaf in leaves])
    torch.testing.assert_close(run.state.factors.flat, expected, rtol=1e-6, atol=1e-9)
    assert result.grad_norm == pytest.approx(float(gradients[0].double().norm()), rel=1e-5)
    assert not run.state.factors.flat.grad.any()


def test_accumulation_is_the_mean_over_micro_batches():
    """A batch of four in one forward, and the same four one by one, are one gradient when noise is shared."""
    samples = [Sample(torch.full((CHANNELS, 2, 2), float(i)), float(i), -9.0) for i in range(4)]
    grads, losses = [], []
    for size, accumulation in ((4, 1), (1, 4), (2, 2)):
        config = TrainConfig(steps=1, batch_size=size, accumulation=accumulation, caption_dropout=0.0)
        run = Run(replace(config, optimizer=OptimizerConfig(max_grad_norm=1e9)), samples)
        run.toy.noised = lambda x0, noise, sigma: x0 * 0.5  # what is drawn has no say
        run.toy.sigma = lambda u: torch.full_like(u, 0.5)
        kept: list[Tensor] = []
        original = run.state.optimizer.step
        run.state.optimizer.step = lambda f=run.state.factors, k=kept, o=original: (k.append(f.flat.grad.clone()), o())
        (result,) = run.go()
        grads += kept
        losses.append(result.loss)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_gradients_are_clipped_to_the_norm_but_reported_whole(limit):
    run, seen = Run(replace(CONFIG, steps=1, optimizer=OptimizerConfig(max_grad_norm=limit))), []
    original = run.state.optimizer.step
    run.state.optimizer.step = lambda: (seen.append(float(run.state.factors.flat.grad.norm())), original())
    (result,) = run.go()
    assert result.grad_norm > 1e-2
    assert seen == pytest.approx([min(limit, result.grad_norm)], rel=1e-5)


def test_dropped_captions_take_that_samples_unconditional():
    unconditional = [-float(i) - 1 for i in range(len(SHAPES))]
    shares = {}
    for dropout in (0.0, 0.25, 1.0):
        run = Run(replace(CONFIG, steps=100, caption_dropout=dropout))
        run.go()
        told = [value for batch in run.toy.seen for value in batch]
        shares[dropout] = sum(value < 0 for value in told) / len(told)
        assert set(told) <= set(unconditional) | {float(i) for i in range(len(SHAPES))}
    assert shares[0.0] == 0 and shares[1.0] == 1 and shares[0.25] == pytest.approx(0.25, abs=0.06)


def rate_of(step: int) -> float:
    return schedules.rate(CONFIG.optimizer, CONFIG.steps, step, CONFIG.learning_rate)


def test_the_optimiser_uses_the_rate_that_is_reported():
    run, used = Run(), []
    original = run.state.optimizer.step
    run.state.optimizer.step = lambda: (used.append(run.state.optimizer.param_groups[0]["lr"]), original())
    results = run.go()
    assert used == [result.learning_rate for result in results] == [rate_of(i) for i in range(12)]


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_a_text_encoder_has_its_own_rate_in_the_same_schedule_and_clipping(limit):
    """The first step of AdamW moves every entry by its rate, whatever the gradient; weight decay is off."""
    optimizer = OptimizerConfig(warmup=4, max_grad_norm=limit, weight_decay=0.0)
    run = Run(replace(CONFIG, optimizer=optimizer), last=TEXT_LAYER)
    before = run.state.factors.flat.clone()
    (result,) = run.go(1)
    assert result.learning_rate == pytest.approx(3e-3 / 4)
    moved = (run.state.factors.flat - before).abs()
    for part, rate in zip(
        moved.tensor_split([run.state.factors.parts[0].flat.numel()]), (3e-3 / 4, 0.02 / 4), strict=True
    ):
        assert part.max() == pytest.approx(rate, rel=1e-2 if not limit else 0.1)


def test_text_encoders_at_the_models_rate_are_like_any_other_layer():
    """One buffer and one norm for both: two rates that are equal train as one."""
    one, two = Run(), Run(last=TEXT_LAYER, text=(CONFIG.learning_rate, 3))
    assert [r.loss for r in one.go()] == pytest.approx([r.loss for r in two.go()], rel=1e-6)
    assert torch.allclose(one.state.factors.flat, two.state.factors.flat, rtol=1e-5, atol=1e-7)


# --- what must not reach the factors ---


def snapshot(run: Run) -> tuple:
    states = enumerate(run.state.optimizer.state.values())
    frozen = {(i, name): value.numpy().tobytes() for i, values in states for name, value in values.items()}
    frozen["ema"] = b"" if run.state.ema is None else run.state.ema.numpy().tobytes()
    draws = run.state.generator.get_state().tolist(), [list(batch) for batch in run.state.batches.queue]
    return run.bytes(), frozen, draws, run.state.step, list(run.state.losses)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("good_steps", [0, 3])
def test_a_loss_that_is_not_finite_is_dropped_before_the_factors(value, good_steps):
    run = Run()
    run.go(good_steps)
    before = snapshot(run)
    run.samples[:] = [replace(s, latent=torch.full_like(s.latent, value)) for s in run.samples]
    assert_the_next_step_is_dropped(run, before, rf"step {good_steps + 1} was dropped: the loss was \w+")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loss_that_is_not_finite_reaches_no_optimiser_and_no_average(name):
    run = Run(config_of(name, ema_decay=0.0 if OPTIMIZERS[name].averages else 0.9), last=TEXT_LAYER)
    run.go(3)
    before = snapshot(run)
    run.samples[:] = [replace(s, latent=torch.full_like(s.latent, math.nan)) for s in run.samples]
    assert_the_next_step_is_dropped(run, before, "step 4 was dropped: the loss was nan")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_dropped_before_the_factors(value, monkeypatch):
    """Backward may overflow although the loss was finite, as in fp16."""
    run = Run()
    run.go(3)
    before, backward = snapshot(run), torch.Tensor.backward

    def overflowing(loss: Tensor) -> None:
        backward(loss)
        run.state.factors.branches["leave"].lora_B.grad[0, 0] = value

    monkeypatch.setattr(torch.Tensor, "backward", overflowing)
    assert_the_next_step_is_dropped(run, before, r"step 4 was dropped: the gradient norm was \w+")


def assert_the_next_step_is_dropped(run: Run, before: tuple, words: str) -> None:
    """Only the draws move on."""

    class SeenError(Exception):
        pass

    def stop(trouble: Trouble) -> None:
        assert re.fullmatch(words, trouble.text) and trouble.step == run.state.step
        raise SeenError

    with attached(run.state.factors.branches), pytest.raises(SeenError):
        list(train(run.config, run.state, run.toy, run.samples, stop))
    after = snapshot(run)
    assert (*after[:2], *after[3:]) == (*before[:2], *before[3:]) and after[2] != before[2]
    assert not run.state.factors.flat.grad.any() and run.state.health == Health(dropped=1, in_row=1)


# --- cut off and taken up again ---


def resumed(run: Run, folder: Path) -> Run:
    """Resume the run as a new process does: everything from the configuration, then the file."""
    checkpoint.save(folder / "run.safetensors", run.state, "print")
    fresh = run.again()
    checkpoint.load(folder / "run.safetensors", fresh.state, "print")
    return fresh


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 11), min_size=1, max_size=3, unique=True).map(sorted))
def test_resuming_anywhere_ends_in_the_same_bytes(tmp_path, whole, cuts):
    run, results = Run(), []
    for cut in cuts:
        results += run.go(cut - run.state.step)
        assert run.state.step == cut
        run = resumed(run, tmp_path)
        assert run.state.step == cut and run.state.losses == [result.loss for result in results]
    results += run.go()
    assert run.bytes() == whole[0] and results == whole[1] and run.state.losses == [r.loss for r in whole[1]]


OPTIONS = {
    "rslora": LayersConfig("alpha / sqrt(rank)"),
    "lora+": LayersConfig(lora_plus_ratio=16.0),
    "rank dropout": LayersConfig(rank_dropout=0.4),
    "layer dropout": LayersConfig(layer_dropout=0.4),
    "norm cap": LayersConfig(max_norm=0.05),
    "rules": LayersConfig(rules=parse_rules("enter = rank 2, rate 0.5")),
    "all": LayersConfig("alpha / sqrt(rank)", 4.0, 0.2, 0.2, 0.05, parse_rules("enter = rank 2, alpha 4, rate 0.5")),
}


def with_masks() -> list[Sample]:
    """The samples, with a mask on every second and half of them of the class."""
    masks = [torch.rand(1, *shape, generator=torch.Generator().manual_seed(5)) for shape in SHAPES]
    return [
        replace(sample, mask=mask if i % 2 else None, prior=i % 3 == 0)
        for i, (sample, mask) in enumerate(zip(make_samples(), masks, strict=True))
    ]


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True).map(sorted))
def test_every_option_of_layers_and_objective_resumes_in_the_same_bytes(tmp_path, whole, name, cuts):
    """A cut falls in the middle of a step, too: its draws are undone."""
    choices = ObjectiveConfig("huber", timesteps="mode", noise_offset=0.1, unmasked=0.2, prior_weight=0.5)
    config = replace(CONFIG, objective=choices if name == "all" else CONFIG.objective)
    samples, ends = with_masks() if name == "all" else make_samples(), []
    for stops in ([], cuts):
        run = Run(config, samples, TEXT_LAYER, options=OPTIONS[name])
        for cut in stops:
            run.go(cut - run.state.step)
            run = resumed(broken_off(run), tmp_path)
        run.go()
        ends.append((run.bytes(), run.state.losses))
    assert ends[0] == ends[1] and run.state.step == 12 and run.bytes() != whole[0]


def broken_off(run: Run) -> Run:
    """The run, cancelled in the second forward of its next step."""

    def cancel(call: int, last: int = run.toy.calls + 2) -> None:
        if call == last:
            raise KeyboardInterrupt

    run.toy.on_call = cancel
    with suppress(KeyboardInterrupt):
        run.go(1 if run.state.step < run.config.steps else 0)
    return run


def test_neither_options_at_their_defaults_nor_masks_of_one_change_a_bit(whole):
    masked = [replace(sample, mask=torch.ones(1, *sample.latent.shape[1:])) for sample in make_samples()]
    for run in (
        Run(options=LayersConfig()),
        Run(samples=masked),
        Run(samples=[replace(s, prior=True) for s in masked]),
    ):
        run.go()
        assert run.bytes() == whole[0]


def test_class_images_weigh_what_was_asked_for():
    """At weight 0 they are not learned from; the others learn as in a batch of which only they count."""
    class_only = [replace(sample, prior=True) for sample in make_samples()]
    still = Run(replace(CONFIG, objective=replace(CONFIG.objective, prior_weight=0.0)), class_only)
    before = still.state.factors.flat.clone()
    result = still.go(1)[0]
    assert result.loss == result.grad_norm == 0 and torch.allclose(still.state.factors.flat, before, rtol=1e-4)
    half = Run(replace(CONFIG, objective=replace(CONFIG.objective, prior_weight=0.5)), class_only).go(1)[0]
    plain = Run().go(1)[0]
    assert (half.loss, half.grad_norm) == (pytest.approx(plain.loss / 2), pytest.approx(plain.grad_norm / 2))


def test_validation_looks_through_the_masks_of_the_run():
    """A mask that hides everything leaves no loss, and half of a mask's weight half of it."""
    draws = [validation.Draw(0, 0.4, 1), validation.Draw(0, 0.7, 2)]

    def looked(mask: float | None) -> list[float]:
        sample = make_samples()[0]
        weights = None if mask is None else torch.full_like(sample.latent[:1], mask)
        run = Run(samples=[replace(sample, mask=weights)])
        with attached(run.state.factors.branches):
            return validation.measure(draws, run.config, run.state, run.toy, run.samples)

    plain = looked(None)
    assert all(plain) and looked(0.0) == [0.0, 0.0] and looked(1.0) == pytest.approx(plain)
    assert looked(0.5) == pytest.approx([loss / 2 for loss in plain])


def test_unmasked_weighs_what_the_mask_leaves_out():
    mask = torch.zeros(1, 4, 6)
    mask[..., :3] = 0.5
    sample = Sample(torch.zeros(CHANNELS, 4, 6), 0.0, 0.0, mask=mask)
    plain, other = replace(sample, mask=None), replace(sample, mask=None, prior=True)
    weights = place_weights(ObjectiveConfig(unmasked=0.2, prior_weight=3.0), [sample, plain, other])
    assert weights.shape == (3, 1, 4, 6) and weights[1].eq(1).all() and weights[2].eq(3).all()
    assert weights[0, ..., :3].eq(0.6).all() and torch.allclose(weights[0, ..., 3:], torch.tensor(0.2))
    assert place_weights(ObjectiveConfig(), [plain]) is None


def test_lora_plus_is_adamw_with_two_groups():
    """Bit for bit: the gradients of the run are given to a reference with one group for all A and one for all B."""
    run = Run(options=LayersConfig(lora_plus_ratio=16.0))
    state, rates = run.state, (CONFIG.learning_rate, 16 * CONFIG.learning_rate)
    a, b = ([getattr(branch, name) for branch in state.factors.branches.values()] for name in ("lora_A", "lora_B"))
    copies = [torch.cat([leaf.detach().flatten() for leaf in leaves]) for leaves in (a, b)]
    reference = torch.optim.AdamW([{"params": [copy]} for copy in copies], weight_decay=0.01, fused=True)
    step = state.optimizer.step

    def both() -> None:
        for copy, leaves, group, peak in zip(copies, (a, b), reference.param_groups, rates, strict=True):
            copy.grad = torch.cat([leaf.grad.flatten() for leaf in leaves])
            group["lr"] = schedules.rate(CONFIG.optimizer, CONFIG.steps, state.step, peak)
        reference.step()
        step()

    state.optimizer.step = both
    run.go()
    assert len(state.factors.parts) == 2
    for copy, leaves in zip(copies, (a, b), strict=True):
        assert torch.equal(copy, torch.cat([leaf.detach().flatten() for leaf in leaves]))


def test_the_norm_cap_holds_after_every_step_and_leaves_small_layers_alone():
    free, capped = Run(), Run(options=LayersConfig(max_norm=0.02))
    free.go()
    largest = max(layer.norm() for layer in free.state.factors.low_ranks().values())
    assert largest > 0.04
    for _ in capped.steps():
        assert all(layer.norm() <= 0.02 * (1 + 1e-5) for layer in capped.state.factors.low_ranks().values())
    never = Run(options=LayersConfig(max_norm=2 * largest))
    never.go()
    assert never.bytes() == free.bytes()


def test_a_capped_run_s_average_is_capped_too():
    run = Run(replace(CONFIG, optimizer=OptimizerConfig(ema_decay=0.9)), options=LayersConfig(max_norm=0.02))
    run.go(2)
    before = run.bytes()
    run.state.ema.mul_(10)  # factors that were averaged far apart
    with run.state.judged():
        assert all(0.019 < layer.norm() <= 0.02 * (1 + 1e-5) for layer in run.state.factors.low_ranks().values())
    assert run.bytes() == before


def test_a_norm_cap_under_a_schedule_free_optimiser_is_refused():
    train_config = TrainConfig(optimizer=OptimizerConfig("schedule_free_adamw", "constant"))
    with pytest.raises(ValueError, match="max_norm does not work with schedule_free_adamw; set max_norm to 0"):
        Recipe(LoraConfig(options=LayersConfig(max_norm=1.0)), train_config)


AVERAGES = [(name, decay) for name in OPTIMIZERS for decay in (0.0, 0.7) if not (decay and OPTIMIZERS[name].averages)]


@pytest.mark.parametrize(("name", "ema_decay"), AVERAGES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True).map(sorted))
def test_every_optimiser_resumes_in_the_same_bytes(tmp_path, name, ema_decay, cuts):
    """Two parts, as with a text encoder; the files compared hold all there is: factors, averages, moments."""
    config, files = config_of(name, ema_decay=ema_decay), []
    for stops in ([], cuts):
        run = Run(config, last=TEXT_LAYER)
        for cut in stops:
            run.go(cut - run.state.step)
            run = resumed(run, tmp_path)
        run.go()
        checkpoint.save(tmp_path / "end.safetensors", run.state, "print")
        with run.state.judged():
            files.append(((tmp_path / "end.safetensors").read_bytes(), run.bytes()))
    assert files[0] == files[1] and run.state.step == 12


@pytest.mark.parametrize(("name", "ema_decay"), AVERAGES)
def test_every_optimiser_learns_and_every_average_too(name, ema_decay):
    samples = [Sample(torch.full((CHANNELS, 6, 6), 1.5), 0.0, -9.0)] * 4
    rate = {"prodigy": 1.0, "muon": 0.1}.get(name, 2e-2)
    config = replace(
        config_of(name, ema_decay=ema_decay),
        steps=400 if OPTIMIZERS[name].rate is None else 150,
        learning_rate=rate,
        batch_size=4,
        accumulation=1,
    )
    run = Run(replace(config, caption_dropout=0.0), samples, TEXT_LAYER)
    run.go()
    first, last = (sum(part) / 20 for part in (run.state.losses[:20], run.state.losses[-20:]))
    assert all(map(math.isfinite, run.state.losses)) and last < 0.75 * first
    with attached(run.state.factors.branches), run.state.judged():
        assert error(run.toy) < 0.75 * error(Toy())


def error(toy: Toy) -> float:
    """The loss on one constant picture at 16 noise levels, without weighting."""
    x0, draw = torch.full((16, CHANNELS, 6, 6), 1.5), torch.Generator().manual_seed(5)
    noise = torch.randn(x0.shape, generator=draw)
    with torch.no_grad():
        return float(objective.loss(toy, x0, noise, torch.linspace(0.1, 0.9, 16), [0.0] * 16, ObjectiveConfig()))


def test_the_ema_is_that_of_its_formula_and_leaves_training_alone(whole):
    """decay_t = min(decay, (1 + t) / (10 + t)); the first step starts it."""
    run, average = Run(replace(CONFIG, optimizer=OptimizerConfig(warmup=3, ema_decay=0.35))), None
    for result in run.steps():
        decay = min(0.35, (1 + result.step) / (10 + result.step))
        now = run.state.factors.flat.double()
        average = now.clone() if average is None else decay * average + (1 - decay) * now
    torch.testing.assert_close(run.state.ema.double(), average, rtol=1e-6, atol=1e-8)
    assert run.bytes() == whole[0]


@pytest.mark.parametrize(
    "config", [config_of("adamw", ema_decay=0.9), config_of("schedule_free_adamw")], ids=["ema", "free"]
)
def test_what_is_judged_is_the_average_and_goes_without_a_trace(config):
    run, looked_at = Run(config), Run(config)
    run.go()
    for result in looked_at.steps():
        trained = looked_at.bytes()
        with pytest.raises(KeyboardInterrupt), looked_at.state.judged():
            judged = looked_at.state.factors.flat.clone()
            kept = looked_at.state.factors.low_ranks()["enter"].lora_A
            raise KeyboardInterrupt
        assert looked_at.bytes() == trained
        assert torch.equal(kept.flatten(), judged[: kept.numel()])
        assert result.step == 1 or judged.numpy().tobytes() != trained
    assert looked_at.bytes() == run.bytes()
    wanted = run.state.ema if run.state.ema is not None else run.state.optimizer.averages()[0]
    assert torch.equal(judged, wanted)


def test_without_an_average_what_is_judged_is_what_is_trained(whole):
    run = Run()
    with run.state.judged():
        run.go()
    assert run.bytes() == whole[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_resuming_with_any_batching(tmp_path, schedule, batch_size, accumulation):
    optimizer = OptimizerConfig(schedule=schedule, warmup=3)
    config = replace(CONFIG, optimizer=optimizer, batch_size=batch_size, accumulation=accumulation)
    run, whole = Run(config), Run(config)
    expected = whole.go()
    assert run.go(5) + resumed(run, tmp_path).go() == expected
    again = resumed(run, tmp_path)
    again.go()
    assert again.bytes() == whole.bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")], ids=["cancel", "memory"])
@pytest.mark.parametrize("call", [1, 2, 7, 8, 24])
@pytest.mark.parametrize("how", ["go on", "resume"])
def test_an_exception_inside_a_step_leaves_no_trace(tmp_path, whole, error, call, how):
    """Calls 1, 7: a step's first micro-batch; 2, 8, 24: its second, when half a gradient is there."""

    def fail(number: int) -> None:
        if number == call:
            raise error

    run = Run()
    run.toy.on_call = fail
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run.go()
    assert run.state.step == (call - 1) // 2 and not run.state.factors.flat.grad.any()
    run = resumed(run, tmp_path) if how == "resume" else run
    rest = run.go()
    assert run.bytes() == whole[0] and rest == whole[1][(call - 1) // 2 :]
    assert run.state.losses == [result.loss for result in whole[1]]


def test_an_exception_in_backward_leaves_no_trace(whole):
    run, armed = Run(), [True]

    def fail(grad: Tensor) -> Tensor:
        if armed and run.toy.calls == 6:
            armed.clear()
            raise RuntimeError("out of memory")
        return grad

    run.state.factors.branches["enter"].lora_A.register_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.go()
    assert run.state.step == 2
    run.go()
    assert run.bytes() == whole[0]


def test_closing_at_a_yield_keeps_everything(whole):
    run = Run()
    for _ in range(12):
        run.go(1)
    assert run.bytes() == whole[0] and run.go() == []


def test_preservation_pulls_the_answer_to_other_captions_back_to_the_base():
    """Latents of one colour teach the net an offset; with preservation the answer to the class caption moves less."""
    samples = [Sample(torch.full((CHANNELS, 6, 6), 1.5), 2.0, -9.0, (0.5, 0.25))] * 4
    moved = {}
    for strength in (0.0, 10.0):
        run = Run(replace(CONFIG, steps=150, learning_rate=1e-2, caption_dropout=0.0, preservation=strength), samples)
        run.go()
        x, sigma = torch.ones(1, CHANNELS, 6, 6), torch.tensor([0.5])
        with torch.no_grad(), attached(run.state.factors.branches):
            after = run.toy.denoised(x, sigma, [0.5])
            with run.state.factors.silence():
                base = run.toy.denoised(x, sigma, [0.5])
        moved[strength] = float((after - base).norm())
        assert torch.equal(base, run.toy.denoised(x, sigma, [0.5]))
    assert 0 < moved[10.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("cut", [1, 6, 11])
def test_preservation_draws_from_all_its_captions_and_resumes_like_everything_else(tmp_path, cut):
    samples = [replace(s, preserved=(50.0, 60.0)) for s in make_samples()]
    config = replace(CONFIG, preservation=0.5)
    run, part = Run(config, samples), Run(config, samples)
    results = run.go()
    assert {50.0, 60.0} <= {value for batch in run.toy.seen for value in batch}
    first = part.go(cut)
    rest = resumed(part, tmp_path)
    assert first + rest.go() == results and rest.bytes() == run.bytes()


def test_preservation_leaves_the_reported_loss_alone_and_adds_its_gradient():
    samples = [replace(s, preserved=(50.0,)) for s in make_samples()]
    results = {}
    for strength in (0.0, 1.0, 2.0):
        config = replace(CONFIG, steps=1, accumulation=1, optimizer=OptimizerConfig(max_grad_norm=0.0))
        run = Run(replace(config, preservation=strength), samples)
        run.state.factors.flat.add_(0.1)  # otherwise nothing has changed yet and there is nothing to preserve
        grads: list[Tensor] = []
        run.state.optimizer.step = lambda f=run.state.factors, g=grads: g.append(f.flat.grad.clone())
        (result,) = run.go()
        results[strength] = result.loss, grads[0]
    assert len({loss for loss, _ in results.values()}) == 1
    once, twice = (results[strength][1] - results[0.0][1] for strength in (1.0, 2.0))
    assert float(once.norm()) > 1e-3
    torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-5)


def neutral_samples(*classes: float) -> list[Sample]:
    return [replace(s, preserved=classes, neutral=(70.0, 80.0, 90.0)) for s in make_samples()]


def told(run: Run) -> list[list[list[float]]]:
    """The conditions of all forwards, by step."""
    steps: list[list[list[float]]] = []
    running = run.steps()
    while next(running, None):
        steps.append(run.toy.seen)
        run.toy.seen = []
    return steps


def test_every_kth_step_preserves_and_the_others_are_those_of_a_run_without():
    plain, kept = Run(), Run(replace(CONFIG, preservation=1.0, preserve_every=4), neutral_samples())
    without, steps = told(plain), told(kept)
    assert [len(step) for step in steps] == [2, 2, 2, 6] * 3, "two micro-batches, and for each the base and the LoRA"
    ours = [[seen for seen in step if not {*seen} & {70.0, 80.0, 90.0}] for step in steps]
    assert ours == without, "the same pictures, dropped captions and order"
    assert kept.state.losses[:4] == plain.state.losses[:4] != kept.state.losses[8:]
    drawn = {value for step in steps for seen in step for value in seen} & {70.0, 80.0, 90.0}
    assert len(drawn) == 3 and torch.equal(kept.state.generator.get_state(), plain.state.generator.get_state())


def test_class_words_have_half_of_the_preserving_steps():
    run = Run(replace(CONFIG, steps=60, preservation=1e-3), neutral_samples(50.0))
    drawn = [value for step in told(run) for seen in step[1::3] for value in seen]
    assert set(drawn) == {50.0, 70.0, 80.0, 90.0} and 0.4 < drawn.count(50.0) / len(drawn) < 0.6


@pytest.mark.parametrize("cut", [3, 4, 7])
def test_preserving_steps_resume_exactly(tmp_path, cut):
    config = replace(CONFIG, preservation=0.5, preserve_every=4)
    run, part = (Run(config, neutral_samples(50.0)) for _ in range(2))
    results = run.go()
    assert [result.preservation > 0 for result in results] == [False, False, False, True] * 3
    first = part.go(cut)
    assert first + resumed(part, tmp_path).go() == results


def test_a_preserving_step_counts_as_often_as_it_stands_for():
    grads = {}
    for every in (1, 4):
        config = replace(CONFIG, steps=4, accumulation=1, preservation=0.5, preserve_every=every, learning_rate=1e-9)
        run = Run(replace(config, optimizer=OptimizerConfig(max_grad_norm=0.0)), neutral_samples())
        run.state.factors.flat.add_(0.1)
        found: list[Tensor] = []
        run.state.optimizer.step = lambda f=run.state.factors, g=found: g.append(f.flat.grad.clone())
        run.go()
        grads[every] = found
    without = grads[4][0]
    assert not torch.equal(grads[1][0], without), "the first step preserves on every step alone"
    bare = Run(
        replace(CONFIG, steps=4, accumulation=1, learning_rate=1e-9, optimizer=OptimizerConfig(max_grad_norm=0.0))
    )
    bare.state.factors.flat.add_(0.1)
    plain: list[Tensor] = []
    bare.state.optimizer.step = lambda: plain.append(bare.state.factors.flat.grad.clone())
    bare.go()
    torch.testing.assert_close(grads[4][3] - plain[3], 4 * (grads[1][3] - plain[3]), rtol=1e-3, atol=1e-5)


def test_a_gradient_norm_limit_of_zero_clips_nothing():
    results = {}
    for limit in (0.0, 1e9, 1e-3):
        run = Run(replace(CONFIG, optimizer=OptimizerConfig(max_grad_norm=limit)))
        run.go(4)
        results[limit] = run.bytes()
    assert results[0.0] == results[1e9] != results[1e-3]


@pytest.mark.parametrize("call", [1, 2, 8, 24])
def test_a_step_short_of_memory_is_taken_once_more_from_the_same_draws(whole, call):
    run, room = Run(), []

    def fail(number: int) -> None:
        if number == call:
            raise torch.OutOfMemoryError("for the test")

    run.toy.on_call = fail
    run.relief = lambda error: lambda: room.append(sys.exc_info()[0])
    assert run.go() == whole[1] and run.bytes() == whole[0]
    assert room == [None], "once, when nothing holds the failed step any more"


def test_a_step_that_is_short_of_memory_twice_ends_the_run(whole):
    run, room = Run(), []

    def fail(number: int) -> None:
        if number >= 7:
            raise torch.OutOfMemoryError("for the test")

    run.toy.on_call = fail
    run.relief = lambda error: lambda: room.append(error)
    with pytest.raises(torch.OutOfMemoryError):
        run.go()
    assert len(room) == 1 and run.state.step == 3 and not run.state.factors.flat.grad.any()
    run.toy.on_call, run.relief = lambda _: None, lambda _: None
    run.go()
    assert run.bytes() == whole[0]


def test_an_error_of_something_else_is_not_tried_again():
    run = Run()
    run.toy.on_call = lambda number: 1 / 0 if number == 3 else None
    with pytest.raises(ZeroDivisionError):
        run.go()
    assert run.toy.calls == 3
    run.toy.on_call = lambda number: torch.zeros(2) @ torch.zeros(3)  # a RuntimeError
    with pytest.raises(RuntimeError):
        run.go()
    assert run.toy.calls == 4


def test_nothing_is_asked_of_the_device_about_text_encoders_that_are_not_there(whole):
    run = Run(text=(0.02, 2))
    assert len(run.state.factors.text_gradient()) == 0 and {result.text_norm for result in run.go(2)} == {0.0}
