"""Quiet directions of a run: found among those that are kept, or taken from neutral states of the loaded base."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ....lora_core import nested_hash
from ....lora_core.quiet import kept
from ....lora_core.quiet.directions import Directions, Quieting, UnfitError
from ....lora_core.quiet.inputs import rows_of
from ....lora_core.quiet.sizes import device_bytes, pairs_for
from ....lora_core.quiet.sketch import Sketch, sketch_bytes
from ....lora_core.training.plan import QuietNeed
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..model.encoding import interruptible
from ..model.encoding_cache import cache_folder
from ..model.guests import Guests
from ..model.names import family_of
from ..model.trained_layers import Layers
from ..stack import bypass_injection
from .inputs import Sharing, columns, watched
from .states import FORWARDS, Way, apart, drawn, way_of

log = logging.getLogger("lora_loom")

_ROWS = 512  # of an input, in each forward of a picture
_VERSION = "1"  # of how states are drawn: what is kept of another is not found
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """Directions by layer; layers with the same input share them. `path` is where they are kept, if they are, and
    `cached` says that they were from before."""

    layers: Mapping[str, Directions]
    cached: bool
    path: Path | None = None

    @property
    def digest(self) -> str:
        """Return 16 hex digits that change with any of them."""
        told = "".join(f"{name} {own.digest} " for name, own in sorted(self.layers.items()))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def quieting(self, mu: float) -> dict[str, Quieting]:
        """Return P by layer."""
        shared = {id(own): own.quieting(mu) for own in self.layers.values()}
        return {name: shared[id(own)] for name, own in self.layers.items()}


def find(
    patcher: Model, denoiser: ComfyDenoiser, layers: Layers, encoded: Mapping[str, list], shape: tuple[int, ...],
    tick: Tick, own: Path | None = None,
) -> Found:  # fmt: skip
    """Return the directions of the layers of a loaded model without any LoRA of a run, by its answers to prompts that
    are `encoded` in their order, the empty one among them, on latents of this shape (channels, ...); or those that a
    run has kept as its `own`, so that it goes on as what it was wherever and whenever others are made.

    Raises UnfitError, with a sentence, when there are none: the states are not finite, or memory or disk have no room.
    """
    check(patcher)
    way = way_of(len(encoded), shape)
    path = _path(patcher, layers, encoded, way)
    for known in filter(None, (own, path)):
        if (before := kept.read(known)) is not None and _fit(before, layers):
            return Found(before, cached=True, path=known)
    found = _looked_at(patcher, denoiser, layers, encoded, way, tick)
    if path:
        try:
            kept.write(path, found)
        except OSError as error:
            raise UnfitError(f"there was no room on disk to keep them ({error.strerror or error})") from error
    return Found(found, cached=False, path=path)


def check(model: Model) -> None:
    """Raises UnfitError for a model that cannot draw by itself."""
    family = family_of(model)
    if family.prior is not None:
        raise UnfitError(f"{family.name} draws from {family.prior.what} of a picture, not from prompts alone")


def _fit(found: Mapping[str, Directions], layers: Layers) -> bool:
    return all(name in layers and own.width == columns(layers[name]) for name, own in found.items())


def _looked_at(
    patcher: Model, denoiser: ComfyDenoiser, layers: Layers, encoded: Mapping[str, list], way: Way, tick: Tick
) -> dict[str, Directions]:
    latent = torch.zeros(way.shape)
    conditions = {prompt: denoiser.condition(conditioning, latent) for prompt, conditioning in encoded.items()}
    try:
        with interruptible(patcher.model):
            leaders = _leaders(denoiser, layers, list(conditions.values()), way)
            sketches = _sketched(denoiser, layers, leaders, conditions, way, tick)
        made = {leader: _finished(sketch) for leader, sketch in sketches.items() if float(sketch.trace) != 0}
    except (comfy.model_management.OOM_EXCEPTION, comfy.model_management.ACCELERATOR_ERROR, MemoryError) as error:
        if not isinstance(error, MemoryError) and not comfy.model_management.is_oom(error):
            raise
        raise UnfitError("there was not enough memory to look at neutral states") from error
    if not made:
        raise UnfitError("the states on neutral prompts are all zero, so they tell of no direction")
    return {name: made[leader] for name, leader in leaders.items() if leader in made}


def _finished(sketch: Sketch) -> Directions:
    comfy.model_management.throw_exception_if_processing_interrupted()
    return sketch.directions()


def _leaders(denoiser: ComfyDenoiser, layers: Layers, conditions: Sequence[Any], way: Way) -> dict[str, str]:
    """Return, by layer, the first that is given the same. Raises UnfitError when none is called."""
    sharing = Sharing()
    with watched(layers, sharing):
        for _ in apart(denoiser, conditions, way):
            pass
    if not (leaders := sharing.leaders()):
        raise UnfitError("none of the trained layers is called when the base model draws")
    return leaders


def _sketched(
    denoiser: ComfyDenoiser, layers: Layers, leaders: Mapping[str, str], conditions: Mapping[str, Any], way: Way,
    tick: Tick,
) -> dict[str, Sketch]:  # fmt: skip
    firsts = {name: layers[name] for name in dict.fromkeys(leaders.values())}
    widths = {name: columns(module) for name, module in firsts.items()}
    pairs = pairs_for(list(widths.values()))
    sketches = {name: Sketch(width, pairs[width], denoiser.device) for name, width in widths.items()}
    generator = torch.Generator().manual_seed(0)

    def took(name: str, module: nn.Module, x: Tensor) -> None:
        sketches[name].add(rows_of(module, x, _ROWS * (len(x) if x.dim() > 2 else 1), generator))

    empty = conditions[""]
    with watched(firsts, took), closing(drawn(denoiser, list(conditions.values()), empty, way)) as states:
        for done in states:
            tick(done, len(conditions))
    return sketches


def foreseen(layers: Layers) -> QuietNeed:
    """Return what directions of these layers will take; layers beside each other that are of one width count as given
    the same."""
    widths = [width for _, width in sorted({(name.rpartition(".")[0], columns(own)) for name, own in layers.items()})]
    pairs = pairs_for(widths)
    inputs = [(width, pairs[width]) for width in widths]
    return QuietNeed(device_bytes(inputs), sum(sketch_bytes(*each) for each in inputs), FORWARDS)


def _path(patcher: Model, layers: Layers, encoded: Mapping[str, list], way: Way) -> Path | None:
    """Where they are kept; None when not all that decides them is known."""
    if Guests(patcher).names():
        return None
    digest = hashlib.sha256()
    told = [_VERSION, _ROWS, way.levels, way.cfg, list(way.shape), list(layers), list(encoded)]
    try:
        nested_hash.add(digest, [told, list(encoded.values()), *_base(patcher, layers)], _CONTENT)
    except TypeError as error:
        log.debug("quiet directions are not kept: %s", error)
        return None
    return cache_folder() / "quiet" / f"{digest.hexdigest()[:32]}.safetensors"


def _base(patcher: Model, layers: Layers) -> Iterator[Any]:
    """All that tells apart what a loaded model answers: a few numbers of each of its weights, and what hangs beside
    them; of text encoders, those of the layers that are trained."""
    yield [*bypass_injection.content(patcher), str(patcher.model.get_dtype_inference()), patcher.load_device.type]
    weights = dict(patcher.model.diffusion_model.named_parameters())
    weights |= {name: module.weight for name, module in layers.items()}
    for name, value in weights.items():
        stored = getattr(value, "_qdata", value).as_subclass(Tensor).detach().flatten()
        sample = stored[:: max(stored.numel() // 16, 1)][:16].float().cpu()
        yield [name, str(stored.dtype), stored.numel(), sample]


def _plain(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__} {value!r};"
    raise TypeError(f"a {type(value).__name__} has no content hash")


_CONTENT = nested_hash.HashSpelling(_plain, tensor="{shape} {dtype}", sequence="[{count}")
