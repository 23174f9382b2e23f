"""Tells how diffusers calls the layers for which ComfyUI's own key maps have no such names, in some networks or in all.

Files with these names are read and never written, because ComfyUI's loaders would not apply them: only networks that
ComfyUI does not know at all have no others. diffusers' tables are in its
`loaders/single_file_utils.py` (Wan, Lumina 2, Cosmos, Chroma, FLUX.2, LTX-Video). Some networks it knows by ComfyUI's
own names, too (its `loaders/lora_conversion_utils.py`), and those are written.
"""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str], ...]

WAN_BLOCKS = r"blocks\.\d+\.(?:(?:self|cross)_attn\.(?:[qkvo]|[kv]_img)|ffn\.[02])"
"""A pattern of the layers of Wan's blocks, all of which diffusers reads by these names, too."""

_WAN: Rules = (
    (r"^time_embedding\.0$", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2$", "condition_embedder.time_embedder.linear_2"),
    (r"^text_embedding\.0$", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2$", "condition_embedder.text_embedder.linear_2"),
    (r"^time_projection\.1$", "condition_embedder.time_proj"),
    (r"^head\.head$", "proj_out"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])$", r".to_\1"),
    (r"\.([kv])_img$", r".add_\1_proj"),
    (r"\.o$", ".to_out.0"),
    (r"\.ffn\.0$", ".ffn.net.0.proj"),
    (r"\.ffn\.2$", ".ffn.net.2"),
)
_LUMINA_2: Rules = (
    (r"^cap_embedder\.", "time_caption_embed.caption_embedder."),
    (r"^t_embedder\.mlp\.0$", "time_caption_embed.timestep_embedder.linear_1"),
    (r"^t_embedder\.mlp\.2$", "time_caption_embed.timestep_embedder.linear_2"),
    (r"^final_layer\.adaLN_modulation\.1$", "norm_out.linear_1"),
    (r"^final_layer\.linear$", "norm_out.linear_2"),
    (r"\.attention\.", ".attn."),
    (r"\.out$", ".to_out.0"),
    (r"\.feed_forward\.w(\d)$", r".feed_forward.linear_\1"),
    (r"\.adaLN_modulation\.1$", ".norm1.linear"),
)
_ANIMA: Rules = (
    (r"^t_embedder\.1\.", "time_embed.t_embedder."),
    (r"^x_embedder\.proj\.1$", "patch_embed.proj"),
    (r"^final_layer\.linear$", "proj_out"),
    (r"^final_layer\.adaln_modulation\.", "norm_out.linear_"),
    (r"^blocks\.", "transformer_blocks."),
    (r"\.adaln_modulation_self_attn\.", ".norm1.linear_"),
    (r"\.adaln_modulation_cross_attn\.", ".norm2.linear_"),
    (r"\.adaln_modulation_mlp\.", ".norm3.linear_"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])_proj$", r".to_\1"),
    (r"\.output_proj$", ".to_out.0"),
    (r"\.mlp\.layer1$", ".ff.net.0.proj"),
    (r"\.mlp\.layer2$", ".ff.net.2"),
)
_CHROMA: Rules = (
    (r"^(distilled_guidance_layer\.layers\.\d+)\.in_layer$", r"\1.linear_1"),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.out_layer$", r"\1.linear_2"),
)
_FLUX_2: Rules = (
    (r"^time_in\.in_layer$", "time_guidance_embed.timestep_embedder.linear_1"),
    (r"^time_in\.out_layer$", "time_guidance_embed.timestep_embedder.linear_2"),
    (r"^guidance_in\.in_layer$", "time_guidance_embed.guidance_embedder.linear_1"),
    (r"^guidance_in\.out_layer$", "time_guidance_embed.guidance_embedder.linear_2"),
    (r"^(\w+_stream_modulation\w*)\.lin$", r"\1.linear"),
)
_IDEOGRAM_4: Rules = ((r"\.attention\.o$", ".attention.to_out.0"),)
_LTX_VIDEO: Rules = ((r"^patchify_proj$", "proj_in"), (r"^adaln_single\.", "time_embed."))
_RULES = {
    r"WAN2[12]_\w+": _WAN, "Lumina2": _LUMINA_2, "Anima": _ANIMA, "Chroma": _CHROMA, "Flux2": _FLUX_2,
    "Ideogram4": _IDEOGRAM_4, "LTXV": _LTX_VIDEO,
}  # fmt: skip
_OWN = {  # patterns of layers that diffusers reads as `diffusion_model.<own name>.lora_A.weight`, from 0.35 and 0.39 on
    r"WAN2[12]_\w+": rf"{WAN_BLOCKS}|(text|time)_embedding\.[02]|time_projection\.1|head\.head|img_emb\.proj\.[13]",
    "Anima": r".*",
    "Ideogram4": r"layers\.\d+\.(attention\.(qkv|o)|feed_forward\.w[123]|adaln_modulation)",
    "LTXV": r"(?!patchify_proj|adaln_single).*",
}


_PROCESSED = re.compile(r"\.(to_[qkv]|to_out|add_[kv]_proj)(?:\.0)?$")
_PARTS = {
    "Kandinsky22Decoder": "unet",
    "Kandinsky22Prior|Wuerstchen2Prior": "prior",
}  # with the very paths of diffusers


def part_of(config_class: str) -> str:
    """The part of diffusers' pipelines that a network is, whose layers have the same paths there; "" for others."""
    return next((part for pattern, part in _PARTS.items() if re.fullmatch(pattern, config_class)), "")


def own_name(config_class: str, path: str) -> str | None:
    """How diffusers reads a layer by its path in ComfyUI's network: "" if not at all, None for a class of which it
    reads none so."""
    if part := part_of(config_class):
        return f"{part}.{path}"
    found = (layers for pattern, layers in _OWN.items() if re.fullmatch(pattern, config_class))
    layers = next(found, None)
    if layers is None:
        return None
    return f"diffusion_model.{path}" if re.fullmatch(layers, path) else ""


def names_of_part(config_class: str, path: str) -> tuple[str, ...]:
    """How diffusers has spelled a layer of such a network, today and as weights of attention processors."""
    part = part_of(config_class)
    if not part:
        return ()
    processor = _PROCESSED.sub(r".processor.\1", path)
    return tuple(prefix + name for name in dict.fromkeys((path, processor)) for prefix in (f"{part}.", ""))


def rules_for(config_class: str) -> Rules:
    """Return the renames of a ComfyUI model class, in order; none where ComfyUI's maps have all of diffusers' names."""
    return next((rules for pattern, rules in _RULES.items() if re.fullmatch(pattern, config_class)), ())


def renamed(path: str, rules: Rules) -> str:
    """Return a layer's path in ComfyUI's network as diffusers has it; of a fused `qkv`, the path up to that word."""
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path
