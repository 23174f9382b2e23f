"""Names what ComfyUI's wires carry, each by one name: `model` is a MODEL wherever the bridge says it, `base_model` what
that holds (a comfy.model_base.BaseModel), and `network` the module that is trained. A `patcher` is a MODEL at work, or
what holds the networks of a CLIP or a VAE in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

Model = ModelPatcher
Clip = CLIP
Vae = VAE
Conditioning = Sequence[
    Sequence[Any]
]  # pairs of a text's encoding, (1, tokens, width), and a dict of what is beside it
LoraStack = Iterable[Sequence[Any] | Mapping[Any, Any]]  # rows as other packs write them; foreign_rows reads them
