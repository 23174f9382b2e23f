"""The training loss on real ComfyUI models is the textbook one, computed here by hand around the bare network."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.latent_formats
import pytest
import tiny
import torch
from harness.calls import encode, relative_error
from harness.session import training_session
from lora_loom.lora_core.data import reading
from lora_loom.lora_core.training import objective
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser, prediction_type
from lora_loom.nodes.bridge.model.encoding import encode_captions, encode_images
from lora_loom.nodes.bridge.model.encoding_cache import cache_folder
from tiny.raw import arguments, seen
from torch import Tensor

FAMILIES = ["sd15", "flux1", "flux1_schnell", "wan_demo", *tiny.MORE]
CAPTIONS = ["a red heart", "blue", "a green square on a gray background", "", "striped"]
LEVELS = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.98])
EPSILON = torch.finfo(torch.float32).eps

# One textbook per prediction: (x_t, what the network is told about time, target) of x0, noise and u.
Textbook = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def ddpm(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ho et al. 2020 on Stable Diffusion's schedule: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) n, the target is n."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    step = (u * 1000).long()
    kept = (1 - betas).cumprod(0)[step].view(-1, 1, 1, 1)
    return kept.sqrt() * x0 + (1 - kept).sqrt() * noise, step.float(), noise


def ddpm_linear(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with betas that grow linearly between the same ends, as diffusers' DDPMScheduler of Kandinsky 2.2."""
    step, kept = _kept((u * 1000).long(), torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64))
    return kept.sqrt() * x0 + (1 - kept).sqrt() * noise, step, noise


def unclip(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ramesh et al. 2022 on the capped cosine schedule of diffusers' UnCLIPScheduler: the target is x0."""
    times = torch.arange(1001, dtype=torch.float64) / 1000
    bars = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    step, kept = _kept((u * 1000).long(), (1 - bars[1:] / bars[:-1]).clamp(max=0.999))
    return kept.sqrt() * x0 + (1 - kept).sqrt() * noise, step, x0


def _kept(step: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    return step.float(), (1 - betas).cumprod(0)[step].view(-1, 1, 1, 1)


def ddpm_v(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Salimans & Ho 2022: the same x_t, the target is sqrt(a_t) n - sqrt(1 - a_t) x0."""
    x_t, step, _ = ddpm(x0, noise, u)
    one = torch.ones_like(x0)
    kept, lost = ddpm(one, 0 * one, u)[0], ddpm(0 * one, one, u)[0]
    return x_t, step, kept * noise - lost * x0


def cascade(x0: Tensor, noise: Tensor, u: Tensor, shift: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pernias et al. 2023: Nichol & Dhariwal's cosine schedule at 1 / shift^2 of its SNR; the target is n."""

    def kept_at(time: Tensor) -> Tensor:
        return (math.cos(0.004 * math.pi / 1.008) ** -1 * ((time + 0.008) / 1.008 * math.pi / 2).cos()) ** 2

    kept = kept_at(((u * 10_000).long() + 1).double() / 10_000)
    kept = kept / (kept + shift**2 * (1 - kept))
    time = (kept.sqrt() * math.cos(0.004 * math.pi / 1.008)).acos() / (math.pi / 2) * 1.008 - 0.008
    assert torch.allclose(kept_at(time), kept)
    kept = kept.view(-1, 1, 1, 1)
    return kept.sqrt() * x0 + (1 - kept).sqrt() * noise, time.float(), noise


def cascade_2(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cascade(x0, noise, u, 2.0)


def rectified_flow(x0: Tensor, noise: Tensor, u: Tensor, steps: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Liu et al. 2022: x_t = (1 - t) x0 + t n, the target is n - x0."""
    t = u.double().view(-1, *(1 for _ in x0.shape[1:]))
    return (1 - t) * x0 + t * noise, u * steps, noise - x0


def flow_1000(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return rectified_flow(x0, noise, u, 1000.0)


TEXTBOOKS: dict[str, Textbook] = {
    "sd15": ddpm, "flux1": rectified_flow, "flux1_schnell": rectified_flow, "wan_demo": flow_1000,
    "sdxl": ddpm, "sdxl_v": ddpm_v, "sd35_large": flow_1000, "sd35_medium": flow_1000, "flux2": rectified_flow,
    "wan21": flow_1000, "wan22_5b": flow_1000, "qwen_image": rectified_flow, "ernie_image": flow_1000,
    "hidream": flow_1000, "ideogram4": rectified_flow, "ltxv": rectified_flow,
    "zimage": rectified_flow, "lumina2": rectified_flow, "chroma": rectified_flow, "krea2": rectified_flow,
    "kandinsky5": flow_1000, "kandinsky5_clips": flow_1000, "anima": rectified_flow,
    "cascade_c": cascade_2, "cascade_b": cascade, "kandinsky22_prior": unclip, "kandinsky22_decoder": ddpm_linear,
    "wuerstchen2": cascade,
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def denoiser_of(model: Any) -> Iterator[ComfyDenoiser]:
    with training_session(model, checkpointing=False) as patcher, torch.no_grad():
        yield ComfyDenoiser(patcher)


def latents(model: Any, count: int) -> tuple[Tensor, Tensor]:
    """x0 and noise, (count, channels, [1,] height, width), fp32."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(tiny.latent_shape(model, count), generator=generator) for _ in range(2))


def captioned(trio: tiny.Loaded, texts: list[str], guidance: float) -> list[list]:
    """CONDITIONING of each text; with a prior of its own where the family has one."""
    draw = torch.Generator().manual_seed(1)
    priors = [tiny.prior_of(trio.model, draw) for _ in texts]
    return [encode(trio.clip, text, guidance=guidance, **prior) for text, prior in zip(texts, priors, strict=True)]


def bare_network(model: Any, x_t: Tensor, time: Tensor, conditioning: list[list]) -> Tensor:
    """The diffusion network itself, one sample at a time, on nothing but its own arguments."""
    out = []
    for x, t, ((text, options),) in zip(x_t, time, conditioning, strict=True):
        out.append(model.diffusion_model(seen(model, x)[None].float(), t[None], **arguments(model, text, options, x)))
    return torch.cat(out)


@pytest.mark.verifies("Loss", "")
@torch.no_grad()
def test_residual_is_output_minus_target(models, family: str, record_property) -> None:
    trio = models(family)
    conditioning = captioned(trio, CAPTIONS, guidance=2.5)
    x0, noise = latents(trio.model, len(LEVELS))
    with denoiser_of(trio.model) as denoiser:
        x_t, time, target = TEXTBOOKS[family](x0.double(), noise.double(), LEVELS)
        conditions = [denoiser.condition(c, x) for c, x in zip(conditioning, x0, strict=True)]
        sigma = denoiser.sigma(LEVELS)
        told = denoiser.sampling.timestep(sigma).float()  # in fp32, which Stable Cascade's fast sinusoids feel
        assert relative_error(told, time) < 1e-5
        wanted = bare_network(trio.model.model, x_t, told, conditioning).double() - target
        residual = objective.residual(denoiser, x0, noise, sigma, conditions)
        # x0_pred - x0 is a difference of fp32 numbers of the size of x_t, divided by b.
        rounding = EPSILON * (1 + x0.std() + sigma) / denoiser.output_scale(sigma).abs()
        for index in range(len(LEVELS)):
            limit = 2e-6 + float(rounding[index])
            error = relative_error(residual[index], wanted[index])
            record_property("error", error)
            assert error < limit, f"noise level {LEVELS[index]:g}"


FORWARDS_OF_FIVE = {"ernie_image": [1, 1, 1, 2]}  # as below


@torch.no_grad()
def test_each_sample_sees_its_own_caption_in_one_forward(models, family: str) -> None:
    trio = models(family)
    conditioning = captioned(trio, CAPTIONS, guidance=1.0)
    x0, noise = latents(trio.model, 5)
    with denoiser_of(trio.model) as denoiser, counted(trio.model) as calls:
        sigma = denoiser.sigma(LEVELS)
        conditions = [denoiser.condition(c, x) for c, x in zip(conditioning, x0, strict=True)]
        together = objective.residual(denoiser, x0, noise, sigma, conditions)
        assert sorted(calls) == FORWARDS_OF_FIVE.get(family, [5]), "no sample for another's caption"
        for i in range(5):
            alone = objective.residual(denoiser, x0[i : i + 1], noise[i : i + 1], sigma[i : i + 1], [conditions[i]])
            assert relative_error(together[i], alone[0]) < 1e-4
        swapped = objective.residual(denoiser, x0, noise, sigma, conditions[::-1])
        assert relative_error(swapped[0], together[0]) > 1e-3, "the caption must matter"


# Batch sizes of the forwards for captions of four lengths, where one will not do.
FORWARDS = {
    "ernie_image": [1, 1, 2],  # where the picture is depends on how long the text is: two of a token each
    "hidream": [1, 3],  # three of no more than the 128 tokens up to which Llama's text is filled
    "ltxv": [1, 3],  # short texts are padded to 128 tokens, and attention sees none of that
    "cascade_c": [1, 1, 2],  # its attention is over the picture and the text at once, in an order of its own
    "zimage": [1, 1, 2],  # texts of as many tokens up to a multiple of 32; all, if the picture is such a multiple
}


@torch.no_grad()
@pytest.mark.parametrize(("name", "wide"), [*((name, 1) for name in FAMILIES), ("zimage", 2)])
def test_captions_of_different_length(models, name: str, wide: int) -> None:
    """Captions of no word to several hundred, of one chunk and more: each sees what it sees alone, in one forward."""
    trio = models(name)
    conditioning = captioned(trio, ["red", "many words, " * 40, "", "many words, " * 200], guidance=1.0)
    *shape, width = tiny.latent_shape(trio.model, 4)
    x0 = torch.randn(*shape, wide * width, generator=torch.Generator().manual_seed(0))
    with denoiser_of(trio.model) as denoiser, counted(trio.model) as calls:
        sigma = denoiser.sigma(torch.tensor([0.3, 0.7, 0.5, 0.9]))
        conditions = [denoiser.condition(c, x) for c, x in zip(conditioning, x0, strict=True)]
        together = denoiser.denoised(x0, sigma, conditions)
        assert sorted(calls) == ([4] if wide == 2 else FORWARDS.get(name, [4]))
        for i in range(4):
            alone = denoiser.denoised(x0[i : i + 1], sigma[i : i + 1], conditions[i : i + 1])[0]
            assert relative_error(together[i], alone) < 1e-5
        swapped = denoiser.denoised(x0, sigma, [conditions[i] for i in (1, 0, 3, 2)])
        assert min(relative_error(a, b) for a, b in zip(swapped, together, strict=True)) > 1e-4, "captions must matter"


@torch.no_grad()
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["kandinsky5", "lumina2", "krea2"])
def test_pictures_of_as_many_tokens_as_the_caption_or_more(models, name: str, times: int) -> None:
    """Attention over the picture alone then has as many keys as one over text: no padding must be looked for there."""
    trio = models(name)
    conditioning = captioned(trio, ["red", "many words, " * 10], guidance=1.0)
    longest = conditioning[1][0][0].shape[1]
    shape = tiny.latent_shape(trio.model, 2)[:-2]
    x0 = torch.randn(*shape, 2, 2 * times * longest, generator=torch.Generator().manual_seed(0))
    with denoiser_of(trio.model) as denoiser, counted(trio.model) as calls:
        sigma = denoiser.sigma(torch.tensor([0.3, 0.7]))
        conditions = [denoiser.condition(c, x) for c, x in zip(conditioning, x0, strict=True)]
        together = denoiser.denoised(x0, sigma, conditions)
        assert calls == [2]
        for i in range(2):
            alone = denoiser.denoised(x0[i : i + 1], sigma[i : i + 1], conditions[i : i + 1])[0]
            assert relative_error(together[i], alone) < 1e-5


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Batch sizes of the calls of the diffusion network."""
    calls: list[int] = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        hook.remove()


def test_prediction_types(models) -> None:
    words = {
        ddpm: "epsilon",
        ddpm_v: "v",
        ddpm_linear: "epsilon",
        unclip: "sample",
        cascade: "epsilon",
        cascade_2: "epsilon",
        rectified_flow: "flow",
        flow_1000: "flow",
    }
    for name in FAMILIES:
        assert prediction_type(models(name).model) == words[TEXTBOOKS[name]], name


def test_noise_levels_run_from_clean_to_noise(models, family: str) -> None:
    with denoiser_of(models(family).model) as denoiser:
        sigma = denoiser.sigma(torch.linspace(0, 1, 1001))
        snr = denoiser.snr(sigma)
        assert torch.isfinite(sigma).all() and (sigma > 0).all()
        assert (sigma.diff() >= 0).all() and (snr.diff() <= 0).all()
        assert denoiser.output_scale(sigma).abs().min() > 0


SCALES = {
    "sd15": lambda z: z * 0.18215,
    "flux1": lambda z: (z - 0.1159) * 0.3611,
    "wan_demo": lambda z: wan_scaled(z),
    "qwen_image": lambda z: wan_scaled(z),
}


def wan_scaled(z: Tensor) -> Tensor:
    table = comfy.latent_formats.Wan21()
    mean, std = (torch.as_tensor(v).flatten().view(1, 16, 1, 1, 1) for v in (table.latents_mean, table.latents_std))
    return (z - mean) / std


@pytest.mark.parametrize("name", SCALES)
def test_latents_are_in_the_models_own_scale(models, pictures: Path, name: str) -> None:
    trio = models(name)
    data = reading.from_folder(pictures, "", 64, 16, 1)
    encoded = encode_images(trio.vae, trio.model, data, lambda *_: None)
    for latent, example in zip(encoded, data.examples, strict=True):
        with torch.inference_mode():
            wanted = SCALES[name](trio.vae.encode(example.pixels[None].float()))
        assert latent.shape == wanted.shape[1:] and not latent.is_inference()
        assert relative_error(latent, wanted[0]) < 1e-6


def test_captions_are_encoded_once_and_outside_inference_mode(models) -> None:
    told: list[str] = []
    shutil.rmtree(cache_folder(), ignore_errors=True)
    with torch.inference_mode():
        encoded = encode_captions(models("flux1").clip, ["b", "a", "b", ""], 1.0, lambda *args: told.append(args[2]))
    assert sorted(encoded) == ["", "a", "b"] and len(told) == 3
    ((text, options),) = encoded["a"]
    assert not text.is_inference() and not options["pooled_output"].is_inference()
    assert options["guidance"] == 1.0
    assert torch.equal(text, encode(models("flux1").clip, "a")[0][0])
