"""CLIP text encoders that are trained along with their model: captions are encoded in every step, with gradient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel, gen_empty_tokens
from torch import Tensor, nn

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.families.table import FAMILIES
from ....lora_core.training.config import LoraConfig
from ....lora_core.training.targets import select
from ..host.wires import Clip, Conditioning, Model
from .denoiser import ComfyDenoiser
from .names import family_of

Section = list[tuple]  # (token or embedding, weight) of one window of tokens
Tokens = dict[str, list[Section]]  # by encoder, as CLIP.tokenize gives them
Encoded = tuple[Tensor, Tensor]  # text (1, tokens, width) and pooled vector (1, width)
_OPTIONS = ("layer", "layer_idx", "return_projected_pooled", "execution_device")


def check_text(model: Model, clip: Clip) -> None:
    """Raises ValueError when the text encoders of this MODEL and CLIP cannot be trained."""
    family = family_of(model)
    if not family.text_encoders:
        known = " and ".join(row.name for row in FAMILIES if row.text_encoders)
        raise ValueError(
            f"the text encoder of {family.name} cannot be trained, only that of {known}; set text_rank to 0"
        )
    found = tuple(name for name, part in clip.cond_stage_model.named_children() if isinstance(part, SDClipModel))
    if found != family.text_encoders:
        raise ValueError(
            f"the connected CLIP has the text encoders {', '.join(found) or 'of another kind'}, but {family.name} "
            f"is trained with {', '.join(family.text_encoders)}; connect the CLIP of this model"
        )
    if clip.patcher.forced_hooks is not None or clip.apply_hooks_to_conds:
        raise ValueError(
            "the connected CLIP has hooks, which cannot be trained; connect a CLIP without hooks, or set text_rank to 0"
        )


def text_layers(encoders: nn.Module, lora: LoraConfig, own: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return the layers of text encoders that belong to a preset: of their attention, and of their MLP in the wider
    presets.

    `exclude` leaves out what it matches; `include` speaks of the diffusion model alone. Where `own` names layers of
    these encoders, they stand for the preset.
    """
    preset = "attention" if lora.preset == "attention" else "attention+mlp"
    return select(encoders, replace(lora, preset=preset, include=()), TEXT_PREFIX, own)


def windows(tokens: Tokens) -> int:
    """Into how many windows of tokens a caption was cut, for all encoders together."""
    return sum(map(len, tokens.values()))


def tokenized(clip: Clip, captions: Iterable[str]) -> dict[str, list]:
    """CONDITIONING of every distinct caption that holds tokens where encoded text will be."""
    return {caption: [[clip.tokenize(caption), {}]] for caption in sorted(set(captions))}


@dataclass(frozen=True)
class Caption:
    """A condition that is encoded when it is used: a caption's tokens, what CONDITIONING holds beside text, and the
    latent (channels, ...) it tells of."""

    tokens: Tokens
    values: dict[str, Any]
    latent: Tensor


class TextDenoiser(ComfyDenoiser):
    """Also encodes the captions, with gradient. `clip` is in the same training session as the model in `patcher`."""

    def __init__(self, patcher: Model, clip: Clip):
        super().__init__(patcher)
        self.text, self.clip_layer = clip.patcher.model, clip.layer_idx
        names = family_of(patcher).text_encoders
        self.encoders = {name.removeprefix("clip_"): getattr(self.text, name) for name in names}

    def condition(self, conditioning: Conditioning, latent: Tensor) -> Caption:
        ((tokens, values),) = conditioning
        return Caption(tokens, values, latent)

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Caption]) -> Tensor:
        texts, condition = self.encode([caption.tokens for caption in conditions]), super().condition
        conds = [
            condition([[text, {**caption.values, "pooled_output": pooled}]], caption.latent)
            for (text, pooled), caption in zip(texts, conditions, strict=True)
        ]
        return super().denoised(x_t, sigma, conds)

    def ready(self, shape: torch.Size, conditions: list[Caption]) -> None:
        """None: captions are encoded in every step, from tokens that come from RAM."""

    def encode(self, captions: Sequence[Tokens]) -> list[Encoded]:
        """Return each caption encoded, all in one forward of each encoder; one that comes again is encoded once."""
        distinct = {id(tokens): tokens for tokens in captions}
        with self._options():
            parts = [
                _encode(encoder, [tokens[key] for tokens in distinct.values()])
                for key, encoder in self.encoders.items()
            ]
        found = dict(zip(distinct, map(_joined, zip(*parts, strict=True)), strict=True))
        return [found[id(tokens)] for tokens in captions]

    @contextmanager
    def _options(self) -> Iterator[None]:
        """The encoders set as `CLIP.encode_from_tokens` sets them; afterwards as before."""
        before = [{name: getattr(encoder, name) for name in _OPTIONS} for encoder in self.encoders.values()]
        self.text.reset_clip_options()
        if self.clip_layer is not None:
            self.text.set_clip_options({"layer": self.clip_layer})
        self.text.set_clip_options({"execution_device": self.device})
        try:
            yield
        finally:
            for encoder, options in zip(self.encoders.values(), before, strict=True):
                vars(encoder).update(options)


def _encode(encoder: SDClipModel, captions: list[list[Section]]) -> list[Encoded]:
    """Each caption by one encoder, all of their sections in one forward.

    Weighted words are moved away from an empty text's, as in ComfyUI's `encode_token_weights`.
    """
    sections = [section for caption in captions for section in caption]
    weights = torch.tensor([[item[1] for item in section] for section in sections])[..., None]
    tokens = [[item[0] for item in section] for section in sections]
    if weighted := any(item[1] != 1 for section in sections for item in section):
        tokens.append(gen_empty_tokens(encoder.special_tokens, len(tokens[0])))
    text, pooled = encoder.encode(tokens)[:2]
    if weighted:
        text, empty, weights = text[:-1], text[-1], weights.to(text.device)
        text = torch.where(weights == 1, text, (text - empty) * weights + empty)
    counts = [len(caption) for caption in captions]
    firsts = [part[:1] for part in pooled[: sum(counts)].split(counts)]
    return [(part.flatten(0, 1)[None], first) for part, first in zip(text.split(counts), firsts, strict=True)]


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """One caption by all encoders: their texts side by side, cut to the shortest, and the last one's pooled vector."""
    length = min(text.shape[1] for text, _ in parts)
    return torch.cat([text[:, :length] for text, _ in parts], dim=-1), parts[-1][1]
