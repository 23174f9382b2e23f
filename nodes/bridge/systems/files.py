"""Says what a file is that a loader was given by mistake, and which node loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from comfy import model_detection
from torch import Tensor

from ..networks import kandinsky_others, movq, wuerstchen_encoder, wuerstchen_vqgan
from ..networks.parts import Shapes
from .stages import STAGES, shapes_of
from .titles import LOAD_MODEL, LOAD_TEXT, LOAD_VAE


@dataclass(frozen=True)
class Kind:
    """`loader` is the node that loads such a file, "" where there is none."""

    name: str
    loader: str
    told: Callable[[Shapes], bool]


def _named(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


def _ends(*ends: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.endswith(ends) for name in shapes)


def _holds(part: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(part in name for name in shapes)


_FIRST = "text_model.encoder.layers.0.mlp.fc1.weight"
_SMALL = 768  # numbers of a token in CLIP ViT-L, which neither system reads
_LORA = ("lora_A.weight", "lora_B.weight", "lora_up.weight", "lora_down.weight", "lora.up.weight", "lora.down.weight")

KINDS = (  # the first that fits; a file of ours comes before what is like it
    Kind("a LoRA", "Load LoRA Stack", _ends(*_LORA)),
    *(Kind(stage.name, LOAD_MODEL, lambda shapes, stage=stage: stage.detect(shapes) is not None) for stage in STAGES),
    Kind("MoVQ, the VAE of Kandinsky 2", LOAD_VAE, lambda shapes: movq.config(shapes) is not None),
    Kind("the VQGAN of Wuerstchen v2", LOAD_VAE, lambda shapes: wuerstchen_vqgan.config(shapes) is not None),
    Kind("the encoder of Wuerstchen v2", LOAD_VAE, lambda shapes: wuerstchen_encoder.config(shapes) is not None),
    Kind(
        "Kandinsky 5", "Load Diffusion Model",
        _named("visual_transformer_blocks.0.cross_attention.key_norm.weight"),
    ),
    Kind("stage C of Stable Cascade", "Load Diffusion Model", _named("clip_txt_mapper.weight", "clf.1.weight")),
    Kind("stage B of Stable Cascade", "Load Diffusion Model", _named("clip_mapper.weight", "clf.1.weight")),
    Kind("a CLIP vision model", "Load CLIP Vision", _holds("vision_model.encoder.layers.")),
    Kind("CLIP ViT-L (768 numbers a token)", "Load CLIP", lambda shapes: shapes.get(_FIRST, (0, 0))[1] == _SMALL),
    Kind("a CLIP text encoder", LOAD_TEXT, _holds("text_model.encoder.layers.")),
    Kind("a CLIP text encoder", LOAD_TEXT, _named("transformer.resblocks.0.ln_1.weight")),
    Kind("a T5 text encoder", "Load CLIP", _holds("block.0.layer.0.SelfAttention.q.")),
    Kind("the text encoder of Kandinsky 2.1", "", _named("LinearTransformation.weight")),
    Kind("a VAE of another model", "Load VAE", _holds("decoder.conv_in.weight")),
)  # fmt: skip


def refused(path: str, weights: dict[str, Tensor], wanted: str) -> ValueError:
    """Make the error for a file that is not `wanted`: it says what the file is, as far as that is known."""
    name, shapes = PurePath(path).name, shapes_of(weights)
    if told := kandinsky_others.unlike(shapes):
        return ValueError(f"{name} is {told}, not {wanted}; choose another file")
    if kind := next((kind for kind in KINDS if kind.told(shapes)), None):
        cure = f"load it with {kind.loader}" if kind.loader else "nothing here loads that; choose another file"
        return ValueError(f"{name} is {kind.name}, not {wanted}; {cure}")
    if config := model_detection.model_config_from_unet(dict(weights), ""):
        return ValueError(f"{name} is a {type(config).__name__} model, not {wanted}; load it with Load Diffusion Model")
    return ValueError(f"{name} is not {wanted}, nor anything else that is known here; choose another file")
