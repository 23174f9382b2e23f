"""The stages load in every type that Load Diffusion Model offers, from files of diffusers and of ComfyUI alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import folder_paths
import pytest
import torch
from harness.calls import relative_error, run_node
from harness.kandinsky import DECODER, System
from lora_loom.nodes.bridge.host.model_files import files_of
from lora_loom.nodes.bridge.systems.loading import WEIGHT_TYPES, load_model
from lora_loom.nodes.load_two_stage_model import LoadTwoStageModel
from safetensors.torch import save_file
from tiny import kandinsky
from torch import Tensor

import nodes

Written = Callable[[dict[str, Tensor]], str]
NAME = "changed_decoder.safetensors"


@pytest.fixture
def written(system: System) -> Iterator[Written]:
    """Writes a file beside the tiny networks, and gives its name."""
    folder = next(Path(each) for each in folder_paths.get_folder_paths("diffusion_models") if "kandinsky" in each)

    def write(weights: dict[str, Tensor]) -> str:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / NAME)
        return NAME

    yield write
    (folder / NAME).unlink(missing_ok=True)


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_every_type_of_weights_draws(system: System, kind: str) -> None:
    (model,) = run_node(LoadTwoStageModel, model_name="kandinsky_decoder.safetensors", weight_dtype=kind)
    wanted = WEIGHT_TYPES[kind].get("dtype", torch.float32)
    assert model.model_dtype() == wanted == model.model.diffusion_model.conv_in.weight.dtype
    drawn = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 4, 8, 8, generator=drawn), torch.randn(1, kandinsky.EMBED, generator=drawn)
    with torch.inference_mode():
        out = model.model.apply_model(x, torch.tensor([3.0]), y=y)
        right = system.decoder.model.apply_model(x, torch.tensor([3.0]), y=y)
    assert relative_error(out, right) <= (0.2 if wanted.itemsize == 1 else 0)


def test_the_options_of_load_diffusion_model() -> None:
    assert list(WEIGHT_TYPES) == nodes.UNETLoader.INPUT_TYPES()["required"]["weight_dtype"][0]


def test_the_file_is_noted_as_comfyui_notes_it(system: System) -> None:
    """Our hashes of base models, and ComfyUI's copies for further GPUs, begin with it."""
    (path,) = files_of(system.prior)
    load, arguments = system.prior.cached_patcher_init
    assert Path(path).name == "kandinsky_prior.safetensors"
    again = load(*arguments, disable_dynamic=True)
    assert type(again.model) is type(system.prior.model)
    assert torch.equal(again.model.latent_format.mean, system.prior.model.latent_format.mean)


def test_what_comfyui_has_saved_is_read_again(written: Written) -> None:
    weights = kandinsky.decoder_weights(DECODER)
    saved = {f"model.diffusion_model.{name}": value for name, value in weights.items()}
    loaded = load_model(written(saved)).model.diffusion_model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_weights_that_are_missing_are_told(written: Written) -> None:
    weights = kandinsky.decoder_weights(DECODER)
    del weights["mid_block.resnets.1.conv2.bias"]
    with pytest.raises(ValueError, match=r"decoder of Kandinsky 2.2, but 1 of its weights are missing, such as mid_"):
        load_model(written(weights))


def test_scaled_fp8_of_comfyui_is_read(written: Written, system: System) -> None:
    """A layer whose weight is fp8 with a scale beside it, as ComfyUI's own files of large models have them."""
    weights, name = kandinsky.decoder_weights(DECODER), "add_embedding.image_proj"
    scale = weights[f"{name}.weight"].abs().max() / 448
    packed = {
        f"{name}.weight": (weights[f"{name}.weight"] / scale).to(torch.float8_e4m3fn),
        f"{name}.scale_weight": scale, "scaled_fp8": torch.zeros(1, dtype=torch.float8_e4m3fn),
    }  # fmt: skip
    model = load_model(written(weights | packed))
    y = torch.randn(1, kandinsky.EMBED)
    with torch.inference_mode():
        out, right = (each.model.diffusion_model.add_embedding.image_proj(y) for each in (model, system.decoder))
    assert torch.allclose(out.float(), right, atol=0.1)
