"""The networks of Kandinsky 2.2 and Wuerstchen v2 that ComfyUI has no class for, and how files are told apart.

A stage draws: a prior makes of text what a decoder makes a picture of. A coder turns pictures into latents and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy.supported_models_base import BASE

from ..networks import kandinsky_decoder, kandinsky_prior, wuerstchen_decoder, wuerstchen_prior
from ..networks.parts import Shapes
from . import kandinsky, wuerstchen

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """`detect` gives the keywords of a network for the shapes in a file, None for another file. `empty` gives the
    shapes of a prior's and a decoder's latent for one picture, by a configuration, width and height in pixels. `reach`,
    if any, is what a clean sample is clipped to after guidance, in units of the noise.
    """

    name: str
    config_class: type[BASE]
    detect: Callable[[Shapes], dict[str, Any] | None]
    empty: Callable[[BASE, int, int], tuple[Shape, Shape]]
    reach: float = 0.0


STAGES = (
    Stage(
        "the prior of Kandinsky 2.2", kandinsky.Kandinsky22Prior, kandinsky_prior.config, kandinsky.empty,
        reach=kandinsky.REACH,
    ),
    Stage("the decoder of Kandinsky 2.2", kandinsky.Kandinsky22Decoder, kandinsky_decoder.config, kandinsky.empty),
    Stage("the prior of Wuerstchen v2", wuerstchen.Wuerstchen2Prior, wuerstchen_prior.config, wuerstchen.empty),
    Stage("the decoder of Wuerstchen v2", wuerstchen.Wuerstchen2Decoder, wuerstchen_decoder.config, wuerstchen.empty),
)  # fmt: skip


def configured(shapes: Shapes) -> tuple[Stage, Any] | None:
    """Return the stage that a file with these weights holds, and ComfyUI's configuration for it."""
    for stage in STAGES:
        if (found := stage.detect(shapes)) is not None:
            return stage, stage.config_class({"image_model": stage.config_class.__name__, **found})
    return None


def stage_of(config: BASE) -> Stage | None:
    return next((stage for stage in STAGES if type(config) is stage.config_class), None)


def shapes_of(weights: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in weights.items()}
