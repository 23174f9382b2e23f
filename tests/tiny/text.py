"""Tiny text encoders: ComfyUI's classes and tokenizers at small widths, through its `<name>_model_config` override."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.anima as anima
import comfy.text_encoders.ernie as ernie
import comfy.text_encoders.flux as flux
import comfy.text_encoders.hidream as hidream
import comfy.text_encoders.ideogram4 as ideogram4
import comfy.text_encoders.kandinsky5 as kandinsky5
import comfy.text_encoders.krea2 as krea2
import comfy.text_encoders.lt as lt
import comfy.text_encoders.lumina2 as lumina2
import comfy.text_encoders.pixart_t5 as pixart_t5
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.text_encoders.qwen_image as qwen_image
import comfy.text_encoders.qwen_vl as qwen_vl
import comfy.text_encoders.sd3_clip as sd3_clip
import comfy.text_encoders.wan as wan
import comfy.text_encoders.z_image as z_image
import sentencepiece
import torch
from comfy import sd1_clip, sdxl_clip
from lora_loom.nodes.bridge.systems.text import LastHiddenClip

from .weights import seeded


def _clip_l(width: int, layers: int) -> dict[str, int]:
    return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=width)


def _t5(width: int) -> dict[str, int]:
    return dict(d_model=width, d_ff=2 * width, d_kv=16, num_heads=2, num_layers=1)


def _llm(width: int, layers: int) -> dict[str, int]:
    return dict(
        hidden_size=width, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip


class TextForImage(LastHiddenClip):
    """Gives the embedding of the text in the place of a picture's, which is in the same space."""

    def encode_token_weights(self, token_weight_pairs: list) -> tuple:
        tokens, pooled, beside = super().encode_token_weights(token_weight_pairs)
        return tokens, pooled, {**beside, "kandinsky_image_embedding": pooled[..., None, None]}


def _clip_g(kind: type[LastHiddenClip]) -> tuple[Any, Any, dict]:
    """CLIP ViT-bigG as Kandinsky 2.2 and Wuerstchen v2 read it."""
    config = _clip_l(64, 1) | {"num_attention_heads": 1, "hidden_act": "gelu", "eos_token_id": 49407}
    config |= {"max_position_embeddings": 77}
    tokens = partial(sd1_clip.SDTokenizer, embedding_size=64, embedding_key="clip_g")
    return (
        partial(sd1_clip.SD1ClipModel, clip_name="g", clip_model=partial(kind, config)),
        partial(sd1_clip.SD1Tokenizer, clip_name="g", tokenizer=tokens),
        {},
    )


class _ErnieTokenizer(sd1_clip.SD1Tokenizer):
    """With the words of another: ComfyUI 0.30 cannot make Ernie's own with transformers 5.23."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        words = {"name": "ministral3_3b", "tokenizer": anima.Qwen3Tokenizer}
        super().__init__(embedding_directory, tokenizer_data or {}, **words)


KINDS = {
    "clip_g": _clip_g(LastHiddenClip),
    "clip_image": _clip_g(TextForImage),
    "sd15": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer, {"clip_l_model_config": _clip_l(768, 1)}),
    "sdxl": (  # the last layer but one is read
        sdxl_clip.SDXLClipModel,
        sdxl_clip.SDXLTokenizer,
        {"clip_l_model_config": _clip_l(32, 3), "clip_g_model_config": _clip_l(64, 3)},
    ),
    "sd3": (  # without T5; padded to its width
        sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False),
        sd3_clip.SD3Tokenizer,
        {"clip_l_model_config": _clip_l(64, 3), "clip_g_model_config": _clip_l(64, 3)},
    ),
    "flux": (
        flux.flux_clip(),
        flux.FluxTokenizer,
        {"clip_l_model_config": _clip_l(64, 1), "t5xxl_model_config": _t5(64)},
    ),
    "wan": (
        wan.te(),
        wan.WanT5Tokenizer,
        {"umt5xxl_model_config": _t5(4096) | {"d_ff": 64, "vocab_size": 1000}},
    ),
    "qwen_image": (
        qwen_image.te(),
        qwen_image.QwenImageTokenizer,
        {"qwen25_7b_model_config": _llm(64, 1)},
    ),
    "zimage": (  # the last layer but one is read
        z_image.te(),
        z_image.ZImageTokenizer,
        {"qwen3_4b_model_config": _llm(64, 3)},
    ),
    "lumina2": (
        lumina2.te(),
        lumina2.LuminaTokenizer,
        {"gemma2_2b_model_config": _llm(64, 3) | {"vocab_size": 1000}},
    ),
    "krea2": (  # reads layers up to the 35th
        krea2.te(),
        krea2.Krea2Tokenizer,
        {"qwen3vl_4b_model_config": _llm(40, 36)},
    ),
    "ernie": (  # the last layer but one is read
        ernie.te(),
        _ErnieTokenizer,
        {"ministral3_3b_model_config": _llm(64, 3) | {"vocab_size": 152_000}},
    ),
    "hidream": (
        hidream.hidream_clip(),
        hidream.HiDreamTokenizer,
        {
            "clip_l_model_config": _clip_l(64, 3),
            "clip_g_model_config": _clip_l(64, 3),
            "t5xxl_model_config": _t5(64),
            "llama_model_config": _llm(64, 2),
        },
    ),
    "ideogram4": (  # reads 13 layers, the last of them the 36th
        ideogram4.te(),
        ideogram4.Ideogram4Tokenizer,
        {"qwen3vl_8b_model_config": _llm(8, 36)},
    ),
    "ltxv": (
        lt.ltxv_te(),
        lt.LTXVT5Tokenizer,
        {"t5xxl_model_config": _t5(64)},
    ),
    "kandinsky5": (
        kandinsky5.te(),
        kandinsky5.Kandinsky5TokenizerImage,
        {"qwen25_7b_model_config": _llm(64, 2), "clip_l_model_config": _clip_l(64, 1)},
    ),
    "anima": (
        anima.te(),
        anima.AnimaTokenizer,
        {"qwen3_06b_model_config": _llm(64, 2)},
    ),
    "cascade": (
        sdxl_clip.StableCascadeClipModel,
        sdxl_clip.StableCascadeTokenizer,
        {"clip_g_model_config": _clip_l(64, 2)},
    ),
    "chroma": (
        pixart_t5.pixart_te(),
        pixart_t5.PixArtTokenizer,
        {"t5xxl_model_config": _t5(64)},
    ),
    "flux2": (  # reads layers 9, 18 and 27
        flux.klein_te(),
        flux.KleinTokenizer,
        {"qwen3_4b_model_config": _llm(64, 28)},
    ),
}


WITHOUT_TOKENIZER = ("wan", "lumina2")  # ComfyUI reads it from the encoder's file


def make_clip(kind: str, seed: int = 0) -> comfy.sd.CLIP:
    """A CLIP whose conditioning fits the networks of that kind."""
    model, tokenizer, options = KINDS[kind]
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    data = {"spiece_model": _pieces()} if kind in WITHOUT_TOKENIZER else {}
    with _small_eyes():
        clip = comfy.sd.CLIP(target, tokenizer_data=data, model_options={**options, "dtype": torch.float32})
    clip.cond_stage_model.load_state_dict(seeded(clip.cond_stage_model.state_dict(), seed))
    return clip


@cache
def _pieces() -> torch.Tensor:
    """A SentencePiece model of some words, as the bytes in which files hold it."""
    words = "a an the red green blue gray striped many words picture number square heart circle on background".split()
    draw, out = random.Random(0), io.BytesIO()
    sentences = (" ".join(draw.choices(words, k=6)) for _ in range(500))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=out, vocab_size=100, hard_vocab_limit=False, pad_id=0, eos_id=1,
        unk_id=2, bos_id=3, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


@contextmanager
def _small_eyes() -> Iterator[None]:
    """Language models that can see build their vision towers at full size: shrink those, which no test uses."""
    tower = qwen_vl.Qwen2VLVisionTransformer

    def small(hidden_size: int, output_hidden_size: int, **rest: Any) -> torch.nn.Module:
        return tower(64, output_hidden_size, intermediate_size=64, num_heads=2, num_layers=1, **rest)

    sizes = dict(hidden_size=64, intermediate_size=64, depth=1, deepstack_visual_indexes=[0])
    with (
        patch.object(qwen_vl, "Qwen2VLVisionTransformer", small),
        patch.dict(qwen3vl.QWEN3VL_VISION, dict.fromkeys(qwen3vl.QWEN3VL_VISION, sizes)),
        patch.dict(qwen3vl.QWEN3VL_VISION_COMMON, num_heads=2),
    ):
        yield
