"""Wuerstchen v2 in ComfyUI's KSampler draws what diffusers' pipelines draw, from the same files and the same noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.k_diffusion.sampling
import comfy.sample
import folder_paths
import pytest
import tiny.clip
import torch
from diffusers import DDPMWuerstchenScheduler
from diffusers.pipelines.deprecated.wuerstchen import (
    PaellaVQModel,
    WuerstchenDecoderPipeline,
    WuerstchenDiffNeXt,
    WuerstchenPrior,
    WuerstchenPriorPipeline,
)
from harness.calls import encode, relative_error, run_node
from harness.comfyui import comfyui_path
from harness.parity import theirs
from lora_loom.nodes.bridge.networks.wuerstchen_encoder import WuerstchenEncoder
from lora_loom.nodes.empty_two_stage_latent import EmptyTwoStageLatent
from lora_loom.nodes.load_two_stage_model import LoadTwoStageModel
from lora_loom.nodes.load_two_stage_text_encoder import LoadTwoStageTextEncoder
from lora_loom.nodes.load_two_stage_vae import LoadTwoStageVae
from lora_loom.nodes.prior_to_conditioning import PriorToConditioning
from safetensors.torch import save_file
from tiny import wuerstchen
from torch import Tensor
from transformers import CLIPTokenizer

import nodes

STEPS, SEED, SCALE = 4, 7, 4.0
WIDTH, HEIGHT = 128, 256  # diffusers rounds others to latents that it cannot use
PROMPT, AGAINST = "a red heart on a grey background", "blurry"


class System:
    """Both sides, from the same weights."""

    def __init__(self, root: Path) -> None:
        self.root, self.text = root, tiny.clip.text(64)
        self.weights = {
            "prior": wuerstchen.prior_weights(),
            "decoder": wuerstchen.decoder_weights(),
            "vqgan": wuerstchen.vqgan_weights(),
            "encoder": wuerstchen.encoder_weights(),
            "text": self.text.state_dict(),
        }
        folders = {"prior": "diffusion_models", "decoder": "diffusion_models", "text": "text_encoders"}
        for name, weights in self.weights.items():
            path = root / folders.get(name, "vae") / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in weights.items()}, path)
        (self.prior,) = run_node(LoadTwoStageModel, model_name="prior.safetensors", weight_dtype="default")
        (self.decoder,) = run_node(LoadTwoStageModel, model_name="decoder.safetensors", weight_dtype="default")
        (self.vae,) = run_node(LoadTwoStageVae, vae_name="vqgan.safetensors")
        (self.encoder,) = run_node(LoadTwoStageVae, vae_name="encoder.safetensors")
        (self.clip,) = run_node(LoadTwoStageTextEncoder, clip_name="text.safetensors")
        self.tokenizer = CLIPTokenizer.from_pretrained(comfyui_path() / "comfy" / "sd1_tokenizer", model_max_length=77)

    def prior_pipeline(self, scheduler: Any) -> WuerstchenPriorPipeline:
        prior = theirs(WuerstchenPrior, self.weights["prior"], **wuerstchen.PRIOR, nhead=2)
        return _quiet(WuerstchenPriorPipeline(self.tokenizer, self.text, prior, scheduler))

    def decoder_pipeline(self, scheduler: Any) -> WuerstchenDecoderPipeline:
        decoder = theirs(WuerstchenDiffNeXt, self.weights["decoder"], **wuerstchen.DECODER, nhead=[-1, 1, 2])
        sizes = {"embed_dim": 32, "levels": 2, "bottleneck_blocks": 2, "latent_channels": 4, "num_vq_embeddings": 8}
        vqgan = theirs(PaellaVQModel, self.weights["vqgan"], **sizes)
        return _quiet(WuerstchenDecoderPipeline(self.tokenizer, self.text, decoder, scheduler, vqgan))


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("wuerstchen")
    for kind in ("diffusion_models", "vae", "text_encoders"):
        (root / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(root / kind), is_default=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.cli_args.args, "fp32_text_enc", True)
        yield System(root)


class Recorded(DDPMWuerstchenScheduler):
    """Keeps the level of noise of each step, and the clean sample that the network sees."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[float] = []
        self.clean: list[Tensor] = []

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **_: Any) -> Any:
        kept = self._alpha_cumprod(timestep, sample.device)
        self.levels.append(float(timestep[0]))
        self.clean.append((sample - (1 - kept).sqrt() * model_output) / kept.sqrt())
        return super().step(model_output, timestep, sample)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Recorded]:
    """A scheduler that is given the noise that ComfyUI's sampler draws for latents of that shape."""

    def made(latents: Tensor) -> Recorded:
        draw = comfy.k_diffusion.sampling.default_noise_sampler(torch.zeros_like(latents), seed=SEED)
        place = "diffusers.schedulers.scheduling_ddpm_wuerstchen.randn_tensor"
        monkeypatch.setattr(place, lambda *_, **__: draw(None, None))
        return Recorded()

    return made


def drawn(model: Any, positive: Any, negative: Any, empty: Any, scale: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What a KSampler makes, the noise it began with, and the clean sample of each step."""
    noise, clean = comfy.sample.prepare_noise(empty["samples"], SEED), []
    made = comfy.sample.sample(
        model, noise, STEPS, scale, "ddpm", "simple", positive, negative, empty["samples"], seed=SEED,
        callback=lambda step, denoised, x, steps: clean.append(denoised.clone()), disable_pbar=True,
    )  # fmt: skip
    return made, noise, clean


def watched(model: Any) -> tuple[Any, list[float]]:
    """A clone of a MODEL, and the levels of noise that its network is told."""
    levels: list[float] = []

    def note(apply: Any, given: dict[str, Any]) -> Tensor:
        levels.append(float(model.get_model_object("model_sampling").timestep(given["timestep"])[0]))
        return apply(given["input"], given["timestep"], **given["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(note)
    return clone, levels


def check(made: Tensor, clean: list[Tensor], right: Tensor, steps: Recorded, levels: list[float]) -> None:
    """diffusers leaves a ten thousandth of the noise's power at the end, ComfyUI none: a thousandth of a latent."""
    assert levels == pytest.approx(steps.levels, abs=1e-5) and steps.levels == [1.0, 0.75, 0.5, 0.25]
    errors = [relative_error(ours, wanted) for ours, wanted in zip(clean, steps.clean, strict=True)]
    assert errors[0] < 1e-5 and max(errors) < 1e-3  # ComfyUI's levels are rounded, and waves of 10000 of them are told
    assert relative_error(made, right) < 3e-3


@torch.inference_mode()
def test_prior_is_sampled_as_by_diffusers(system: System, recorded: Callable[[Tensor], Recorded]) -> None:
    empty, _ = run_node(EmptyTwoStageLatent, model=system.prior, width=WIDTH, height=HEIGHT, batch_size=1)
    model, levels = watched(system.prior)
    texts = encode(system.clip, PROMPT), encode(system.clip, AGAINST)
    made, noise, clean = drawn(model, *texts, empty, SCALE)
    assert tuple(noise.shape) == (1, 16, 6, 3)
    steps = recorded(noise)
    right = system.prior_pipeline(steps)(
        PROMPT, HEIGHT, WIDTH, STEPS, guidance_scale=SCALE, negative_prompt=AGAINST, latents=noise
    ).image_embeddings
    check(made, clean, right, steps, levels)


@pytest.mark.parametrize("scale", [1.0, SCALE], ids=["alone", "guided"])
@torch.inference_mode()
def test_decoder_is_sampled_as_by_diffusers(
    system: System, recorded: Callable[[Tensor], Recorded], scale: float
) -> None:
    _, empty = run_node(EmptyTwoStageLatent, model=system.decoder, width=WIDTH, height=HEIGHT, batch_size=1)
    prior = torch.randn(1, 16, 6, 3, generator=torch.Generator().manual_seed(1))
    texts = {"positive": encode(system.clip, PROMPT), "negative": encode(system.clip, AGAINST)}
    positive, negative = run_node(PriorToConditioning, prior={"samples": prior}, **texts)
    model, levels = watched(system.decoder)
    made, noise, clean = drawn(model, positive, negative, empty, scale)
    assert tuple(noise.shape) == (1, 4, 64, 32)
    steps = recorded(noise)
    pipeline = system.decoder_pipeline(steps)
    pipeline.register_to_config(latent_dim_scale=10.67)
    given = {"num_inference_steps": STEPS, "guidance_scale": scale, "negative_prompt": AGAINST, "latents": noise}
    right = pipeline.vqgan.config.scale_factor * pipeline(prior, PROMPT, output_type="latent", **given).images
    check(made, clean, right, steps, levels)
    (picture,) = nodes.VAEDecode().decode(system.vae, {"samples": made})
    decoded = pipeline.vqgan.decode(made).sample.clamp(0, 1)
    assert relative_error(picture.movedim(-1, 1), decoded) < 1e-3


@torch.inference_mode()
def test_the_encoder_is_read_from_either_file_and_makes_latents_of_the_prior(system: System) -> None:
    """Alone, or beside the decoder, as it is published."""
    published = {"state_dict": system.weights["decoder"], "effnet_state_dict": system.weights["encoder"]}
    torch.save(published, system.root / "vae" / "model_v2_stage_b.pt")
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    (latent,) = nodes.VAEEncode().encode(system.encoder, picture)
    assert latent["samples"].shape == (1, 16, 2, 3)
    network = theirs(WuerstchenEncoder, system.weights["encoder"])
    assert relative_error(latent["samples"], network.encode(picture.movedim(-1, 1) * 2 - 1)) < 1e-5
    (other,) = run_node(LoadTwoStageVae, vae_name="model_v2_stage_b.pt")
    assert torch.equal(nodes.VAEEncode().encode(other, picture)[0]["samples"], latent["samples"])
    space = system.prior.model.latent_format
    assert torch.equal(space.process_in(latent["samples"]), (latent["samples"] + 1) / 42)
    with pytest.raises(ValueError, match="cannot decode; the decoder of Wuerstchen"):
        nodes.VAEDecode().decode(system.encoder, latent)


@torch.inference_mode()
def test_the_vqgan_takes_pictures_there_and_back(system: System) -> None:
    picture = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    (latent,) = nodes.VAEEncode().encode(system.vae, picture)
    vqgan = system.decoder_pipeline(Recorded()).vqgan
    assert relative_error(latent["samples"], vqgan.encode(picture.movedim(-1, 1)).latents) < 1e-5
    assert nodes.VAEDecode().decode(system.vae, latent)[0].shape == picture.shape


@torch.inference_mode()
def test_a_decoder_says_what_it_lacks(system: System) -> None:
    _, empty = run_node(EmptyTwoStageLatent, model=system.decoder, width=WIDTH, height=HEIGHT, batch_size=1)
    text = encode(system.clip, PROMPT)
    with pytest.raises(ValueError, match="draws from what its prior makes, a latent of 16 channels"):
        drawn(system.decoder, text, text, empty, 1.0)
    prior = {"samples": torch.zeros(1, 16, 6, 3)}
    with pytest.raises(ValueError, match="connect it and a negative one to positive and negative"):
        run_node(PriorToConditioning, prior=prior)
    wide = [[torch.zeros(1, 77, 1280), {}]]
    conditioning = run_node(PriorToConditioning, prior=prior, positive=wide, negative=wide)
    with pytest.raises(ValueError, match="the decoder of Wuerstchen v2 reads text of .* but this is CLIP ViT-bigG"):
        drawn(system.decoder, *conditioning, empty, 1.0)


def test_a_size_that_it_cannot_draw_is_refused_with_the_next_one(system: System) -> None:
    with pytest.raises(ValueError, match="multiples of 64, but 1000 x 520 is asked for; take 1024 x 512"):
        run_node(EmptyTwoStageLatent, model=system.prior, width=1000, height=520, batch_size=1)
