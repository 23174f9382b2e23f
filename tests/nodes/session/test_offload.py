"""Blocks streamed from RAM: the same gradients to the bit, few copies alive, and a model left as it was."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode, loaded
from harness.layers import apply_layers
from harness.problem import Problem
from harness.session import training_session
from lora_loom.nodes.bridge.session import session
from lora_loom.nodes.bridge.session.offload import Stream, shared_out, slots
from lora_loom.nodes.bridge.session.session import blocks
from tiny.stored import load_stored
from torch import Tensor, nn

FAMILIES = ["sd15", "sd15_full", "flux1", "flux1_schnell", "wan_demo", *tiny.MORE]
FEW = ["sd15_full", "flux1", "wan_demo"]
EVERY_SHARE = [0.5, 1.0]


def gradient(trio: Any, checkpointing: bool, share: float, model: Any = None) -> Tensor:
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), training_session(model or trio.model, checkpointing, offload=share) as patcher:
        return Problem.of_model(patcher, conditioning).gradient()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_equal_to_the_bit(models, family: str) -> None:
    trio = models(family)
    kept = gradient(trio, True, 0.0)
    assert kept.norm() > 0
    assert all(torch.equal(gradient(trio, True, share), kept) for share in EVERY_SHARE)


@pytest.mark.parametrize("form", ["fp16", "fp8_e4m3fn", "nvfp4"])
def test_gradients_of_bases_that_are_cast(models, tmp_path: Path, form: str) -> None:
    trio = models("sd15")
    with torch.inference_mode():
        model = load_stored("sd15", tmp_path, form)
    kept = gradient(trio, True, 0.0, model)
    assert (kept - gradient(trio, True, 0.0)).norm() > 0, "other weights"
    assert all(torch.equal(gradient(trio, True, share, model), kept) for share in EVERY_SHARE)


def test_streamed_blocks_are_recomputed_without_checkpointing(models) -> None:
    plain, streamed = (gradient(models("flux1"), False, share) for share in (0.0, 1.0))
    assert (streamed - plain).norm() < 1e-5 * plain.norm()


@pytest.mark.parametrize("ahead", [False, True], ids=["on demand", "ahead"])
@pytest.mark.parametrize("family", FEW)
def test_few_copies_are_alive(models, monkeypatch, family: str, ahead: bool) -> None:
    """Only the running block has a copy, and the next one when copied ahead; counted over two steps, backward passes
    included."""
    trio = models(family)
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    kept = gradient(trio, True, 0.0)
    with (
        watched(monkeypatch, ahead) as watch,
        torch.inference_mode(),
        training_session(trio.model, True, offload=1.0) as patcher,
    ):
        problem = Problem.of_model(patcher, conditioning)
        assert all(torch.equal(problem.gradient(), kept) for _ in range(2))
        found = blocks(patcher.model.diffusion_model)
    runs = 4 * len(found)  # forward and backward of two steps
    assert max(watch.alive) == (2 if ahead else 1)
    assert watch.copied >= 0.9 * runs  # the first need no backward
    if ahead:
        assert watch.foreseen >= 0.7 * runs / 2


class Watch:
    """How many blocks have living copies, each time one is copied."""

    def __init__(self) -> None:
        self.live: list[list[weakref.ref]] = []
        self.alive: list[int] = []
        self.copied = self.foreseen = 0

    def add(self, copies: list[Tensor]) -> None:
        self.copied += 1
        self.live.append([weakref.ref(copy.untyped_storage()) for copy in copies])
        self.alive.append(sum(any(ref() is not None for ref in refs) for refs in self.live))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, ahead: bool) -> Iterator[Watch]:
    watch = Watch()

    class Watched(Stream):
        def _fetch(self, block: nn.Module) -> list[Tensor]:
            copies = super()._fetch(block)
            watch.add(copies)
            return copies

        def _take(self, block: nn.Module) -> list[Tensor]:
            watch.foreseen += self.coming is not None and self.coming[0] is block
            return super()._take(block)

    with monkeypatch.context() as patched:
        patched.setattr(session, "stream_to", partial(Watched, ahead=ahead))
        yield watch


@pytest.mark.parametrize("family", FEW)
def test_originals_are_in_place_after_an_error(models, family: str) -> None:
    trio = models(family)
    network = trio.model.model.diffusion_model
    before = [(own, name, own[name]) for own, name in slots(network)]
    failing = blocks(network)[1]
    hook = failing.register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            gradient(trio, True, 1.0)
    finally:
        hook.remove()
    assert all(own[name] is tensor for own, name, tensor in before)
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("share", EVERY_SHARE)
def test_patches_of_the_model_are_trained_on_and_undone(models, random_adapter, share: float) -> None:
    trio = models("flux1")
    plain = loaded(trio.model)
    patched = apply_layers(trio.model, None, random_adapter(trio.model, size=0.5).layers)[0]
    kept = gradient(trio, True, 0.0, patched)
    assert torch.equal(gradient(trio, True, share, patched), kept)
    assert (kept - gradient(trio, True, 0.0)).norm() > 0.01 * kept.norm()
    after = trio.model.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in plain.items())


def test_shares_are_spread_evenly() -> None:
    modules = [nn.Linear(1, 1) for _ in range(8)]
    places = {share: [modules.index(m) for m in shared_out(modules, share)] for share in (0.0, 0.01, 0.25, 0.5, 1.0)}
    assert places == {0.0: [], 0.01: [7], 0.25: [3, 7], 0.5: [1, 3, 5, 7], 1.0: list(range(8))}
