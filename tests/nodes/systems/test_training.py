"""Train LoRA on both stages of Kandinsky 2.2 as its loaders give them, with CLIP vision and MoVQ; what it is made of
is what diffusers' scripts make of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode, loaded, run_node, sampled
from harness.kandinsky import System
from harness.runs import read, train, write_pictures
from lora_loom.lora_core.data import reading
from lora_loom.nodes.bridge.model.encoding import encode_images
from lora_loom.nodes.bridge.model.prior import encode_priors
from lora_loom.nodes.bridge.model.sampling import Sampling
from lora_loom.nodes.bridge.systems.kandinsky import IMAGE_EMBEDDING
from lora_loom.nodes.bridge.training.previews import Previews, check_previews
from lora_loom.nodes.clip_vision_as_vae import ClipVisionAsVae
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora

import nodes


@pytest.fixture
def stages(system: System) -> dict[str, tiny.Loaded]:
    """Each with what belongs to it."""
    (seeing,) = run_node(ClipVisionAsVae, clip_vision=system.clip_vision)
    return {
        "prior": tiny.Loaded(system.prior, system.clip, seeing),
        "decoder": tiny.Loaded(system.decoder, system.clip, system.vae, seeing),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_stage_learns_is_saved_and_draws_otherwise(
    stages: dict[str, tiny.Loaded], folder: Path, runs: Path, loras: Path, stage: str
) -> None:
    trio = stages[stage]
    before = loaded(trio.model)
    made = train(trio, read(folder, bucket_step=64), steps=2, learning_rate=1e-2, run_name=stage)
    assert all(torch.equal(value, before[key]) for key, value in loaded(trio.model).items())
    assert made.adapter.metadata["modelspec.prediction_type"] == {"prior": "sample", "decoder": "epsilon"}[stage]
    assert len(made.loss_map["loss"]) == 2 and all(layer.norm() > 0 for layer in made.adapter.layers.values())
    name, report = run_node(
        SaveLora, adapter=made.adapter, model=trio.model, name=stage, format="diffusers", dtype="fp32"
    )
    assert f", 0 unmatched, {len(made.adapter.layers)} layers applied" in report
    patched = run_node(LoadLoraStack, model=trio.model, lora_1=name, strength_1=1.0, text_strength_1=1.0)[0]
    text, latent = _conditioning(trio), torch.zeros(tiny.latent_shape(trio.model))
    assert not torch.equal(sampled(patched, text, latent), sampled(trio.model, text, latent))


def test_pictures_are_what_the_clip_vision_of_a_script_sees(stages: dict[str, tiny.Loaded], folder: Path) -> None:
    """The prior's latent is the picture's embedding less clip_mean, over clip_std; the decoder is given it as it is."""
    prior, decoder = stages["prior"], stages["decoder"]
    data = reading.from_folder(folder, "", 64, 64, 1)
    network = prior.model.model.diffusion_model
    latents = encode_images(prior.vae, prior.model, data, _quiet)
    given = encode_priors(decoder.prior_vae, decoder.model, data, _quiet)
    for example, latent, beside in zip(data.examples, latents, given, strict=True):
        with torch.inference_mode():
            seen = nodes.CLIPVisionEncode().encode(prior.vae.clip_vision, example.pixels[None].float(), "center")[0]
            wanted = (seen.image_embeds - network.clip_mean) / network.clip_std
        assert torch.allclose(latent.flatten(), wanted.flatten(), atol=1e-5)
        assert torch.equal(beside[IMAGE_EMBEDDING].flatten(1), seen.image_embeds)


def test_stages_have_no_previews(stages: dict[str, tiny.Loaded]) -> None:
    for trio in stages.values():
        with pytest.raises(ValueError, match="previews do not work with Kandinsky 2.2, because its stages sample one"):
            check_previews(Previews(Sampling(64, 64), ("a",)), trio.model, trio.vae, "")


def _conditioning(trio: tiny.Loaded) -> list[Any]:
    return encode(trio.clip, "a red heart", **tiny.prior_of(trio.model, torch.Generator().manual_seed(0)))


def _quiet(*_: Any) -> None:
    pass
