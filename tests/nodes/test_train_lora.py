"""Train LoRA on real ComfyUI models: what comes out, what is left as it was, and what a cancelled run keeps."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import comfy.ldm.flux.math
import comfy.model_management
import comfy.quant_ops
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import tiny
import torch
from comfy_extras.nodes_train import LoraModelLoader, LossGraphNode, SaveLoRA
from harness.calls import encode, identities, loaded, relative_error, run_node, sampled
from harness.runs import STEPS, cancelled, kept, on_forward, train
from lora_loom.lora_core.files import formats, guard
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.presets import PRESETS, Preset, preset_of
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora
from torch import Tensor
from torch.nn import functional

# Every family where they differ; else one of each architecture.
FAMILIES = ["sd15", "flux1", "flux1_schnell", "wan_demo", *tiny.MORE]
pytestmark = pytest.mark.usefixtures("runs")


@pytest.fixture(params=["sd15", "flux1", "wan_demo"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def start_latent(model: Any) -> Tensor:
    return torch.zeros(tiny.latent_shape(model))


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.verifies("Trains")
@pytest.mark.verifies("Base types", "float32")
@pytest.mark.parametrize("family", FAMILIES)
def test_result_and_a_model_left_as_it_was(models, data, family: str) -> None:
    trio = models(family)
    text, latent = encode(trio.clip, "a red heart"), start_latent(trio.model)
    before, picture, state = loaded(trio.model), sampled(trio.model, text, latent), surroundings(trio.model)
    lora_model, loss_map, adapter, *_ = train(trio, data)
    assert len(loss_map["loss"]) == STEPS and all(map(math.isfinite, loss_map["loss"]))
    assert all(layer.norm() > 0 for layer in adapter.layers.values() if not is_dead(layer))
    assert sum(layer.norm() > 0 for layer in adapter.layers.values()) >= 0.7 * len(adapter.layers)
    assert surroundings(trio.model) == state
    after = trio.model.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(sampled(trio.model, text, latent), picture)
    assert not any(value.is_inference() or value.requires_grad for value in lora_model.values())


def is_dead(layer: Any) -> bool:
    """No gradient ever reaches some layers, such as q and k of an attention over one token."""
    return layer.lora_B.abs().max() == 0


def surroundings(model: Any) -> dict[str, Any]:
    """All that a training session changes for its time."""
    network = model.model
    modules = list(network.modules())
    ropes = (comfy.quant_ops.ck, comfy.ldm.flux.math)
    kernels = {(owner, name): getattr(owner, name) for owner in ropes for name in dir(owner) if "rope" in name}
    return {
        "flag": comfy.model_management.in_training,
        "kernels": kernels,
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "forwards": ["forward" in vars(m) for m in modules],
        "tensors": [(p.requires_grad, p.grad, p.is_inference(), p.dtype) for p in network.parameters()],
        "identity": identities(network),
        "norms": (functional.layer_norm, functional.rms_norm),
        "compute": network.get_dtype_inference(),
        "cast": network.manual_cast_dtype,
        "patches": (model.patches_uuid, len(model.patches)),
        "patcher": network.current_patcher,
        "training": network.training,
    }


def test_core_nodes_take_the_outputs(models, loras: Path, data, family: str) -> None:
    trio = models(family)
    lora_model, loss_map, adapter, *_ = train(trio, data, rank=3, alpha=5.0)
    run_node(LossGraphNode, loss=loss_map, filename_prefix="loss")
    (by_core,) = run_node(LoraModelLoader, model=trio.model, lora=lora_model, strength_model=0.8)
    run_node(SaveLoRA, lora=lora_model, prefix="loras/core", steps=STEPS)
    (file,) = (Path(folder_paths.get_output_directory()) / "loras").glob("core_*.safetensors")
    assert formats.read(file).layers.keys() == adapter.layers.keys()
    file.unlink()
    name, report = run_node(SaveLora, adapter=adapter, model=trio.model, name="a", format="comfyui", dtype="fp32")
    assert f"keys matched, 0 unmatched, {len(adapter.layers)} layers applied" in report
    ours = run_node(LoadLoraStack, model=trio.model, lora_1=name, strength_1=0.8, text_strength_1=1.0)[0]
    by_us, theirs, base = loaded(ours), loaded(by_core), loaded(trio.model)
    assert all(relative_error(by_us[key], theirs[key]) < 1e-6 for key in base)
    assert any(not torch.equal(theirs[key], base[key]) for key in base)


def test_header_tells_how_it_was_made(models, loras: Path, data) -> None:
    adapter = train(models("flux1"), data, weighting="min_snr", accumulation=2).adapter
    run_node(
        SaveLora, adapter=adapter, model=models("flux1").model, name="%title%_%steps%", format="kohya", dtype="bf16"
    )
    header = guard.inspect(loras / f"run_{STEPS}.safetensors").metadata
    assert header["modelspec.architecture"] == "flux-1-dev/lora" and header["ss_base_model_version"] == "flux1"
    assert header["modelspec.prediction_type"] == "flow" and header["modelspec.resolution"] == "64x64"
    assert (header["ss_seed"], header["ss_steps"], header["ss_total_batch_size"]) == ("7", str(STEPS), "4")
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_min_snr_gamma"]) == ("2", "2.0", "5.0")


# -- the same run gives the same bytes ---------------------------------------------------------------------------------


def test_same_seed_same_bytes(models, data, runs: Path, family: str) -> None:
    train(models(family), data)
    first = kept(runs)
    torch.rand(3)  # the global generator does not matter
    train(models(family), data, resume="start over")
    assert kept(runs) == first
    assert {Path(name).name for name in first} == {f"step_{STEPS:06d}.safetensors", "state.safetensors"}


def test_another_seed_is_another_run(models, data, runs: Path) -> None:
    for seed in (1, 2):
        train(models("wan_demo"), data, seed=seed)
    assert len(kept(runs)) == 4 and len(set(kept(runs).values())) == 4


def test_checkpointing_gives_the_same_lora(models, data, family: str) -> None:
    with_it, without = (
        train(models(family), data, gradient_checkpointing=flag, resume="start over")[2] for flag in (True, False)
    )
    for name, layer in with_it.layers.items():
        assert layer.distance(without.layers[name]) <= 1e-3 * layer.norm()


def test_finished_run_returns_at_once(models, data, family: str) -> None:
    trio = models(family)
    lora_model, loss_map, *_ = train(trio, data)
    with on_forward(trio) as forwards:
        again, losses, *_ = train(trio, data)
    assert not forwards
    assert losses == loss_map and all(torch.equal(again[key], value) for key, value in lora_model.items())


AUTOMATIC = {"rank": 0, "alpha": 0.0, "learning_rate": 0.0, "targets": "auto", "timesteps": "auto"}


def test_auto_is_the_same_run_as_its_values_typed_in(models, data, runs: Path, family: str, caplog) -> None:
    trio, preset = models(family), preset_of(family_of(models(family).model).preset_name)
    with caplog.at_level("INFO", "lora_loom"):
        automatic = train(trio, data, steps=2, **AUTOMATIC)[2]
    assert [
        line for line in caplog.messages if line.startswith(f"auto for {preset_name(preset)}: rank {preset.rank}, ")
    ]
    typed = {
        name: getattr(preset, name) for name in ("rank", "alpha", "learning_rate", "targets", "timesteps", "shift")
    }
    with on_forward(trio) as forwards:
        adapter = train(trio, data, steps=2, **typed)[2]
    assert not forwards and len(list(runs.iterdir())) == 1, "the finished run is found again"
    assert adapter.metadata == automatic.metadata
    assert (adapter.metadata["ss_network_dim"], adapter.metadata["ss_network_alpha"]) == (
        str(preset.rank), str(preset.alpha)
    )  # fmt: skip
    assert adapter.metadata["ss_learning_rate"] == str(preset.learning_rate)
    assert json.loads(adapter.metadata["ss_network_args"]) == {"targets": [preset.targets]}


def preset_name(preset: Preset) -> str:
    return next(name for name, row in PRESETS.items() if row is preset)


def test_alpha_follows_a_rank_that_was_typed_in(models, data) -> None:
    adapter = train(models("flux1"), data, steps=1, **{**AUTOMATIC, "rank": 3})[2]
    assert {(layer.rank, layer.alpha) for layer in adapter.layers.values()} == {(3, 3.0)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_presets_targets_exist(models, family: str) -> None:
    model = models(family).model
    preset = preset_of(family_of(model).preset_name)
    network = model.model.diffusion_model
    chosen = select(network, LoraConfig(preset.rank, preset.alpha, preset.targets))
    assert bool(set(chosen) - set(select(network, LoraConfig()))) == (preset.targets != "attention")


# -- cancel and resume -------------------------------------------------------------------------------------------------

ROUGH = {"accumulation": 2, "caption_dropout": 0.5, "lr_schedule": "cosine", "warmup": 2, "weighting": "debiased"}


@pytest.mark.parametrize(
    ("forward", "save_every"), [(2, 0), (4, 1), (6, 0)], ids=["in step 1", "in step 2", "in step 3"]
)
def test_cancelled_run_goes_on_to_the_same_bytes(
    models, data, runs: Path, uncut: tuple[dict, dict], forward: int, save_every: int
) -> None:
    """The cancel comes inside a step, between its two forwards; the half step leaves no trace."""
    trio, (losses, whole) = models("flux1"), uncut
    before, state = loaded(trio.model), surroundings(trio.model)
    with cancelled(trio, forward):
        train(trio, data, save_every=save_every, **ROUGH)
    assert surroundings(trio.model) == state
    assert all(torch.equal(value, before[key]) for key, value in trio.model.model.state_dict().items())
    done = (forward - 1) // 2
    found = {Path(name).name for name in kept(runs)}
    assert found == ({"state.safetensors", f"step_{done:06d}.safetensors"} if done else set())
    with on_forward(trio) as forwards:
        resumed = train(trio, data, save_every=save_every, **ROUGH)
    assert len(forwards) == 2 * (STEPS - done)
    assert resumed[1] == losses
    assert {name: kept(runs)[name] for name in whole} == whole


@pytest.fixture(scope="module")
def uncut(models, data, comfy_base: Path) -> tuple[dict[str, list[float]], dict[str, bytes]]:
    """Losses and files of the run that is never cancelled."""
    losses = train(models("flux1"), data, **ROUGH)[1]
    output = comfy_base / "output" / "lora_loom"
    files = kept(output)
    shutil.rmtree(output)
    return losses, files


def test_cancel_from_the_progress_bar_keeps_the_lora_so_far(models, loras: Path, data, runs: Path, family: str) -> None:
    """ComfyUI's server looks for a cancel whenever the bar moves."""
    trio, seen = models(family), []

    def cancel(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        seen.append((value, total, preview is not None))
        comfy.model_management.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(trio, data)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen == [(1, STEPS, True)], "the first step shows the loss curve"
    (folder,) = runs.iterdir()
    shutil.copy(folder / "step_000001.safetensors", loras / "so_far.safetensors")
    assert json.loads(json.dumps(guard.inspect(loras / "so_far.safetensors").metadata))["ss_steps"] == "1"
    patched = run_node(
        LoadLoraStack, model=trio.model, lora_1="so_far.safetensors", strength_1=1.0, text_strength_1=1.0
    )
    assert patched[0].patches and "not applied" not in patched[3]
    assert len(train(trio, data)[1]["loss"]) == STEPS


def test_cancel_while_encoding(models, data, runs: Path) -> None:
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(models("flux1"), data)
    assert not kept(runs)


def test_failure_inside_a_step(models, data, runs: Path) -> None:
    """Out of memory, say: the error comes through, the model is as it was, the steps before it are kept."""
    trio = models("flux1")
    state = surroundings(trio.model)

    def fail(number: int) -> None:
        if number >= 3:
            raise torch.OutOfMemoryError("for the test")

    with on_forward(trio, fail) as calls, pytest.raises(torch.OutOfMemoryError):
        train(trio, data)
    assert len(calls) == 4, "the third step was tried twice"
    assert surroundings(trio.model) == state
    assert {Path(name).name for name in kept(runs)} == {"state.safetensors", "step_000002.safetensors"}
    assert len(train(trio, data)[1]["loss"]) == STEPS


def test_a_step_short_of_memory_is_taken_again(models, data, caplog) -> None:
    trio = models("flux1")

    def fail(number: int) -> None:
        if number == 3:
            raise torch.OutOfMemoryError("for the test")

    with on_forward(trio, fail) as calls:
        short = train(trio, data, run_name="short")
    assert len(calls) == STEPS + 1
    assert caplog.text.count("out of memory in a step") == 1
    assert short[1] == train(trio, data, run_name="plenty")[1]


def test_resumes_after_the_lora_so_far_was_tried_out(models, loras: Path, data, runs: Path) -> None:
    """While a patched clone is loaded, the weights in memory are not the base's: the run must still be found."""
    trio = models("wan_demo")
    with cancelled(trio, 4):
        train(trio, data)
    (folder,) = runs.iterdir()
    shutil.copy(folder / "step_000003.safetensors", loras / "so_far.safetensors")
    patched = run_node(
        LoadLoraStack, model=trio.model, lora_1="so_far.safetensors", strength_1=9.0, text_strength_1=1.0
    )[0]
    sampled(patched, encode(trio.clip, "a red heart"), start_latent(trio.model))
    with on_forward(trio) as forwards:
        train(trio, data)
    assert len(forwards) == STEPS - 3 and len(list(runs.iterdir())) == 1


def test_another_clip_skip_is_another_run(models, data, runs: Path) -> None:
    trio = models("sd15")
    train(trio, data)
    skipping = trio.clip.clone()
    skipping.clip_layer(-2)
    train(tiny.Loaded(trio.model, skipping, trio.vae), data)
    assert len(list(runs.iterdir())) == 2


def test_another_base_model_is_another_run(models, data, runs: Path, make_lora, loras: Path) -> None:
    """Training on top of a stack trains what is connected, and does not go on with the run of the bare model."""
    trio = models("flux1")
    bare = train(trio, data).loss_map
    make_lora("flux1", loras / "below.safetensors", size=0.5)
    below = run_node(LoadLoraStack, model=trio.model, lora_1="below.safetensors", strength_1=1.0, text_strength_1=1.0)[
        0
    ]
    above = train(trio, data, model=below).loss_map
    assert above["loss"] != bare["loss"] and len(list(runs.iterdir())) == 2
    assert train(trio, data)[1] == bare, "the bare model's run is found again"
