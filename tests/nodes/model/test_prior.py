"""Stages that draw what an earlier one has told them are trained on what an encoder tells of each picture: Stable
Cascade's stage B on its stage C latent, as ComfyUI's nodes make it, Kandinsky 2.2's decoder on its image embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils
import pytest
import torch
from comfy_extras.nodes_stable_cascade import StableCascade_StageB_Conditioning, StableCascade_StageC_VAEEncode
from harness.calls import encode, relative_error, run_node
from harness.session import training_session
from lora_loom.lora_core.data import reading
from lora_loom.lora_core.families.table import Places
from lora_loom.nodes.bridge.model import encoding
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.encoding import check_sizes, encode_captions, encode_images
from lora_loom.nodes.bridge.model.prior import encode_priors
from lora_loom.nodes.bridge.training.samples import make_samples
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.train_lora import TrainLora

SETTINGS = {
    "steps": 2, "rank": 2, "alpha": 2.0, "learning_rate": 1e-3, "targets": "attention", "seed": 7, "batch_size": 2,
    "accumulation": 1, "run_name": "refused",
}  # fmt: skip


def quiet(*_: Any) -> None:
    pass


@pytest.fixture
def data(pictures: Path) -> Any:
    """Large enough for priors of several sizes."""
    return reading.from_folder(pictures, "", 128, 32, 1)


def test_each_sample_has_the_prior_of_its_own_picture(models, data) -> None:
    trio = models("cascade_b")
    captions = encode_captions(trio.clip, ["", *(example.caption for example in data.examples)], None, quiet)
    latents = encode_images(trio.vae, trio.model, data, quiet)
    priors = encode_priors(trio.prior_vae, trio.model, data, quiet)
    with training_session(trio.model, checkpointing=False) as patcher:
        denoiser = ComfyDenoiser(patcher)
        samples = make_samples(denoiser, data, captions, latents, priors, ())
        for example, sample in zip(data.examples, samples, strict=True):
            encoded = run_node(
                StableCascade_StageC_VAEEncode, image=example.pixels[None].float(), vae=trio.prior_vae, compression=42
            )[0]
            height, width = (side // 42 for side in example.pixels.shape[:2])
            assert encoded["samples"].shape == (1, 16, height, width)
            (text,) = run_node(
                StableCascade_StageB_Conditioning, conditioning=encode(trio.clip, example.caption), stage_c=encoded
            )
            wanted = denoiser.condition(text, sample.latent)
            assert wanted.keys() == sample.condition.keys() == {"clip", "effnet", "sca"}
            for name, cond in wanted.items():
                assert relative_error(sample.condition[name].cond, cond.cond) < 1e-6 or not cond.cond.any(), name
            assert torch.equal(sample.unconditional["effnet"].cond, sample.condition["effnet"].cond)
    assert len({prior["stable_cascade_prior"].shape for prior in priors}) > 1, "each of its own size"
    first, second = (prior["stable_cascade_prior"] for prior in priors[:2])
    assert relative_error(first, second) > 0.1, "the encoder tells pictures apart"


def test_the_decoder_is_given_each_pictures_own_embedding(models, data) -> None:
    trio = models("kandinsky22_decoder")
    captions = encode_captions(trio.clip, ["", *(example.caption for example in data.examples)], None, quiet)
    latents = encode_images(trio.vae, trio.model, data, quiet)
    priors = encode_priors(trio.prior_vae, trio.model, data, quiet)
    with training_session(trio.model, checkpointing=False) as patcher:
        samples = make_samples(ComfyDenoiser(patcher), data, captions, latents, priors, ())
    for example, sample in zip(data.examples, samples, strict=True):
        wanted = trio.prior_vae.encode(example.pixels[None].float())
        for condition in (sample.condition, sample.unconditional):
            assert torch.equal(condition["y"].cond, wanted.flatten(1)), "not the text's, which the caption's holds"
    assert relative_error(samples[0].condition["y"].cond, samples[1].condition["y"].cond) > 0.01


def test_sizes_that_a_network_cannot_halve_are_refused_before_anything_is_encoded(models, pictures: Path) -> None:
    trio = models("kandinsky22_decoder")
    fits, odd = (reading.from_folder(pictures, "", side, 8, 1) for side in (64, 72))
    check_sizes(trio.vae, trio.model, fits)
    message = (
        "bucket .* is not a multiple of 16, which Kandinsky 2.2 decoder needs; set bucket_step to a multiple of 16"
    )
    with pytest.raises(ValueError, match=message):
        check_sizes(trio.vae, trio.model, odd)
    check_sizes(trio.vae, models("sd15").model, odd)


def test_pictures_for_wuerstchen_are_resized_and_kept_apart_from_others(models, data) -> None:
    """A place stands for 42.67 pixels and not for the encoder's own; the last one of a side may be narrower."""
    trio = models("wuerstchen2")
    latents = encode_images(trio.vae, trio.model, data, quiet)
    for example, latent in zip(data.examples, latents, strict=True):
        height, width = (-(-side * 100 // 4267) for side in example.pixels.shape[:2])
        assert latent.shape == (16, height, width)
        pixels = comfy.utils.common_upscale(
            example.pixels[None].float().movedim(-1, 1), 8 * width, 8 * height, "bicubic", "center"
        )
        assert torch.equal(latent, (trio.vae.encode(pixels.movedim(1, -1))[0] + 1.0) / 42.0)
    seen, kinds = [], []
    for name in ("wuerstchen2", "cascade_c"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoding, "encoded_views", lambda vae, kind, *_: kinds.append(kind) or seen)
            encode_images(trio.vae, models(name).model, data, quiet)
    assert kinds == ["latents_42.67", "latents"], "the same encoder, the same pictures and other latents"


@pytest.mark.parametrize(
    ("places", "side", "wanted"),
    [(Places(42), 1024, 24), (Places(42), 40, 1), (Places(42.67, up=True), 1024, 24), (Places(42.67, up=True), 768, 18),
     (Places(42.67, up=True), 1088, 26), (Places(42.67, up=True), 43, 2)],
)  # fmt: skip
def test_places_of_a_side(places: Places, side: int, wanted: int) -> None:
    """As many as ComfyUI's Stable Cascade nodes give a side, and diffusers' pipelines of Wuerstchen."""
    assert places.of(side) == wanted


@torch.no_grad()
def test_the_prior_matters(models) -> None:
    trio = models("cascade_b")
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, 16, generator=draw)
    with training_session(trio.model, checkpointing=False) as patcher, torch.no_grad():
        denoiser = ComfyDenoiser(patcher)
        priors = [torch.randn(1, 16, 2, 2, generator=draw) for _ in x]
        conditions = [denoiser.condition(encode(trio.clip, "blue", stable_cascade_prior=p), x[0]) for p in priors]
        sigma = denoiser.sigma(torch.tensor([0.5, 0.5]))
        together = denoiser.denoised(x, sigma, conditions)
        assert relative_error(denoiser.denoised(x[1:], sigma[1:], conditions[1:]), together[1:]) < 1e-5
        assert relative_error(denoiser.denoised(x, sigma, conditions[::-1]), together) > 1e-3


@pytest.mark.parametrize(
    ("family", "vaes", "message"),
    [
        (
            "cascade_b",
            {"prior_vae": None},
            "conditioned on the stage C latent .*; connect .* to prior_vae",
        ),
        ("cascade_b", {"prior_vae": "flux1"}, "prior_vae makes 16 latent channels and compresses by 8, but"),
        ("cascade_b", {"prior_vae": "sd15"}, "prior_vae makes 4 latent channels and compresses by 8, but"),
        (
            "cascade_b",
            {"vae": "sd15"},
            "this VAE compresses by 8 but Stable Cascade B works on .* of 4 x 4 pixels",
        ),
        (
            "sd15",
            {"prior_vae": "cascade_b"},
            "SD 1.5 does not use prior_vae; disconnect it .* and Kandinsky 2.2 decoder",
        ),
        (
            "kandinsky22_decoder",
            {"prior_vae": None},
            "conditioned on the CLIP image embedding .*; connect the CLIP vision model .* to prior_vae",
        ),
        (
            "kandinsky22_decoder",
            {"prior_vae": "sd15"},
            "makes 4 latent channels .* on the CLIP image embedding, which has 64 channels; connect the CLIP vision",
        ),
        (
            "kandinsky22_decoder",
            {"vae": "sd15"},
            "VAE is a TAESD, but Kandinsky 2.2 decoder works on what MoVQ, .* connect",
        ),
    ],
)
def test_wrong_vaes(models, pictures: Path, family: str, vaes: dict[str, str | None], message: str) -> None:
    trio = models(family)
    (data,) = run_node(LoraDataset, folder=str(pictures), trigger="", resolution=64, repeats=1, bucket_step=16)[:1]
    inputs = {"vae": trio.vae, "prior_vae": trio.prior_vae}
    inputs |= {name: vae if vae is None else models(vae).vae for name, vae in vaes.items()}
    with pytest.raises(ValueError, match=message):
        run_node(TrainLora, model=trio.model, clip=trio.clip, dataset=data, **SETTINGS, **inputs)
