"""Pictures and captions are encoded once: kept on disk by content, found again, and never taken for others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import pytest
import torch
from harness.calls import relative_error, run_node
from harness.runs import train
from harness.session import training_session
from lora_loom.lora_core.data import reading
from lora_loom.lora_core.data.dataset import Dataset, Options
from lora_loom.lora_core.files import formats, save
from lora_loom.nodes.bridge.model import encoding_cache
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.encoding import encode_captions, encode_images
from lora_loom.nodes.bridge.model.encoding_cache import clip_identity, vae_identity
from lora_loom.nodes.bridge.model.prior import encode_priors
from lora_loom.nodes.bridge.training.samples import captions_to_encode, make_samples
from lora_loom.nodes.combine_datasets import CombineDatasets
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.load_stack import LoadLoraStack
from PIL import Image

import nodes


def quiet(*_: Any) -> None:
    pass


@pytest.fixture(autouse=True)
def folder(comfy_base: Path) -> Iterator[Path]:
    """The cache, empty before and after; runs are deleted too."""
    places = [encoding_cache.cache_folder(), comfy_base / "output" / "lora_loom"]
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    yield places[0]
    comfy.model_management.interrupt_current_processing(False)
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def read(pictures: Path, **options: Any) -> Dataset:
    return reading.from_folder(pictures, "", 64, 16, 1, Options(**options))


@contextmanager
def counted(trio: Any, at: Callable[[int], None] = quiet) -> Iterator[dict[str, int]]:
    """How often the encoders run inside, by their networks' own forward."""
    counts = {"clip": 0, "vae": 0}
    text, pixels = trio.clip.cond_stage_model.encode_token_weights, trio.vae.first_stage_model.encode

    def of(name: str, make: Callable) -> Callable:
        def encode(*args, **kwargs):
            counts[name] += 1
            at(counts["clip"] + counts["vae"])
            return make(*args, **kwargs)

        return encode

    trio.clip.cond_stage_model.encode_token_weights = of("clip", text)
    trio.vae.first_stage_model.encode = of("vae", pixels)
    try:
        yield counts
    finally:
        del trio.clip.cond_stage_model.encode_token_weights, trio.vae.first_stage_model.encode


def encode_all(trio: Any, data: Dataset) -> tuple[dict[str, list], list[torch.Tensor]]:
    with torch.inference_mode():
        captions = encode_captions(trio.clip, captions_to_encode(data, ()), None, quiet)
        return captions, encode_images(trio.vae, trio.model, data, quiet)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_changed_picture_is_encoded_again_and_nothing_else(models, pictures: Path) -> None:
    trio = models("flux1")
    with counted(trio) as counts:
        encode_all(trio, read(pictures))
    assert counts == {"clip": 5, "vae": 4}
    with counted(trio) as counts:
        encode_all(trio, read(pictures))
    assert counts == {"clip": 0, "vae": 0}
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (64, 64, 3), np.uint8)).save(pictures / "1.png")
    with counted(trio) as counts:
        encode_all(trio, read(pictures))
    assert counts == {"clip": 0, "vae": 1}
    (pictures / "1.txt").write_text("other words")
    with counted(trio) as counts:
        encode_all(trio, read(pictures, flip=True))
    assert counts == {"clip": 1, "vae": 4}, "the caption, and the mirror images"


@pytest.mark.parametrize("name", ["sd15", "flux1", "wan_demo"])
def test_what_is_kept_is_what_was_made(models, pictures: Path, name: str) -> None:
    trio, data = models(name), read(pictures, flip=True)
    first, again = encode_all(trio, data), encode_all(trio, data)
    for made, found in zip(first[1], again[1], strict=True):
        assert torch.equal(made, found) and not found.is_inference() and found.dtype == torch.float32
    for text, conditioning in first[0].items():
        ((made, options),), ((found, others),) = conditioning, again[0][text]
        assert torch.equal(made, found) and not found.is_inference() and options.keys() == others.keys()
        for key, value in options.items():
            assert torch.equal(value, others[key]) if torch.is_tensor(value) else value == others[key], key
            assert not (torch.is_tensor(others[key]) and others[key].is_inference())


def test_the_run_is_the_same_with_and_without_the_cache(models, pictures: Path, folder: Path) -> None:
    trio, data = models("flux1"), read(pictures)
    first = train(trio, data)[0]
    with counted(trio) as counts:
        found = train(trio, data, resume="start over")[0]
    assert counts == {"clip": 0, "vae": 0}
    shutil.rmtree(folder)
    with counted(trio) as counts:
        made = train(trio, data, resume="start over")[0]
    assert counts == {"clip": 5, "vae": 4}
    for key, value in first.items():
        assert torch.equal(found[key], value) and torch.equal(made[key], value)


def test_when_all_is_kept_nothing_is_loaded(models, pictures: Path) -> None:
    trio, data = models("flux1"), read(pictures)
    encode_all(trio, data)
    comfy.model_management.unload_all_models()
    encode_all(trio, data)
    assert not comfy.model_management.current_loaded_models
    (pictures / "0.txt").write_text("other words")
    encode_all(trio, read(pictures))
    loaded = [each.model for each in comfy.model_management.current_loaded_models]
    assert trio.vae.patcher not in loaded and loaded == [trio.clip.patcher]


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:-5] + b"12345", lambda _: b""])
def test_damaged_files_are_made_again(models, pictures: Path, folder: Path, damage) -> None:
    trio, data = models("flux1"), read(pictures)
    made = encode_all(trio, data)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(damage(path.read_bytes()))
    with counted(trio) as counts:
        again = encode_all(trio, data)
    assert counts == {"clip": 5, "vae": 4} and all(map(torch.equal, made[1], again[1]))
    with counted(trio) as counts:
        encode_all(trio, data)
    assert counts == {"clip": 0, "vae": 0}


def test_a_cancel_keeps_what_is_done(models, pictures: Path) -> None:
    trio, data = models("flux1"), read(pictures)
    with (
        counted(trio, lambda n: comfy.model_management.interrupt_current_processing(n == 7)) as counts,
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        train(trio, data)
    assert counts == {"clip": 5, "vae": 2}, "the second picture is cut off inside"
    with counted(trio) as counts:
        train(trio, data)
    assert counts == {"clip": 0, "vae": 3}


def test_a_cancel_inside_a_long_text(models, pictures: Path) -> None:
    trio = models("flux1")
    network, seen = trio.clip.cond_stage_model, []
    layers = [module for name, module in network.named_modules() if not list(module.children())]

    def look(*_: Any) -> None:
        seen.append(1)
        comfy.model_management.interrupt_current_processing(len(seen) == 3)

    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            encode_captions(trio.clip, ["a"], None, quiet)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == 3
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert encode_captions(trio.clip, ["a"], None, quiet)


# -- who made it -------------------------------------------------------------------------------------------------------


def test_encoders_are_told_apart(models, loras: Path, make_lora, add_text) -> None:
    sd15, flux = models("sd15"), models("flux1")
    assert len({vae_identity(each.vae) for each in (sd15, flux, models("wan_demo"))}) == 3
    assert vae_identity(sd15.vae) == vae_identity(sd15.vae)
    plain = clip_identity(sd15.clip)
    assert plain == clip_identity(sd15.clip.clone()) and plain != clip_identity(flux.clip)
    (skipped,) = nodes.CLIPSetLastLayer().set_last_layer(sd15.clip, -2)
    assert clip_identity(skipped) != plain == clip_identity(sd15.clip)
    hooked = sd15.clip.clone()
    hooked.apply_hooks_to_conds = object()
    assert clip_identity(hooked) is None


def test_one_changed_weight_is_another_encoder(models) -> None:
    vae = models("sd15").vae
    before = vae_identity(vae)
    with torch.inference_mode():
        weight = next(vae.first_stage_model.parameters())
        kept = weight.clone()
        weight.add_(0.001)
        assert vae_identity(vae) != before
        weight.copy_(kept)
    assert vae_identity(vae) == before


def test_patches_on_the_text_encoder_count_only_where_they_are(models, loras: Path, make_lora, add_text) -> None:
    trio = models("sd15")
    adapter = add_text(make_lora("sd15", loras / "x.safetensors"), trio.clip)
    save.save(loras / "text.safetensors", formats.encode(adapter, "native"), {})
    plain = clip_identity(trio.clip)
    first = encode_captions(trio.clip, ["a dog"], None, quiet)["a dog"][0][0]
    patched = run_node(
        LoadLoraStack, model=trio.model, clip=trio.clip, lora_1="text.safetensors", strength_1=1.0, text_strength_1=1.0
    )[1]
    changed = encode_captions(patched, ["a dog"], None, quiet)["a dog"][0][0]
    assert relative_error(changed, first) > 1e-3
    assert clip_identity(patched) != plain
    assert clip_identity(trio.clip) == plain, "while the patched clone is loaded"
    assert torch.equal(encode_captions(trio.clip, ["a dog"], None, quiet)["a dog"][0][0], first)
    with counted(trio) as counts:
        encode_captions(patched, ["a dog"], None, quiet)
    assert counts["clip"] == 0


def test_an_encoder_of_unknown_content_has_nothing_kept(models, pictures: Path, folder: Path) -> None:
    trio = models("cascade_c")
    assert vae_identity(trio.vae) is None, "a stand-in without a network"
    encode_images(trio.vae, trio.model, reading.from_folder(pictures, "", 128, 32, 1), quiet)
    assert not folder.exists()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_errors_name_the_file(models, pictures: Path, monkeypatch) -> None:
    trio, data = models("flux1"), read(pictures)

    def broken(_):
        raise RuntimeError("it broke")

    monkeypatch.setattr(trio.vae.first_stage_model, "encode", broken, raising=False)
    with pytest.raises(ValueError, match="cannot encode 0.png: it broke"):
        encode_all(trio, data)
    monkeypatch.setattr(
        trio.vae.first_stage_model, "encode", lambda x: torch.full((1, 16, 8, 8), float("nan")), raising=False
    )
    with pytest.raises(ValueError, match="NaN or infinite values for 0.png; start ComfyUI with --fp32-vae"):
        encode_all(trio, data)


# -- variants ----------------------------------------------------------------------------------------------------------

VARIED = {"flip": True, "crops": 2, "shuffle_tags": True, "keep_tokens": 0, "caption_variants": 3}


def tagged(pictures: Path) -> Path:
    for index in range(4):
        (pictures / f"{index}.txt").write_text(f"sks, thing {index}, red, round")
    return pictures


def test_words_without_weight_are_not_encoded(models, pictures: Path, folder: Path) -> None:
    data = run_node(LoraDataset, folder=str(pictures), trigger="picture", resolution=64, repeats=1)[0]
    train(models("sd15"), data, preserve="cat, dog", preservation=0.0)
    assert len(list((folder / "captions").iterdir())) == len(data.examples) + 1
    train(models("sd15"), data, preserve="cat, dog", preservation=1.0)
    assert len(list((folder / "captions").iterdir())) == 3 * len(data.examples) + 1


def test_samples_have_every_view_and_caption(models, pictures: Path) -> None:
    """Each variant has its own latent, mask and caption, made as alone."""
    trio = models("flux1")
    mask = np.zeros((80, 80), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(pictures / "0-mask.png")
    data = read(tagged(pictures), masks="auto", **VARIED)
    captions, latents = encode_all(trio, data)
    priors = encode_priors(None, trio.model, data, quiet)
    with training_session(trio.model, checkpointing=False) as patcher:
        captions |= encode_captions(trio.clip, {"a house", "rain"}, None, quiet)
        samples = make_samples(ComfyDenoiser(patcher), data, captions, latents, priors, ("cat",), ("rain", "a house"))
    neutral = {sample.latent.shape: sample.neutral for sample in samples}
    assert all(each.neutral is neutral[sample.latent.shape] for sample in samples for each in sample.variants)
    texts = [condition["c_crossattn"].cond for condition in neutral[samples[0].latent.shape]]
    assert len(texts) == 2 and torch.equal(texts[0], captions["rain"][0][0])
    for number, (example, sample) in enumerate(zip(data.examples, samples, strict=True)):
        everything = (sample, *sample.variants)
        assert len(everything) == 18 and example.num_views == 6
        for view_number, view in enumerate(example.views()):
            with torch.inference_mode():
                alone = trio.vae.encode(view.pixels[None].float())
                alone = trio.model.model.process_latent_in(alone)[0]
            for each, text in zip(everything[3 * view_number :], example.captions, strict=False):
                assert relative_error(each.latent, alone) < 1e-6
                assert torch.equal(each.condition["c_crossattn"].cond, captions[text][0][0])
                if number:
                    assert each.mask is None
                else:
                    assert each.mask.shape == (1, *each.latent.shape[1:])
                    assert float(each.mask.mean()) == pytest.approx(float(view.mask.float().mean() / 255), abs=1e-5)
    plain, mirrored = samples[0].mask, samples[0].variants[3].mask
    assert (
        plain[..., 0].max() == 0 and plain[..., -1].min() == 1 and torch.allclose(mirrored, plain.flip(-1), atol=1e-6)
    )


def test_video_latents_have_masks_of_one_channel_and_frame(models, pictures: Path) -> None:
    trio = models("wan_demo")
    for index in range(4):
        size = Image.open(pictures / f"{index}.png").size
        Image.new("L", size, 128).save(pictures / f"{index}-mask.png")
    data = read(pictures, masks="-mask files")
    captions, latents = encode_all(trio, data)
    with training_session(trio.model, checkpointing=False) as patcher:
        samples = make_samples(ComfyDenoiser(patcher), data, captions, latents, [{}] * 4, ())
    for sample in samples:
        assert sample.latent.ndim == 4 and sample.mask.shape == (1, 1, *sample.latent.shape[2:])
        assert sample.mask.unique().tolist() == pytest.approx([128 / 255])


@pytest.mark.parametrize("text_rank", [0, 2])
def test_runs_with_variants_repeat_and_go_on_to_the_same_bytes(models, pictures: Path, text_rank: int) -> None:
    trio, data = models("sd15"), read(tagged(pictures), **VARIED)
    plain = read(pictures)
    settings = {"text_rank": text_rank, "steps": 6}
    whole, losses, *_ = train(trio, data, **settings)
    again, others, *_ = train(trio, data, resume="start over", **settings)
    assert others == losses and all(torch.equal(again[key], value) for key, value in whole.items())
    assert train(trio, plain, **settings)[1] != losses
    cut_off = CutOff(trio.model, 4)
    with cut_off, pytest.raises(comfy.model_management.InterruptProcessingException):
        train(trio, data, resume="start over", **settings)
    resumed, both, *_ = train(trio, data, **settings)
    assert both == losses and all(torch.equal(resumed[key], value) for key, value in whole.items())


class CutOff:
    """Cancels in the given step."""

    def __init__(self, model: Any, step: int):
        self.network, self.step, self.count = model.model.diffusion_model, step, 0

    def __enter__(self) -> None:
        def look(*_: Any) -> None:
            self.count += 1
            comfy.model_management.interrupt_current_processing(self.count == self.step)

        self.hook = self.network.register_forward_pre_hook(look)

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_options_reach_the_data_set(pictures: Path) -> None:
    inputs = {"folder": str(tagged(pictures)), "trigger": "sks", "resolution": 64, "repeats": 2, "bucket_step": 16}
    data, report = run_node(
        LoraDataset, **inputs, flip=True, crops=3, shuffle_tags=True, keep_tokens=2, caption_variants=2,
        resolutions="64, 96", weight=0.5, masks="auto",
    )  # fmt: skip
    assert data.times() == [1.0] * 8 and data.resolutions == (64, 96)
    assert all(len(each.captions) == 2 and each.num_views == 8 for each in data.examples)
    assert "4 images x 2 repeats x 0.5 at resolution 64, 96" in report
    assert "each picture has 8 views" in report and "captions with up to 2 orders" in report
    plain, _ = run_node(LoraDataset, **inputs)
    same, _ = run_node(LoraDataset, **inputs, flip=False, crops=0, weight=1.0, resolutions="", masks="off")
    assert plain.fingerprint() == same.fingerprint() != data.fingerprint()


def test_combined_sets_train_together(models, pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    inputs = {"resolution": 64, "bucket_step": 16}
    sks, _ = run_node(LoraDataset, folder=str(pictures), trigger="sks", repeats=3, **inputs)
    ohwx, _ = run_node(LoraDataset, folder=str(other), trigger="ohwx", repeats=1, **inputs)
    data, report = run_node(CombineDatasets, datasets={"dataset0": sks, "dataset1": ohwx})
    assert "75.0% pictures: 4 images" in report and "25.0% other: 4 images" in report
    assert captions_to_encode(data, ("cat",)) >= {"cat, picture number 0", "ohwx, picture number 3"}
    assert captions_to_encode(data, ("cat",), ("rain",)) == captions_to_encode(data, ("cat",)) | {"rain"}
    _, losses, adapter, *_ = train(models("flux1"), data, preserve="cat", preservation=1.0)
    assert len(losses["loss"]) == 4 and adapter.metadata["modelspec.trigger_phrase"] == "sks, ohwx"
    bare = replace(ohwx, examples=tuple(replace(e, group=replace(e.group, trigger="")) for e in ohwx.examples))
    mixed, _ = run_node(CombineDatasets, datasets={"dataset0": sks, "dataset1": bare})
    with pytest.raises(ValueError, match="preservation is 1 but the set other has no trigger word"):
        train(models("flux1"), mixed, preserve="cat", preservation=1.0)
