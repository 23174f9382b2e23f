"""Captions and pictures as the model wants them: CONDITIONING and latents, encoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor, nn

from ....lora_core.data.buckets import SMALL, USUAL_STEP
from ....lora_core.data.dataset import Dataset
from ....lora_core.families.table import Places
from ....lora_core.ranks.group import ALONE, Group
from ..host.wires import Clip, Conditioning, Model, Vae
from .encoding_cache import Encodings, clip_identity, kept, vae_identity
from .encoding_share import encoded
from .names import family_of

Tick = Callable[[int, int, str], None]


def encode_captions(
    clip: Clip, captions: Iterable[str], guidance: float | None, tick: Tick,
    check: Callable[[Conditioning], None] | None = None, group: Group = ALONE,
) -> dict[str, list]:  # fmt: skip
    """CONDITIONING of every distinct caption, kept outside inference mode so that training may use it.

    `check` gets the first one, and may raise before the others are made. When all are kept on disk, the text encoder
    is not even loaded. The ranks of a `group` make them together.
    """
    found: dict[str, list] = {}
    distinct, encodings = sorted(set(captions)), Encodings("captions", clip_identity(clip))
    extra = {} if guidance is None else {"guidance": guidance}

    def make(index: int, tokens: dict[str, Any]) -> Any:
        tick(index, len(distinct), "captions")
        with torch.inference_mode(), interruptible(clip.cond_stage_model):
            return clip.encode_from_tokens_scheduled(tokens)

    made = encoded(encodings, map(clip.tokenize, distinct), make, group)
    for caption, conditioning in zip(distinct, made, strict=True):
        if check and not found:
            check(conditioning)
        found[caption] = [[text, {**values, **extra}] for text, values in conditioning]
    return found


def encode_images(vae: Vae, model: Model, dataset: Dataset, tick: Tick, group: Group = ALONE) -> list[Tensor]:
    """Latents (channels, ...) in the model's own scale, fp32 on the CPU, of every view of every example in their order.

    Pictures are encoded one at a time: a batch given to a video VAE is one clip. When all are kept on disk, the VAE is
    not even loaded. The ranks of a `group` make them together. Raises ValueError, naming the file, for a picture that
    cannot be encoded.
    """
    check_sizes(vae, model, dataset)
    places = family_of(model).places
    kind = f"latents_{places.pixels:g}" if places else "latents"  # the same pictures, made smaller
    prepare = partial(resized, places=places, factor=compression(vae))
    with torch.inference_mode(False), torch.no_grad():
        return [_scaled(model, latent) for latent in encoded_views(vae, kind, dataset, tick, "images", prepare, group)]


def encoded_views(
    vae: Vae, kind: str, dataset: Dataset, tick: Tick, what: str,
    prepare: Callable[[Tensor], Tensor] = lambda x: x, group: Group = ALONE,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield what the VAE itself makes of each view (1, height, width, 3), after `prepare`."""
    names = [Path(example.source).name for example in dataset.examples for _ in range(example.num_views)]
    views = (view.pixels for example in dataset.examples for view in example.views())
    return encoded_pixels(vae, kind, views, names, tick, what, prepare=prepare, group=group)


def encoded_pixels(
    vae: Vae, kind: str, pixels: Iterable[Tensor], names: Sequence[str], tick: Tick, what: str, *,
    prepare: Callable[[Tensor], Tensor] = lambda x: x, group: Group = ALONE,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield what the VAE itself makes of each picture (height, width, 3), after `prepare`; `names` are told of one that
    it cannot encode."""

    def make(index: int, pixels: Tensor) -> Tensor:
        tick(index, len(names), what)
        return _encoded(vae, prepare(pixels[None].float()), names[index])

    return encoded(Encodings(kind, vae_identity(vae)), pixels, make, group)


def compression(vae: Vae) -> int:
    """Return how many pixels of a side one place of a latent stands for."""
    return int(cast(float, vae.spacial_compression_encode()))


def check_sizes(vae: Vae, model: Model, dataset: Dataset) -> None:
    """Raises ValueError when a bucket is no multiple of what the VAE compresses by, or of what the network itself
    halves after it."""
    family, factor = family_of(model), compression(vae)
    if family.places:
        return
    step = factor * 2 ** _halvings(model, family.halves)
    beside = [each.size for example in dataset.examples for each in example.references]
    for width, height in dict.fromkeys((*dataset.buckets(), *beside)):
        if width % factor or height % factor:
            raise ValueError(
                f"the bucket {width} x {height} is not a multiple of {factor}, which this VAE compresses by; "
                f"{_cure(step, dataset)}"
            )
        if width % step or height % step:
            raise ValueError(
                f"the bucket {width} x {height} is not a multiple of {step}, which {family.name} needs; "
                f"{_cure(step, dataset)}"
            )


def _cure(step: int, dataset: Dataset) -> str:
    small = step == USUAL_STEP and min(dataset.resolutions) < SMALL
    return f"use a resolution of {SMALL} or more" if small else f"set bucket_step to a multiple of {step}"


def resized(pixels: Tensor, places: Places | None, factor: int) -> Tensor:
    """(1, height, width, 3), with `factor` pixels to each place of the latent; as it is where no places are said."""
    if places is None:
        return pixels
    height, width = (places.of(side) * factor for side in pixels.shape[1:3])
    return comfy.utils.common_upscale(pixels.movedim(-1, 1), width, height, "bicubic", "center").movedim(1, -1)


def _halvings(model: Model, name: str) -> int:
    return sum(f".{path}".endswith(f".{name}") for path, _ in model.model.diffusion_model.named_modules() if name)


def _encoded(vae: Vae, pixels: Tensor, name: str) -> Tensor:
    try:
        with torch.inference_mode(), interruptible(getattr(vae, "first_stage_model", None)):
            latent = vae.encode(pixels)
    except (RuntimeError, ValueError) as error:
        if comfy.model_management.is_oom(error):
            raise
        raise ValueError(f"the VAE cannot encode {name}: {error}") from error
    if not latent.isfinite().all():
        raise ValueError(
            f"the VAE gives NaN or infinite values for {name}; start ComfyUI with --fp32-vae or --bf16-vae, "
            "or connect a VAE that works in 16 bits"
        )
    return latent


def _scaled(model: Model, latent: Tensor) -> Tensor:
    wanted = model.model.latent_format
    if latent.shape[1] != wanted.latent_channels:
        raise ValueError(
            f"this VAE makes {latent.shape[1]} latent channels but the model works on {wanted.latent_channels}; "
            "connect the VAE that belongs to the model"
        )
    if wanted.latent_dimensions == 3 and latent.ndim == 4:
        latent = latent[:, :, None]
    return kept(model.model.process_latent_in(latent)[0])


@contextmanager
def interruptible(network: nn.Module | None) -> Iterator[None]:
    """Look for a cancel before every layer: one large picture or long text may take many seconds."""

    def look(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    hooks = [m.register_forward_pre_hook(look) for m in network.modules()] if isinstance(network, nn.Module) else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
