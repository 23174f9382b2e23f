"""Kandinsky 2.2 in ComfyUI's KSampler draws what diffusers' pipelines draw, from the same files and the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.sample
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler
from harness.calls import encode, relative_error, run_node
from harness.kandinsky import System
from lora_loom.nodes.bridge.systems.kandinsky import IMAGE_EMBEDDING, REACH
from lora_loom.nodes.empty_two_stage_latent import EmptyTwoStageLatent
from lora_loom.nodes.prior_to_conditioning import PriorToConditioning
from tiny import kandinsky
from torch import Tensor

import nodes

STEPS, SEED, SCALE = 4, 7, 4.0
PROMPT = "a red heart on a grey background"
BETAS = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, ...]], None]:
    """Gives diffusers' schedulers the noise that ComfyUI's sampler draws in that shape with the seed."""

    def share(shape: tuple[int, ...]) -> None:
        draw = comfy.k_diffusion.sampling.default_noise_sampler(torch.zeros(shape), seed=SEED)
        for module in ("unclip", "ddpm"):
            monkeypatch.setattr(
                f"diffusers.schedulers.scheduling_{module}.randn_tensor",
                lambda wanted, **_: draw(None, None).reshape(wanted),
            )

    return share


class Recorded:
    """The clean samples that a scheduler of diffusers believes in, step by step."""

    def __init__(self, scheduler: Any) -> None:
        self.seen: list[Tensor] = []
        step = scheduler.step

        def recording(*args: Any, **kwargs: Any) -> Any:
            out = step(*args, **kwargs)
            self.seen.append(out.pred_original_sample)
            return out

        scheduler.step = recording


@torch.inference_mode()
def drawn(
    model: Any, positive: Any, negative: Any, empty: Any, sampler: str, scheduler: str, clean: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """What a KSampler makes, and the noise it began with; `clean` gets the clean sample of each step."""
    noise = comfy.sample.prepare_noise(empty["samples"], SEED)
    made = comfy.sample.sample(
        model, noise, STEPS, SCALE, sampler, scheduler, positive, negative, empty["samples"], seed=SEED,
        callback=lambda step, denoised, x, steps: clean.append(denoised.clone()), disable_pbar=True,
    )  # fmt: skip
    return made, noise


@torch.inference_mode()
def test_prior_is_sampled_as_by_diffusers(system: System, noises: Callable[[tuple[int, ...]], None]) -> None:
    (empty, _) = run_node(EmptyTwoStageLatent, model=system.prior, width=64, height=64, batch_size=1)
    noises(tuple(empty["samples"].shape))
    clean: list[Tensor] = []
    texts = encode(system.clip, PROMPT), encode(system.clip, "")
    made, noise = drawn(system.prior, *texts, empty, "ddpm", "normal", clean)
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=REACH
    )
    recorded = Recorded(scheduler)
    right = system.prior_pipeline(scheduler)(
        PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, latents=noise.flatten(1)
    )
    errors = [relative_error(x0.flatten(1), wanted) for x0, wanted in zip(clean, recorded.seen, strict=True)]
    assert max(errors) < 1e-4
    assert all((each.abs() == REACH).any() for each in recorded.seen), "the clip is tried"
    assert relative_error(made.flatten(1), right.image_embeds) < 1e-3, "the last step divides by hardly any noise"
    positive, negative = run_node(PriorToConditioning, prior={"samples": made}, clip_vision=system.clip_vision)
    assert torch.equal(positive[0][1][IMAGE_EMBEDDING], made)
    assert relative_error(negative[0][1][IMAGE_EMBEDDING].flatten(1), right.negative_image_embeds) < 1e-5


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("euler", DDIMScheduler(clip_sample=False, set_alpha_to_one=True, steps_offset=1, **BETAS)),
        ("ddpm", DDPMScheduler(clip_sample=False, variance_type="fixed_small", steps_offset=1, **BETAS)),
    ],
    ids=["ddim", "ddpm"],
)
@torch.inference_mode()
def test_decoder_is_sampled_as_by_diffusers(
    system: System, noises: Callable[[tuple[int, ...]], None], sampler: str, scheduler: Any
) -> None:
    """But for its learned variance, which no sampler of ComfyUI reads: diffusers' DDPM is told of a fixed one. Where
    the first step is not the last of the 1000, ComfyUI begins with a little less noise than diffusers."""
    (_, empty) = run_node(EmptyTwoStageLatent, model=system.decoder, width=64, height=128, batch_size=1)
    noises(tuple(empty["samples"].shape))
    embeddings = torch.randn(2, kandinsky.EMBED, 1, 1, generator=torch.Generator().manual_seed(1))
    latents = [{"samples": each[None]} for each in embeddings]
    positive, negative = run_node(PriorToConditioning, prior=latents[0], negative_prior=latents[1])
    clean: list[Tensor] = []
    made, noise = drawn(system.decoder, positive, negative, empty, sampler, "ddim_uniform", clean)
    sigma = system.decoder.get_model_object("model_sampling").sigmas[751]
    recorded = Recorded(scheduler)
    right = system.decoder_pipeline(scheduler)(
        *embeddings.flatten(1)[:, None], height=128, width=64, num_inference_steps=STEPS, guidance_scale=SCALE,
        latents=noise * sigma / (1 + sigma**2) ** 0.5, output_type="latent",
    ).images  # fmt: skip
    errors = [relative_error(x0, wanted) for x0, wanted in zip(clean, recorded.seen, strict=True)]
    assert max(errors) < 1e-4
    assert relative_error(made, right) < 1e-4
    (picture,) = nodes.VAEDecode().decode(system.vae, {"samples": made})
    decoded = system.decoder_pipeline(scheduler).movq.decode(right, force_not_quantize=True).sample
    assert relative_error(picture.movedim(-1, 1), (decoded / 2 + 0.5).clamp(0, 1)) < 1e-4
