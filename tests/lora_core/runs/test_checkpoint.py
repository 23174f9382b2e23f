"""A run's state on disk: everything comes back, only for the same run, and only a whole file replaces another."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import save
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.config import TrainConfig
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.state import TrainState
from lora_loom.lora_core.training.trainer import make_optimizer
from safetensors import safe_open
from torch import nn


def fresh(seed: int = 0, width: int = 6) -> TrainState:
    generator = torch.Generator().manual_seed(seed)
    factors = Factors({"a": nn.Linear(width, 5), "b": nn.Conv2d(3, 4, 3)}, 2, 2.0, generator)
    batches = Batches(["x"] * 5 + ["y"] * 3, 2, 2, generator)
    return TrainState(factors, batches, generator, make_optimizer(factors, TrainConfig()))


def advanced(steps: int = 4, seed: int = 0) -> TrainState:
    state = fresh(seed)
    for step in range(steps):
        state.batches.next()
        state.factors.flat.grad.copy_(torch.randn(state.factors.flat.shape, generator=state.generator))
        state.optimizer.step()
        state.factors.flat.grad.zero_()
        state.step, state.losses = step + 1, [*state.losses, random.Random(step).random()]
    return state


def moments(state: TrainState) -> dict[str, torch.Tensor]:
    return state.optimizer.state.get(state.factors.flat, {})


def assert_same(one: TrainState, two: TrainState) -> None:
    assert torch.equal(one.factors.flat, two.factors.flat)
    assert moments(one).keys() == moments(two).keys()
    for name, value in moments(one).items():
        assert torch.equal(value, moments(two)[name]) and value.dtype == moments(two)[name].dtype
    assert torch.equal(one.generator.get_state(), two.generator.get_state())
    assert (one.step, one.losses, one.batches.queue) == (two.step, two.losses, two.batches.queue)


def trip(state: TrainState, path: Path, into: TrainState | None = None) -> TrainState:
    checkpoint.save(path, state, "print")
    into = into or fresh(seed=99)
    checkpoint.load(path, into, "print")
    return into


@pytest.mark.parametrize("steps", [0, 1, 4, 20])
def test_everything_comes_back(tmp_path, steps):
    state = advanced(steps)
    loaded = trip(state, tmp_path / "run.safetensors")
    assert_same(state, loaded)
    assert set(moments(loaded)) == ({"step", "exp_avg", "exp_avg_sq"} if steps else set())
    assert loaded.generator is loaded.batches.generator
    assert [loaded.batches.next() for _ in range(20)] == [state.batches.next() for _ in range(20)]


def test_loading_keeps_the_views_of_the_factors(tmp_path):
    state, into = advanced(), fresh(99)
    pointer, grad = into.factors.flat.data_ptr(), into.factors.flat.grad
    loaded = trip(state, tmp_path / "run.safetensors", into)
    assert loaded.factors.flat.data_ptr() == pointer and loaded.factors.flat.grad is grad
    for name, item in state.factors.low_ranks().items():
        assert torch.equal(loaded.factors.low_ranks()[name].lora_A, item.lora_A)
        assert torch.equal(loaded.factors.low_ranks()[name].lora_B, item.lora_B)


def test_the_restored_moments_move_on_as_the_first(tmp_path):
    state = advanced()
    loaded = trip(state, tmp_path / "run.safetensors")
    for one in (state, loaded):
        one.factors.flat.grad.fill_(0.3)
        one.optimizer.step()
    assert_same(state, loaded)


def test_saving_changes_nothing(tmp_path):
    state, twin = advanced(), advanced()
    checkpoint.save(tmp_path / "run.safetensors", state, "print")
    assert_same(state, twin)


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, advanced(), "print")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_configuration_is_refused_untouched(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, advanced(), "print")
    state = fresh(5)
    with pytest.raises(ValueError, match=r"run\.safetensors was written by a run with other settings or by another "):
        checkpoint.load(path, state, "other")
    assert_same(state, fresh(5))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "lora.safetensors"
    save_file({"factors": torch.zeros(3)}, path, {"fingerprint": "print"})
    with pytest.raises(ValueError, match="lora.safetensors was written by"):
        checkpoint.load(path, fresh(), "print")


def test_any_wrong_byte_is_noticed_before_anything_is_used(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, advanced(), "print")
    content, draw = path.read_bytes(), random.Random(0)
    head = 8 + int.from_bytes(content[:8], "little")
    told = len(content[:head].rstrip())  # the rest of the header is padding
    skipped = told_by_nobody(content[:head])
    places = [*range(8), *draw.sample([at for at in range(8, told) if at not in skipped], 150)]
    places += draw.sample(range(head, len(content)), 150)
    for at in places:
        wrong = bytearray(content)
        wrong[at] ^= 1 << draw.randrange(7)
        path.write_bytes(wrong)
        state = fresh(5)
        with pytest.raises(ValueError, match=r"run\.safetensors (cannot be read: .+start over|was written by a run)"):
            checkpoint.load(path, state, "print")
        assert_same(state, fresh(5))


def told_by_nobody(head: bytes) -> set[int]:
    """Places in a header of what every saved file has and no run reads."""
    found: set[int] = set()
    for name in (b"sshs_legacy_hash", b"modelspec.hash_sha256"):
        at = head.find(name)
        found |= set(range(at - 1, at + len(name) + 75)) if at >= 0 else set()
    return found


def test_a_state_of_version_0_1_0_still_resumes(tmp_path):
    """It tells neither its step nor the outline of its header."""
    path, state = tmp_path / "run.safetensors", advanced()
    checkpoint.save(path, state, "print")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save.save(path, tensors, {"lora_loom.checkpoint": "3", "fingerprint": "print"}, overwrite=True)
    assert checkpoint.step_of(path) == 0
    loaded = fresh(99)
    checkpoint.load(path, loaded, "print")
    assert_same(state, loaded)
    checkpoint.save(path, loaded, "print")
    assert checkpoint.step_of(path) == 4


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_file_is_refused_by_name(tmp_path, share):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, advanced(), "print")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"run\.safetensors cannot be read: .+; delete it and start over"):
        checkpoint.load(path, fresh(), "print")


def test_a_hundred_thousand_losses_fit(tmp_path):
    state = advanced()
    noise = random.Random(0)
    state.losses = [noise.random() * 10 ** noise.randint(-12, 6) for _ in range(100_000)]
    state.step = 100_000
    assert_same(state, trip(state, tmp_path / "run.safetensors"))


def test_a_long_queue_fits(tmp_path):
    state = advanced()
    state.batches = Batches(["x"] * 50_000, 1, 1, state.generator)
    state.batches.next()
    into = fresh(1)
    into.batches = Batches(["x"] * 50_000, 1, 1, into.generator)
    assert_same(state, trip(state, tmp_path / "run.safetensors", into))


def test_the_folder_is_made_the_old_file_replaced_and_nothing_left_beside_it(tmp_path):
    path = tmp_path / "a" / "b" / "run.safetensors"
    checkpoint.save(path, advanced(2), "print")
    state = advanced(3)
    assert_same(state, trip(state, path))
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]
    with safe_open(path, "pt") as file:
        assert file.metadata()["fingerprint"] == "print"


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    old = advanced(2)
    checkpoint.save(path, old, "print")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, advanced(3), "print")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    loaded = fresh()
    checkpoint.load(path, loaded, "print")
    assert_same(old, loaded)
