"""Tells which family a LoRA file is for: by its layers' names and shapes and, where these leave several, its header.

A guess names every family that the file may be for. The widths and depths are those of the published networks, the
ratios those of the architecture (ComfyUI's model_detection.py and the networks' own configurations).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .loose_names import is_text, unwrapped

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Signs:
    """`keys` are layers that the family has and `never` ones that it does not, as patterns of names with `_` for `.`.

    `ratios`: how many times its inputs such a layer has outputs. `depth`: how many blocks there are of the number in
    the pattern's group. `widths`: inputs of layers, of which a file for the family has one. `says`: its spellings in
    `modelspec.architecture` and `ss_base_model_version`.
    """

    keys: str
    never: str = r"(?!)"
    ratios: tuple[tuple[str, float], ...] = ()
    depth: tuple[tuple[str, int], ...] = ()
    widths: tuple[int, ...] = ()
    says: str = r"(?!)"


_UNET = r"(blocks_\d+_1|block_1|attentions_\d)_transformer_blocks_\d"
_DIFFUSERS = r"^(lora_|lycoris_)*(transformer_)?transformer_blocks_"
_JOINT = rf"{_DIFFUSERS}\d+_attn_(to_[qkv]|to_out_0|add_[qkv]_proj|to_add_out)$"
_JOINT_DEPTH = r"(?<!single_)transformer_blocks_(\d+)_"
_FLUX = rf"(double|single)_blocks_\d|single_transformer_blocks_\d|{_JOINT}"
_FLUX_1_ONLY = (
    r"single_transformer_blocks_\d+_(attn_to_[qkv]|proj_mlp|proj_out)$|_net_|\d_modulation_lin|_(img|txt)_mod_"
)
_FLUX_2_ONLY = r"to_qkv_mlp_proj|single_transformer_blocks_\d+_attn_to_out$|_linear_(in|out)$|stream_modulation_"
_FLUX_1_RATIOS = ((r"linear1$", 7), (r"linear2$", 1 / 5), (r"(img|txt)_mlp_0$", 4), (r"(img|txt)_mlp_2$", 1 / 4))
_FLUX_2_RATIOS = ((r"linear1$", 9), (r"linear2$", 1 / 4), (r"(img|txt)_mlp_0$", 6), (r"(img|txt)_mlp_2$", 1 / 3))
_FLUX_1_DEPTH = ((r"double_blocks_(\d+)_", 19), (r"single_(?:transformer_)?blocks_(\d+)_", 38), (_JOINT_DEPTH, 19))
_FLUX_2_DEPTH = ((r"double_blocks_(\d+)_", 8), (r"single_(?:transformer_)?blocks_(\d+)_", 48), (_JOINT_DEPTH, 8))
_NOT_CHROMA = rf"{_FLUX_2_ONLY}|\d_modulation_lin|_(img|txt)_mod_|(vector|guidance|time)_in_|norm\d?(_context)?_linear$"
_CASCADE = r"(down|up)_blocks_\d_\d+_attention_attn_"
_FLAT = r"^(lora_unet_|lora_transformer_|lycoris_|diffusion_model_)?"
_TWO_ATTENTIONS = rf"{_FLAT}transformer_blocks_\d+_attn[12]_to_"
_COSMOS = rf"(self|cross)_attn_(output|[qkv])_proj|{_TWO_ATTENTIONS}"
_LLM_ADAPTER = r"llm_adapter|text_conditioner"  # diffusers' word for it
_LUMINA = r"(layers|refiner)_\d+_(attn_to_|feed_forward_linear_)"  # diffusers' names, which OmniGen2 has, too
_IDEOGRAM_ONLY = r"_attention_o$|_adaln_modulation$"
_NEXT_DIT = r"(layers|refiner)_\d+_(attention|feed_forward)_"

SIGNS = {
    "SD 1.5": Signs(
        _UNET, r"transformer_blocks_[1-9]|up_blocks_0_attentions|output_blocks_[0-2]_1_transformer", widths=(768,),
        says=r"stable-diffusion-v1|sd_v1|sd_1\.5",
    ),
    "SD 2": Signs(
        _UNET, r"transformer_blocks_[1-9]|up_blocks_0_attentions|output_blocks_[0-2]_1_transformer", widths=(1024,),
        says=r"stable-diffusion-v2.*|sd_v2.*|sd_2\.1",
    ),
    "SDXL": Signs(
        _UNET, r"down_blocks_0_att|up_blocks_[23]_att|input_blocks_[12]_1_|output_blocks_([6-9]|1\d)_1_",
        widths=(2048,), says=r"stable-diffusion-xl-.*|sdxl_.*",
    ),
    "SD 3.5": Signs(
        rf"joint_blocks_\d|{_JOINT}", r"single_transformer", depth=((_JOINT_DEPTH, 38),), widths=(1536, 2432),
        says=r"stable-diffusion-(v?3).*|sd3.*|sd_3.*",
    ),
    "FLUX.1 dev": Signs(
        _FLUX, _FLUX_2_ONLY, _FLUX_1_RATIOS, _FLUX_1_DEPTH, (3072,), r"flux[-.]?1([-.]dev.*|[-._]kontext.*)?",
    ),
    "FLUX.1 schnell": Signs(
        _FLUX, _FLUX_2_ONLY, _FLUX_1_RATIOS, _FLUX_1_DEPTH, (3072,), r"flux[-.]?1([-.]schnell)?",
    ),
    "Chroma": Signs(
        rf"{_FLUX}|distilled_guidance", _NOT_CHROMA, _FLUX_1_RATIOS, _FLUX_1_DEPTH, (3072,), r"chroma",
    ),
    "FLUX.2": Signs(_FLUX, _FLUX_1_ONLY, _FLUX_2_RATIOS, _FLUX_2_DEPTH, (3072, 4096, 6144), r"flux[-_.]?2.*"),
    "Wan 2.1": Signs(
        rf"blocks_\d+_((self|cross)_attn_[qkvo]$|ffn_\d)|{_FLAT}blocks_\d+_(attn[12]_to_|ffn_)",
        says=r"wan.*",
    ),
    "Qwen-Image": Signs(
        rf"(lora_unet|diffusion_model)_transformer_blocks_\d|transformer_blocks_\d+_(img|txt)_(mlp|mod)_|{_JOINT}",
        r"single_transformer|_ff_|to_gate|attn[12]_", depth=((_JOINT_DEPTH, 60),), widths=(3072,),
        says=r"qwen[-_]image.*",
    ),
    "Krea 2": Signs(
        r"blocks_\d+_attn_(w[qkvo]|(to_)?gate)|txtfusion|text_fusion"
        r"|(?<!single_)transformer_blocks_\d+_(attn_to_([qkv]|out_0)$|ff_(up|down|gate))",
        r"add_[qkv]_proj|to_add_out|_(img|txt)_(mlp|mod)_|_net_", widths=(6144,), says=r"krea[-_]?2.*",
    ),
    "Ernie-Image": Signs(
        r"layers_\d+_(self_attention_to_|mlp_(gate_proj|up_proj|linear_fc2)$)", depth=((r"layers_(\d+)_", 36),),
        widths=(4096,), says=r"ernie[-_]image.*",
    ),
    "HiDream I1": Signs(
        r"(double|single)_stream_blocks_\d",
        depth=((r"double_stream_blocks_(\d+)_", 16), (r"single_stream_blocks_(\d+)_", 32)),
        widths=(2560,), says=r"hidream([-_]?i1.*)?",
    ),
    "Kandinsky 5": Signs(r"(text|visual)_transformer_blocks_\d", says=r"kandinsky[-_]?5.*"),
    "Anima": Signs(rf"{_COSMOS}|{_LLM_ADAPTER}", widths=(2048,), says=r"anima.*"),
    "Cosmos Predict2": Signs(_COSMOS, _LLM_ADAPTER, widths=(2048, 5120), says=r"cosmos.*"),
    "LTX-Video": Signs(_TWO_ATTENTIONS, widths=(2048, 4096), says=r"(lightricks-)?ltx.*"),
    "Stable Cascade C": Signs(
        rf"{_CASCADE}|lora_prior_unet_(?!blocks_)", r"down_blocks_[23]_", says=r"stable[-_]cascade(-v1-stage-c.*)?",
    ),
    "Stable Cascade B": Signs(
        _CASCADE, r"down_blocks_[01]_|lora_prior_unet", says=r"stable[-_]cascade(-v1-stage-b.*)?",
    ),
    "Kandinsky 2.2 prior": Signs(
        rf"{_TWO_ATTENTIONS}|^prior_transformer_blocks_\d", "attn2_",
        depth=((_JOINT_DEPTH, 20),), widths=(2048,), says=r"kandinsky[-_]?v?2[-_.]2[-_]prior",
    ),
    "Kandinsky 2.2 decoder": Signs(
        r"blocks?(_\d)?_attentions_\d_(processor_)?(to_(q|k|v|out)|add_[kv]_proj)", widths=(768, 1152, 1536),
        says=r"kandinsky[-_]?v?2[-_.]2[-_]decoder",
    ),
    "Wuerstchen v2 prior": Signs(
        r"(?<!transformer_)blocks_\d+_(attention_(processor_)?to_|kv_mapper_1|channelwise_\d)", widths=(1536,),
        says=r"wuerstchen[-_]?v?2.*",
    ),
    "Z-Image": Signs(
        _NEXT_DIT, _IDEOGRAM_ONLY, ratios=((r"attention_qkv$", 3), (r"attention_to_[kv]$", 1)),
        widths=(3840,), says=r"z[-_]?image.*",
    ),
    "Lumina 2": Signs(
        rf"{_NEXT_DIT}|{_LUMINA}", _IDEOGRAM_ONLY,
        ratios=((r"attention_qkv$", 5 / 3), (r"(attention|attn)_to_[kv]$", 1 / 3)),
        widths=(2304,), says=r"lumina-?2",
    ),
    "Ideogram 4": Signs(
        r"layers_\d+_(attention_(qkv|o|to_[qkv]|to_out_0)|feed_forward_w[123]|adaln_modulation)$",
        ratios=((r"attention_qkv$", 3), (r"attention_to_[kv]$", 1)), depth=((r"layers_(\d+)_", 34),),
        widths=(4608,), says=r"ideogram[-_]?4.*",
    ),
    "OmniGen2": Signs(_LUMINA, widths=(2520,), says=r"omnigen-?2.*"),
}  # fmt: skip

KIN = ({"FLUX.1 dev", "FLUX.1 schnell", "Chroma"},)  # most layers are the same, and each is used with the others' LoRAs


def guess(layers: Shapes, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return all families that a LoRA with these layers, name -> (outputs, inputs, ...), may be for; () when none is
    known.

    Layers of text encoders, which families share, do not count.
    """
    flat = {_flat(name): shape for name, shape in layers.items() if not is_text(name)}
    hits = {family: sum(bool(re.search(signs.keys, name)) for name in flat) for family, signs in SIGNS.items()}
    most = max(hits.values())
    found = [family for family, count in hits.items() if count == most and most and _may_be(SIGNS[family], flat)]
    inputs = {shape[1] for shape in flat.values() if len(shape) > 1}
    found = [family for family in found if inputs & set(SIGNS[family].widths)] or found
    return _said(found or tuple(SIGNS), metadata) or tuple(found)


def is_sure(family: str, families: Sequence[str]) -> bool:
    """Return whether a guess leaves no doubt that a model of `family` takes the file; there is none of a family without
    signs, of which nothing can be told."""
    return family not in SIGNS or bool(families) and all(takes(family, (each,)) for each in families)


def takes(family: str, families: Sequence[str]) -> bool:
    """Return whether a model of `family` takes LoRAs of one of `families`: its own, or a close relative's."""
    related = {family}.union(*(kin for kin in KIN if family in kin))
    return family not in SIGNS or not families or bool(related & set(families))


def named(families: tuple[str, ...]) -> str:
    """`A, B or C`, or 'an unknown family'."""
    *others, last = families or ("an unknown family",)
    return f"{', '.join(others)} or {last}" if others else last


def _flat(name: str) -> str:
    """Without what tells nothing: peft's and torch's prefixes, and the part of a pipeline that diffusers names."""
    return re.sub(r"[._]+", "_", unwrapped(name).removeprefix("transformer."))


def _may_be(signs: Signs, flat: Shapes) -> bool:
    return not any(_rules_out(signs, name, shape) for name, shape in flat.items())


def _rules_out(signs: Signs, name: str, shape: tuple[int, ...]) -> bool:
    if re.search(signs.never, name):
        return True
    if any((number := re.search(pattern, name)) and int(number[1]) >= count for pattern, count in signs.depth):
        return True
    return len(shape) > 1 and any(
        re.search(pattern, name) and abs(shape[0] / shape[1] - ratio) > 0.05 * ratio for pattern, ratio in signs.ratios
    )


def _said(families: Sequence[str], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Those of `families` that the header names; `modelspec.architecture` is the finer word."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        text = metadata.get(key, "").split("/")[0].lower()
        if said := tuple(family for family in families if re.fullmatch(SIGNS[family].says, text)):
            return said
    return ()
