"""Models, data and nodes for the tests that run inside a real ComfyUI."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from harness.inprocess import load_comfyui

load_comfyui()

import comfy.model_management
import folder_paths
import pytest
import tiny
import torch
from harness.calls import register_pack
from harness.runs import read, write_pictures
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.merging.save import DTYPES, STYLES, save_proven
from lora_loom.nodes.bridge.model.trained_layers import PREFIX

import nodes

DEMO = "wan_demo"
Models = Callable[[str], tiny.Loaded]


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    register_pack()
    gc.collect()
    gc.freeze()  # ComfyUI collects garbage whenever a model is dropped; a million imported objects need no look


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """MODEL, CLIP and VAE by family name, loaded once. No test may have changed a weight by the end of the session."""
    folder = tmp_path_factory.mktemp("models")
    weights: dict[str, dict[str, torch.Tensor]] = {}

    @cache
    def load(name: str) -> tiny.Loaded:
        with torch.inference_mode():  # as loader nodes run
            loaded = _demo() if name == DEMO else tiny.load(name, folder)
        weights[name] = {key: value.clone() for key, value in loaded.model.model.state_dict().items()}
        return loaded

    yield load
    comfy.model_management.unload_all_models()
    for name, before in weights.items():
        after = load(name).model.model.state_dict()
        changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
        assert not changed, f"{name}: {len(changed)} weights changed, first {changed[0]}"


def _demo() -> tiny.Loaded:
    (model,) = nodes.UNETLoader().load_unet("loom_demo.safetensors", "default")
    (vae,) = nodes.VAELoader().load_vae("loom_demo_vae.safetensors")
    (clip,) = nodes.CLIPLoader().load_clip("loom_demo_words.pt", "stable_diffusion")
    return tiny.Loaded(model, clip, vae)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four captioned pictures in two shapes."""
    return write_pictures(tmp_path / "pictures")


@pytest.fixture(scope="session", name="write_pictures")
def _write_pictures() -> Callable[[Path], Path]:
    """Makes such a folder."""
    return write_pictures


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LORA_DATASET of such pictures, with the module's TRIGGER if it has one."""
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures")
    return read(folder, getattr(request.module, "TRIGGER", ""))


@pytest.fixture
def runs(comfy_base: Path) -> Iterator[Path]:
    """The folder in which runs are kept, empty before and afterwards; no cancel is left over."""
    folder = comfy_base / "output" / "lora_loom"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def loras() -> Iterator[Path]:
    """The first loras folder, emptied afterwards."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.fixture(scope="session")
def make_lora(models: Models) -> Callable[..., Adapter]:
    """Writes a LoRA with random factors for a family's model, and returns it in the model's own layer names."""

    def make(family: str, path: Path, style: str = "comfyui", dtype: str = "fp32", **choices) -> Adapter:
        model = models(family).model
        adapter = _random_adapter(model, **choices)
        save_proven(adapter, path, STYLES[style], DTYPES[dtype], model)
        return adapter

    return make


@pytest.fixture(scope="session")
def random_adapter() -> Callable[..., Adapter]:
    """An Adapter with random factors for a MODEL."""
    return _random_adapter


def _random_adapter(
    model, rank: int = 4, alpha: float = 3.0, seed: int = 0, preset: str = "attention", size: float = 0.05
) -> Adapter:
    """`size` is the norm of each correction relative to its weight's, without what another test's clone left in it."""
    generator = torch.Generator().manual_seed(seed)
    own = {key: each.weight for key, each in model.backup.items()}
    layers = {}
    for name, module in select(model.model.diffusion_model, LoraConfig(rank, alpha, preset), PREFIX).items():
        out, *inner = module.weight.shape
        down = torch.randn(rank, prod(inner), generator=generator)
        layer = LowRank(down, torch.randn(out, rank, generator=generator), alpha, tuple(inner[1:]))
        factor = size * float(own.get(f"{name}.weight", module.weight).float().norm()) / layer.norm()
        layers[name] = replace(layer, lora_B=layer.lora_B * factor)
    return Adapter(layers)


@pytest.fixture(scope="session")
def add_text() -> Callable[..., Adapter]:
    """An Adapter with random corrections of the text encoder's blocks added."""
    return _add_text


def _add_text(adapter: Adapter, clip: Any, seed: int = 0) -> Adapter:
    """The adapter with random corrections of all linear layers in the text encoder's blocks."""
    generator = torch.Generator().manual_seed(seed)
    layers = dict(adapter.layers)
    for key, weight in clip.cond_stage_model.state_dict().items():
        if "clip_l" in key and ".layers." in key and key.endswith(".weight") and weight.ndim == 2:
            down = torch.randn(4, weight.shape[1], generator=generator)
            layer = LowRank(down, torch.randn(weight.shape[0], 4, generator=generator), 2.0)
            small = 0.3 * float(weight.norm()) / layer.norm()
            layers[TEXT_PREFIX + key.removesuffix(".weight")] = layer.scaled(small)
    return Adapter(layers)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-contract", action="store_true", help="freeze the nodes' object_info as it is now")
