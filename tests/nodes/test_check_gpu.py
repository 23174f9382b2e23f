"""The check of a device: everything is right on the CPU, and each thing that is broken turns it red."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.model_management
import pytest
import torch
from harness import gpu_check
from harness.calls import run_node
from harness.tape import Tape, without_last
from lora_loom.lora_core.training import replayed, snapshot
from lora_loom.lora_core.training.plan import GB, Need
from lora_loom.nodes.bridge.check import case, derived, memory, right, run, timing
from lora_loom.nodes.bridge.check.networks import FLUX, FLUX_WIDE, SDXL_WIDE
from lora_loom.nodes.bridge.check.rig import CPU, Outcome, Rig, guarded
from lora_loom.nodes.bridge.check.who import who
from lora_loom.nodes.bridge.model import caption_padding
from lora_loom.nodes.bridge.session import graphs, offload
from lora_loom.nodes.bridge.stack import apply_stack
from lora_loom.nodes.check_gpu import CheckGpu

ALL = right.EACH | right.ONCE | derived.ONCE


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(comfy.model_management.get_torch_device())


def looked_at(rig: Rig, name: str):
    return guarded("right", name, partial(ALL[name], rig, FLUX), partial(rig.left, FLUX))


def test_node_finds_all_right_and_leaves_its_files(comfy_base: Path) -> None:
    page, figures = run_node(CheckGpu, quick=True)
    told = json.loads(figures)
    assert told["passed"], told["verdicts"]
    names = [found["name"] for found in told["findings"]]
    for network in run.TINY:
        assert {f"{network.name}, {name}" for name in right.EACH} <= set(names)
    assert set(right.ONCE | derived.ONCE) <= set(names)
    ways = ("frozen", "ours", "ours, graph", "ours, offloaded")
    assert {*(f"FLUX-like, {way}" for way in ways), "copies"} <= set(names)
    timed = {found["name"]: found["figures"] for found in told["findings"] if found["section"] == "time"}
    assert timed["FLUX-like, ours"]["launches"] > timed["FLUX-like, frozen"]["launches"] > 100
    assert "launches" in timed["FLUX-like, ComfyUI's own trainer"]
    assert (comfy_base / "output" / "lora_loom_gpu_check.md").read_text(encoding="utf-8") == page
    assert (comfy_base / "output" / "lora_loom_gpu_check.json").read_text(encoding="utf-8") == figures
    for secret in (str(comfy_base), str(Path.home()), platform.node(), "/tmp"):
        assert not secret or secret not in page + figures


def broken_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    join = caption_padding.join
    monkeypatch.setattr(caption_padding, "join", lambda *args: replace(join(*args), seen=None))


def broken_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = offload.copied
    monkeypatch.setattr(offload, "copied", lambda *args, **kwargs: copied(*args, **kwargs).detach() * 1.0001)


def broken_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_restore_optimizer", lambda *_: None)


def dropped_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = apply_stack.chain
    monkeypatch.setattr(apply_stack, "chain", lambda entries: dict(list(chain(entries).items())[1:]))


def wrong_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = derived._merge
    monkeypatch.setattr(
        derived, "_merge", lambda *args: {name: layer.scaled(1.001) for name, layer in merge(*args).items()}
    )


def no_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_):
        raise RuntimeError(f"no kernel in {Path.home() / 'kernels.so'}")

    monkeypatch.setattr(case, "make_optimizer", refuse)


BROKEN = {
    "padded batch": broken_padding, "checkpointing and offload": broken_offload, "resume": broken_resume,
    "stack": dropped_layer, "merge": wrong_alpha, "optimisers": no_optimiser,
}  # fmt: skip


def test_steps_from_graphs_are_right_wrong_or_not_to_be_had(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong only where a run would go on with them."""
    name, spoils = "steps from graphs", [list, without_last, without_last]
    assert looked_at(rig, name).passed is None
    for module in (right, graphs):
        monkeypatch.setattr(module, "lacking", lambda _device: "")
    monkeypatch.setattr(graphs, "CudaGraphs", lambda _device: Tape(spoils[0]))
    found = looked_at(rig, name)
    assert found.passed and found.figures["replayed"] == 0, found.text
    del spoils[0]
    found = looked_at(rig, name)
    assert found.passed is None and "another gradient" in found.text
    monkeypatch.setattr(replayed, "_same", lambda *_: True)
    assert looked_at(rig, name).passed is False


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_turns_it_red(rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as broken:
        BROKEN[name](broken)
        found = looked_at(rig, name)
    assert found.passed is False, found.text
    assert str(Path.home()) not in found.line() + str(found.figures)
    assert looked_at(rig, name).passed, "and once it is mended, green"


def test_a_check_that_changes_the_base_model_is_told() -> None:
    rig = Rig(comfy.model_management.get_torch_device())
    assert looked_at(rig, "DoRA").passed

    def spoil() -> Outcome:
        with torch.inference_mode():
            next(rig.here(FLUX).patcher.model.parameters()).add_(1)
        return Outcome(True, "done")

    found = guarded("right", "spoiled", spoil, partial(rig.left, FLUX))
    assert found.passed is False and "weights of the base model were changed" in found.text


def test_memory_is_judged_by_what_a_run_would_not_have_had() -> None:
    need = Need(weights=4 * GB, factors=0, activations=0)
    assert memory.judged(3.5 * GB, need).passed and memory.judged(4.1 * GB, need).passed
    assert not memory.judged(4.3 * GB, need).passed
    assert memory.nearness([0.95, 1.01]) == "memory prediction right within 5%"
    (found,) = memory.run(Rig(CPU))
    assert found.passed is None and "left out" in found.text


def test_wide_networks_are_as_wide_as_people_s() -> None:
    assert memory.parameters(SDXL_WIDE) == pytest.approx(2.57e9, rel=0.01)
    assert memory.parameters(FLUX_WIDE) == pytest.approx(1.3e9, rel=0.1)
    need, _ = memory.room_for(case.Case(FLUX_WIDE, wide_shell()), memory.WAYS["checkpointed"])
    assert need.activations > 0.2 * GB


def wide_shell():
    """A MODEL of the width without memory for its weights."""
    import comfy.model_patcher

    model = FLUX_WIDE.shell(torch.device("meta"), torch.bfloat16)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def test_launch_bound_is_said_by_the_busy_share() -> None:
    def verdict(busy: float | None) -> str:
        known = {timing.FROZEN: timing.TimedStep(1.0, 700, busy), timing.OURS: timing.TimedStep(1.31, 900, busy)}
        return timing._verdict(FLUX, known)

    assert verdict(0.58) == "FLUX-like: step 1.31 x frozen, GPU busy 58%: launch-bound"
    assert verdict(0.97) == "FLUX-like: step 1.31 x frozen, GPU busy 97%"
    assert verdict(None) == "FLUX-like: step 1.31 x frozen"


def test_flags_tell_no_paths() -> None:
    told = who(CPU)
    assert "--base-directory" in told["Flags"] and str(Path.home()) not in str(told)
    flags = told["Flags"].split(", ")
    assert not any("/" in flag for flag in flags)
    assert "--fast" not in flags, "ComfyUI puts an empty set for what was not given"


def only(monkeypatch: pytest.MonkeyPatch, work) -> None:
    """The check has this one thing to look at."""
    monkeypatch.setattr(run, "TINY", ())
    monkeypatch.setattr(derived, "ONCE", {})
    monkeypatch.setattr(right, "ONCE", {"only": work})
    monkeypatch.setattr(timing, "run", lambda *_: ())


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_the_verb_ends_with_its_status(monkeypatch, tmp_path: Path, capsys, passed: bool, status: int) -> None:
    only(monkeypatch, lambda *_: Outcome(passed, "looked"))
    assert gpu_check.checked(run, True, tmp_path) == status
    assert ("FAIL only: looked" in capsys.readouterr().out) == (not passed)
    assert {path.name for path in tmp_path.iterdir()} == {"lora_loom_gpu_check.json", "lora_loom_gpu_check.md"}


def test_it_can_be_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    def cut_off(*_):
        raise KeyboardInterrupt

    only(monkeypatch, cut_off)
    monkeypatch.setattr(gpu_check, "load", lambda _: run)
    assert gpu_check.main(["--quick", "--out", str(tmp_path)]) == 130
    assert "cut off" in capsys.readouterr().err and not any(tmp_path.iterdir())
    only(monkeypatch, lambda *_: comfy.model_management.interrupt_current_processing() or Outcome(True, ""))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run.check(quick=True)
