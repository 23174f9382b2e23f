"""A forward makes tensors where it runs: on a device that is not here, where CPU tensors do not mix with its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.lora
import comfy.model_management
import pytest
import tiny
import torch
from harness.calls import encode
from harness.layers import apply_layers
from harness.session import training_session
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.plan import GB
from lora_loom.nodes.bridge.host import device
from lora_loom.nodes.bridge.host.device import release
from lora_loom.nodes.bridge.model import caption_padding
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.session import rates
from lora_loom.nodes.bridge.session.rehearsal import Job, _condition, _without_memory
from lora_loom.nodes.bridge.session.session import trainable
from lora_loom.nodes.bridge.stack.patched_weights import Patched
from torch._subclasses.fake_tensor import FakeTensorMode

CUDA = torch.device("cuda", 0)
TEXTS = ("red", "many words, " * 40)
JOINING = ["sd15", "qwen_image", "chroma", "lumina2", "zimage", "anima"]


@pytest.mark.parametrize("family", JOINING)
def test_captions_of_different_length_meet_no_mask_in_ram(models, family: str, monkeypatch) -> None:
    trio = models(family)
    shape = list(tiny.latent_shape(trio.model))
    shape[-2:] = [16, 16]  # a picture that Z-Image need not fill up
    kept = []
    joined = caption_padding.join
    monkeypatch.setattr(caption_padding, "join", lambda *args: kept.append(joined(*args)) or kept[-1])
    with trainable(trio.model) as patcher, torch.no_grad():
        home, patcher.load_device = patcher.load_device, CUDA
        try:
            out = forward(patcher, trio.clip, shape)
        finally:
            patcher.load_device = home
    assert out.shape == (2, *shape[1:]) and out.device == CUDA
    (one,) = kept
    assert all(mask.device == CUDA for mask in (one.seen, one.blank) if mask is not None)
    if family == "anima":  # whose adapter makes texts of one length
        return
    assert one.seen is not None and one._mask(3) is one._mask(3), "made once, whichever attention asks"


def forward(patcher: Any, clip: Any, shape: list[int]) -> torch.Tensor:
    job = Job(LoraConfig(), TrainConfig(), tuple(shape[1:]), encode(clip, TEXTS[0], guidance=1.0), 64)
    other = replace(job, conditioning=encode(clip, TEXTS[1], guidance=1.0))
    with FakeTensorMode(allow_non_fake_inputs=True), _without_memory(patcher.model, (), CUDA):
        denoiser = ComfyDenoiser(patcher)
        conditions = [_condition(denoiser, each) for each in (job, other)]
        x = torch.zeros(2, *shape[1:], device=CUDA)
        return denoiser.denoised(x, torch.full((2,), 0.5, device=CUDA), conditions)


def test_a_model_on_another_device_than_comfyuis_own_is_unloaded(models, monkeypatch) -> None:
    """As with two GPUs; here the default device is one that is not there, and the model lies on the CPU."""
    manager, network = comfy.model_management, models("sd15").model.model
    manager.load_models_gpu([models("flux1").model])
    others = {id(each): each for each in manager.current_loaded_models if each.model.model is not network}
    monkeypatch.setattr(manager, "get_torch_device", lambda: CUDA)
    free = lambda _device=None, torch_free_too=False: (1000 * GB, 0) if torch_free_too else 1000 * GB  # noqa: E731
    monkeypatch.setattr(manager, "get_free_memory", free)
    with training_session(models("sd15").model, False):
        inside = [each for each in manager.current_loaded_models if each.model.model is network]
    after = [each for each in manager.current_loaded_models if each.model.model is network]
    assert inside and not after
    assert others and {id(each) for each in manager.current_loaded_models} == set(others), "nothing else was touched"


@pytest.mark.parametrize("known", [True, False], ids=["all_devices", "without"])
def test_comfyui_is_asked_for_all_devices_where_it_knows_of_them(models, monkeypatch, known: bool) -> None:
    asked = []
    monkeypatch.setattr(comfy.model_management, "unload_model_and_clones", newer(asked) if known else asked.append)
    release(models("sd15").model)
    assert asked == [True if known else models("sd15").model]


def newer(asked: list) -> Callable[..., None]:
    def unload(model: Any, unload_additional_models: bool = True, all_devices: bool = False) -> None:
        asked.append(all_devices)

    return unload


@pytest.mark.parametrize("has", [True, False])
def test_one_place_asks_for_fp64(models, random_adapter, monkeypatch, has: bool) -> None:
    monkeypatch.setattr(comfy.model_management, "supports_fp64", lambda device=None: has)
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert device.with_fp64(cpu) == cpu, "which always has it"
    assert device.with_fp64(other) == (other if has else cpu)
    adapter = random_adapter(models("sd15").model)
    model = apply_layers(models("sd15").model, None, adapter.layers)[0]
    weight = Patched(model, "model").read(f"{next(iter(adapter.layers))}.weight", cpu)
    assert weight.dtype == torch.float64
    monkeypatch.setattr(comfy.lora, "calculate_weight", lambda _patches, weight, _key: weight)  # factors stay in RAM
    weight = Patched(model, "model").read(f"{next(iter(adapter.layers))}.weight", other)
    assert weight.dtype == (torch.float64 if has else torch.float32)


@pytest.mark.parametrize(("seconds", "sides"), [(0.02, [768]), (1e-5, [768, 2048, 4096])])
def test_a_slow_device_is_timed_on_a_small_product(monkeypatch, seconds: float, sides: list[int]) -> None:
    timed = []
    monkeypatch.setattr(rates, "fastest", lambda _, work: timed.append(len(work.args[0])) or seconds)
    assert rates._flops(torch.device("cpu"), torch.float32) == 2 * sides[-1] ** 3 / seconds
    assert timed == sides
