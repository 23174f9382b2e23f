"""Reference pictures of edits as ComfyUI's own nodes put them into CONDITIONING: encoded once, for the bases that take
them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from comfy.model_base import IP2P, BaseModel, Flux
from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
from node_helpers import conditioning_set_values
from torch import Tensor

from ....lora_core.data.dataset import Dataset, Example
from ....lora_core.data.references import OFF
from ....lora_core.ranks.group import ALONE, Group
from ....lora_core.training.targets import weight_shape
from ..host.wires import Clip, Conditioning, Model, Vae
from .encoding import Tick, encoded_pixels, interruptible
from .encoding_cache import Encodings, clip_identity
from .encoding_share import encoded
from .names import family_of

_KNOWN = "FLUX.2, FLUX.1 Kontext, FLUX.1 Fill, Qwen-Image-Edit, Krea 2, InstructPix2Pix and inpainting bases"


@dataclass(frozen=True)
class Way:
    """Says how a base takes references, at most `most` of them: as tokens beside the picture's, with a `method` where
    its network has none by itself; or `laid` over the picture in further channels, of the same size, and `masked` where
    it paints what a mask shows. The text encoder looks at them, too, where it `sees`."""

    most: int
    method: str = ""
    laid: bool = False
    masked: bool = False
    sees: bool = False


_LAID, _INPAINTS = Way(1, laid=True), Way(1, laid=True, masked=True)
_TOKENS = {"Flux": Way(9), "Flux2": Way(9), "QwenImage": Way(3, sees=True), "Krea2": Way(9, method="index")}


@dataclass(frozen=True)
class Beside:
    """Holds what CONDITIONING has of the references of one view: `values`, and captions that were read with a look at
    them."""

    values: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Conditioning] = field(default_factory=dict)

    def told(self, caption: str, encoded: Mapping[str, Conditioning], prior: Mapping[str, Any]) -> Conditioning:
        """Return the CONDITIONING of a caption for this view, which has that prior."""
        text = self.texts[caption] if caption in self.texts else encoded[caption]
        return conditioning_set_values(text, {**prior, **self.values})

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what is encoded of them."""
        held = [each for value in self.values.values() for each in (value if isinstance(value, list) else [value])]
        return tuple(tuple(each.shape) for each in held if torch.is_tensor(each))

    def places(self) -> int:
        """Return how many numbers of latents stand beside the picture's own."""
        return sum(each.numel() for each in self.values.get("reference_latents", ()))


NONE = Beside()


def way_of(model: Model) -> Way | None:
    """Return how this MODEL's base takes references; None for one that takes none."""
    base: BaseModel = model.model
    if isinstance(base, IP2P):
        return _LAID
    if "masked_image" in base.concat_keys:
        return _INPAINTS
    if isinstance(base, Flux) and (more := _channels(base)):
        return _LAID if more == 1 else _INPAINTS
    return _TOKENS.get(type(base).__name__)


def check_references(model: Model, dataset: Dataset) -> None:
    """Raises ValueError for references that this MODEL's base cannot be given."""
    shown = [example for example in dataset.examples if example.references]
    if not shown:
        return
    way, name = way_of(model), family_of(model).name
    if way is None:
        raise ValueError(
            f"the data set has reference pictures, but {name} takes none; train on a base that edits ({_KNOWN}), or "
            f"{OFF} in LoRA Dataset"
        )
    for example in shown:
        if why := _refused(way, name, example):
            raise ValueError(f"{Path(example.source).name} {why}")


def encode_references(
    vae: Vae, clip: Clip, model: Model, dataset: Dataset, tick: Tick, group: Group = ALONE
) -> list[Beside]:
    """Return what CONDITIONING has of the references of each view of every example, in their order, fp32 on the CPU.
    The ranks of a `group` make it together."""
    if not any(example.references for example in dataset.examples):
        return [NONE for example in dataset.examples for _ in range(example.num_views)]
    views = [view for example in dataset.examples for view in _views(example)]
    way = cast(Way, way_of(model))  # `check_references` has asked for one
    pixels = [_erased(each, mask) if way.masked else each for _, mask, held in views for each in held]
    names = [Path(example.source).name for example, _, held in views for _ in held]
    with torch.inference_mode(False), torch.no_grad():
        latents = encoded_pixels(vae, "latents", pixels, names, tick, "references", group=group)
        made = [_beside(way, [next(latents) for _ in held], mask) for _, mask, held in views]
    asked = [dict.fromkeys((*example.captions, "")) if held else () for example, _, held in views]
    return with_texts(clip, model, made, [held for *_, held in views], asked, tick, group)


def with_texts(
    clip: Clip, model: Model, made: Sequence[Beside], shown: Sequence[Sequence[Tensor]],
    captions: Sequence[Iterable[str]], tick: Tick, group: Group = ALONE,
) -> list[Beside]:  # fmt: skip
    """Return each with its captions as text encoders read them that look at the pictures (height, width, 3) that are
    `shown`, where those of this MODEL's base do."""
    way = way_of(model)
    if way is None or not way.sees:
        return list(made)
    asked = [(text, held) for held, own in zip(shown, captions, strict=True) for text in own if held]

    def make(index: int, content: Sequence[Any]) -> Any:
        tick(index, len(asked), "captions with their references")
        text, *held = content
        images = [pixels[None].float() for pixels in held] + [None] * (way.most - len(held))
        with torch.inference_mode(), interruptible(clip.cond_stage_model):
            return TextEncodeQwenImageEditPlus.execute(clip, text, None, *images).args[0]

    contents = [[text, *held] for text, held in asked]
    texts = encoded(Encodings("captions_seen", clip_identity(clip)), contents, make, group)
    return [
        replace(each, texts={text: next(texts) for text in own} if held else {})
        for each, held, own in zip(made, shown, captions, strict=True)
    ]


def _views(example: Example) -> Iterator[tuple[Example, Tensor | None, tuple[Tensor, ...]]]:
    """The example, mask and references of each of its views."""
    for mask, held in zip(example.masks(), example.references_of_views(), strict=True):
        yield example, mask, held


def _beside(way: Way, latents: list[Tensor], mask: Tensor | None) -> Beside:
    if not latents:
        return NONE
    if not way.laid:
        method = {"reference_latents_method": way.method} if way.method else {}
        return Beside({"reference_latents": latents, **method})
    seen = {} if mask is None else {"concat_mask": mask[None, None].float() / 255}
    return Beside({"concat_latent_image": latents[0], **(seen if way.masked else {})})


def _erased(pixels: Tensor, mask: Tensor | None) -> Tensor:
    """A reference (height, width, 3) that is grey where a mask, (height, width) uint8, shows what is to be painted, as
    ComfyUI's InpaintModelConditioning makes it; all of it without a mask."""
    kept = 0 if mask is None else 1 - (mask[..., None] / 255).round()
    return ((pixels.float() - 0.5) * kept + 0.5).to(pixels.dtype)


def _refused(way: Way, base: str, example: Example) -> str:
    """Why this base cannot be given the references of an example; empty where it can."""
    count, other = len(example.references), [each.size for each in example.references if each.size != example.size]
    if count > way.most:
        return f"has {count} references, but {base} takes {way.most}; leave out the others, or {OFF} in LoRA Dataset"
    if way.laid and other:
        sizes = [f"{width} x {height}" for width, height in (example.size, other[0])]
        return (
            f"is {sizes[0]} and its reference {sizes[1]}, but {base} lays one over the other; give both the same shape"
        )
    if way.masked and example.group.options.masks == "off":
        return f"has a reference, but {base} paints what a mask shows; set masks to auto in LoRA Dataset, and add masks"
    return ""


def _channels(base: BaseModel) -> int:
    """How many further pictures of latents the first layer of this network of FLUX.1 reads, rounded up."""
    network: Any = base.diffusion_model
    layer = getattr(network, "img_in", None)
    once = int(network.patch_size) ** 2 * base.latent_format.latent_channels
    return 0 if layer is None else ceil(weight_shape(layer)[1] / once) - 1
