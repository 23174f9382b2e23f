"""References of edits: each base is given what ComfyUI's own nodes give it, the loss is that of ComfyUI's own forward,
gradients are those of finite differences, and what a base cannot be given is said before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import numpy as np
import pytest
import tiny
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
from harness.calls import encode, relative_error, run_node
from harness.problem import Problem
from harness.session import training_session
from lora_loom.lora_core.data.dataset import Dataset, Example, Options
from lora_loom.lora_core.data.reading import from_folder, from_tensors
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.encoding import encode_captions, encode_images
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.bridge.model.references import check_references, encode_references
from lora_loom.nodes.bridge.training.samples import make_samples
from node_helpers import conditioning_set_values
from PIL import Image
from tiny.families import FAMILIES, SD_LATENT, SD_SMALLEST, Tiny
from tiny.vae import make_vae
from torch import Tensor

import nodes

TOKENS = ["flux1", "flux2", "qwen_image", "krea2"]
LAID = {
    "ip2p": Tiny("ip2p", "SD15_instructpix2pix", SD_SMALLEST | {"in_channels": 8}, "sd15", SD_LATENT),
    "inpaint": Tiny("inpaint", "SD15", SD_SMALLEST | {"in_channels": 9}, "sd15", SD_LATENT),
    "fill": Tiny("fill", "FluxInpaint", FAMILIES["flux1"].unet | {"in_channels": 96}, "flux", FAMILIES["flux1"].latent),
}
MASKED = ("inpaint", "fill")
SIZES = ((80, 80), (96, 48), (80, 80))


def quiet(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def base(models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiny.Loaded]:
    folder, known = tmp_path_factory.mktemp("bases"), {}

    def load(name: str) -> tiny.Loaded:
        if name not in LAID:
            return models(name)
        if name not in known:
            row = LAID[name]
            with torch.inference_mode():
                known[name] = tiny.Loaded(tiny.direct(row), tiny.make_clip(row.text), make_vae(row.latent, folder))
        return known[name]

    return load


def folder_of(folder: Path, references: int, masks: bool = False, same: bool = False) -> Path:
    """Three captioned pictures, each with so many references of other sizes or the `same`."""
    draw = np.random.default_rng(0)

    def put(path: Path, size: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)

    for number, size in enumerate(SIZES):
        put(folder / f"{number}.png", size)
        (folder / f"{number}.txt").write_text(f"make it {number} times as red")
        for other in range(1, references + 1):
            put(folder / f"control_{other}" / f"{number}.png", size if same else SIZES[(number + other) % 3])
        if masks:
            shown = np.zeros((size[1], size[0]), np.uint8)
            shown[:, : size[0] // 2] = 255
            Image.fromarray(shown).save(folder / f"{number}-mask.png")
    return folder


def set_of(name: str, folder: Path, references: int = 2) -> Dataset:
    laid, masked = name in LAID, name in MASKED
    folder_of(folder, 1 if laid else references, masked, laid)
    return from_folder(folder, "", 64, 16, 1, Options(masks="auto" if masked else "off", flip=True))


def by_comfyui(name: str, trio: tiny.Loaded, example: Example) -> list:
    """CONDITIONING of an example as a workflow of ComfyUI's nodes makes it."""
    extra = {} if (guidance := family_of(trio.model).guidance) is None else {"guidance": guidance}
    shown = [each.pixels[None].float() for each in example.references]
    text = encode(trio.clip, example.caption, **extra)
    if name in MASKED:
        (text, *_) = nodes.InpaintModelConditioning().encode(text, text, shown[0], trio.vae, example.mask[None] / 255)
        return text
    if name == "ip2p":
        return run_node(InstructPixToPixConditioning, positive=text, negative=text, pixels=shown[0], vae=trio.vae)[0]
    if name == "qwen_image":
        images = {f"image{number}": pixels for number, pixels in enumerate(shown, 1)}
        (text,) = run_node(TextEncodeQwenImageEditPlus, clip=trio.clip, prompt=example.caption, **images)
    for pixels in shown:
        (text,) = run_node(ReferenceLatent, conditioning=text, latent={"samples": trio.vae.encode(pixels)})
    if name == "krea2":
        (text,) = run_node(FluxKontextMultiReferenceLatentMethod, conditioning=text, reference_latents_method="index")
    return text


def comfyui_forward(patcher: Any, conditioning: list, x_t: Tensor, sigma: Tensor) -> Tensor:
    """The denoised estimate of ComfyUI's own sampling function."""
    conds = comfy.samplers.process_conds(
        patcher.model, x_t, {"positive": comfy.sampler_helpers.convert_cond(conditioning)}, x_t.device, x_t, None, 0
    )
    options = {"transformer_options": {}}
    return comfy.samplers.calc_cond_batch(patcher.model, [conds["positive"]], x_t, sigma, options)[0]


def samples_of(trio: tiny.Loaded, denoiser: ComfyDenoiser, data: Dataset, preserve: tuple[str, ...] = ()) -> list:
    texts = {"", "a dog", *(each.caption for each in data.examples)}
    captions = encode_captions(trio.clip, texts, family_of(trio.model).guidance, quiet)
    latents = encode_images(trio.vae, trio.model, data, quiet)
    beside = encode_references(trio.vae, trio.clip, trio.model, data, quiet)
    return make_samples(denoiser, data, captions, latents, [{}] * len(latents), preserve, ("a dog",), beside)


@pytest.mark.parametrize("name", [*TOKENS, *LAID])
def test_loss_of_comfyuis_own_forward(base, tmp_path: Path, name: str) -> None:
    trio, data = base(name), set_of(name, tmp_path)
    check_references(trio.model, data)
    draw = torch.Generator().manual_seed(0)
    with training_session(trio.model, checkpointing=False) as patcher, torch.no_grad():
        denoiser = ComfyDenoiser(patcher)
        samples, seen = samples_of(trio, denoiser, data), []
        for example, sample in zip(data.examples, samples, strict=True):
            x0, noise = sample.latent[None], torch.randn(sample.latent[None].shape, generator=draw)
            sigma = denoiser.sigma(torch.tensor([0.6]))

            def loss(condition: Any, x0=x0, noise=noise, sigma=sigma) -> Tensor:
                return objective.losses(denoiser, x0, noise, sigma, [condition], ObjectiveConfig())

            answer = comfyui_forward(patcher, by_comfyui(name, trio, example), denoiser.noised(x0, noise, sigma), sigma)
            wanted = ((answer - x0) / denoiser.output_scale(sigma).view(1, *(1 for _ in x0.shape[1:]))).square().mean()
            assert relative_error(loss(sample.condition), wanted[None]) < 1e-5
            shown = (sample.condition, sample.variants[0].condition, sample.neutral[0])
            seen.append([objective.residual(denoiser, x0, noise, sigma, [condition]) for condition in shown])
            assert not {"ref_latents"} & sample.neutral[0].keys(), "what is preserved has no reference"
            assert sample.unconditional.keys() >= {"ref_latents"} if name in TOKENS else True
        for own, other, plain in seen:
            assert relative_error(other, own) > 1e-4, "a mirror image has its own reference"
            assert relative_error(plain, own) > 1e-4, "and what has none is told apart"


@pytest.mark.parametrize("name", TOKENS)
def test_a_batch_of_several_sizes_and_captions(base, tmp_path: Path, name: str) -> None:
    """Each sample of a batch sees its own references, as it does alone; batches of a run have one kind."""
    trio, data = base(name), set_of(name, tmp_path)
    draw = torch.Generator().manual_seed(0)
    with training_session(trio.model, checkpointing=False) as patcher, torch.no_grad():
        denoiser = ComfyDenoiser(patcher)
        one, _, other = samples_of(trio, denoiser, data)
        assert one.latent.shape == other.latent.shape and one.kind != other.kind
        x0 = torch.stack([one.latent, other.latent, one.latent])
        noise, sigma = torch.randn(x0.shape, generator=draw), denoiser.sigma(torch.tensor([0.3, 0.6, 0.8]))
        conditions = [one.condition, other.condition, one.unconditional]
        together = objective.residual(denoiser, x0, noise, sigma, conditions)
        for i, condition in enumerate(conditions):
            alone = objective.residual(denoiser, x0[i : i + 1], noise[i : i + 1], sigma[i : i + 1], [condition])
            assert relative_error(together[i], alone[0]) < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", TOKENS)
def test_finite_differences(base, name: str, checkpointing: bool) -> None:
    trio, draw = base(name), torch.Generator().manual_seed(2)
    shape = tiny.latent_shape(trio.model, 1)
    extra = {"reference_latents_method": "index"} if name == "krea2" else {}
    conditioning = [
        conditioning_set_values(
            encode(trio.clip, text, guidance=1.0), {"reference_latents": [torch.randn(shape, generator=draw)], **extra}
        )
        for text in ("a red heart", "blue")
    ]
    with torch.inference_mode(), training_session(trio.model, checkpointing) as patcher:
        problem = Problem.of_model(patcher, conditioning)
        found = problem.gradient()
        for direction in problem.directions(found)[-2:]:
            slope = float(found.double() @ direction.double())
            assert abs(problem.slope(direction, slope) - slope) < 0.02 * abs(slope)


def test_what_a_base_cannot_be_given_is_said(base, tmp_path: Path) -> None:
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    wide = torch.rand(1, 48, 96, 3, generator=torch.Generator().manual_seed(1))

    def refused(name: str, *beside: Tensor) -> str:
        data = from_tensors(images, ["x"], "", 64, 16, 1, beside=beside)
        with pytest.raises(ValueError) as error:
            check_references(base(name).model, data)
        return str(error.value)

    for name in ("sd15", "wan_demo", "chroma"):
        said = refused(name, images)
        assert "takes none; train on a base that edits (FLUX.2," in said and "set use_references to off" in said
    assert "has 4 references, but Qwen-Image takes 3" in refused("qwen_image", *[images] * 4)
    assert "is 64 x 64 and its reference 80 x 48, but" in refused("ip2p", wide)
    assert "paints what a mask shows; set masks to auto" in refused("fill", images)
    check_references(base("sd15").model, from_tensors(images, ["x"], "", 64, 16, 1))
