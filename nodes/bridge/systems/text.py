"""The text encoders of Kandinsky 2.2 and Wuerstchen v2: CLIP's last hidden state after its final norm, with its mask.

ComfyUI has these encoders, too, but gives what comes before the norm, and no mask.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from comfy.supported_models_base import ClipTarget

from ..host.wires import Clip, Model
from ..networks.parts import HEAD, numbered
from .files import refused
from .loading import weights_in
from .stages import shapes_of

log = logging.getLogger("lora_loom")

Options = dict[str, Any]
_LAYERS = "text_model.encoder.layers."
_SMALL = 768  # width of CLIP ViT-L
_HUGE = 1024  # of CLIP ViT-H, which ComfyUI calls clip_h; clip_g is CLIP ViT-bigG
_END, _START = 49407, 49406
_WANTED = "a text encoder of Kandinsky 2.2 or Wuerstchen v2 (CLIP ViT-bigG, or ViT-H for Wuerstchen's decoder)"


def load_text_encoder(name: str) -> Clip:
    """Load a CLIP of that name in text_encoders. Raises ValueError for another file, saying what it is."""
    return _clip(folder_paths.get_full_path_or_raise("text_encoders", name))


class LastHiddenClip(SDClipModel):
    """Encodes a text to (1, 77, width), its projected pooled vector, and the mask of tokens that are no padding."""

    def __init__(
        self, config: Options, device: Any = "cpu", dtype: Any = None, model_options: Options | None = None
    ) -> None:
        super().__init__(
            device, layer="last", textmodel_json_config=dict(config), dtype=dtype,
            special_tokens={"start": _START, "end": _END, "pad": _END}, enable_attention_masks=True,
            return_attention_masks=True, model_options=model_options or {},
        )  # fmt: skip

    def encode_token_weights(self, token_weight_pairs: list) -> tuple:
        """Cut a text where the model's own pipeline does: both systems were trained with 77 tokens."""
        if len(token_weight_pairs) > 1:
            log.warning("the text is longer than CLIP reads; what follows its first 75 tokens is left out")
        return super().encode_token_weights(token_weight_pairs[:1])


def _clip(path: str, disable_dynamic: bool = False) -> Clip:
    weights = weights_in(path)
    if "transformer.resblocks.0.ln_1.weight" in weights:
        weights = comfy.utils.clip_text_transformers_convert(weights, "", "")
    shapes = shapes_of(weights)
    width, inner = shapes.get(f"{_LAYERS}0.mlp.fc1.weight", (0, 0))[::-1]
    if width in (0, _SMALL):
        raise refused(path, weights, _WANTED)
    config = {
        "hidden_size": width, "num_hidden_layers": numbered(shapes, _LAYERS), "intermediate_size": inner,
        "num_attention_heads": width // HEAD, "hidden_act": "gelu", "max_position_embeddings": 77, "eos_token_id": _END,
    }  # fmt: skip
    weights.setdefault("text_projection.weight", torch.eye(width))  # missing where nothing reads what is pooled
    clip = comfy.sd.CLIP(
        _target("h" if width == _HUGE else "g", config), folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(weights), state_dict=[weights], disable_dynamic=disable_dynamic,
    )  # fmt: skip
    clip.patcher.cached_patcher_init = (_patcher, (path,))
    return clip


def _patcher(path: str, disable_dynamic: bool = False) -> Model:
    return _clip(path, disable_dynamic).patcher


def _target(name: str, config: dict[str, Any]) -> ClipTarget:
    tokens: Any = partial(SDTokenizer, embedding_size=config["hidden_size"], embedding_key=f"clip_{name}")
    target = ClipTarget(partial(SD1Tokenizer, clip_name=name, tokenizer=tokens), SD1ClipModel)
    target.params = {"clip_name": name, "clip_model": partial(LastHiddenClip, config)}
    return target
