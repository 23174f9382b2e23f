"""One row per model family: what the pack must know about it beyond what ComfyUI's model object tells.

What a family is trained with is in `training.presets`, and what tells its LoRA files from others in `signs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil


@dataclass(frozen=True)
class Text:
    """Says how a network takes its text, by the names of its layers (a name may lack its beginning).

    A token has as many features as the product of what the layers `tokens` read; `pooled` reads the pooled vector and
    `beside` values more. `also` names further entries that a CONDITIONING must hold.
    """

    tokens: tuple[str, ...] = ()
    pooled: str = ""
    beside: int = 0
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Says how large a latent is where a picture is resized before it is encoded: `pixels` of a side to each place.
    What is left of a side is a place of its own where they are counted `up`."""

    pixels: float
    up: bool = False

    def of(self, side: int) -> int:
        """Return how many places a side of so many pixels has, at least 1."""
        return ceil(side / self.pixels) if self.up else max(int(side // self.pixels), 1)


@dataclass(frozen=True)
class Prior:
    """Tells what an earlier stage would have told of each picture, and is encoded from it for training.

    `name` is what CONDITIONING calls it, `what` and `encoder` what people do, who connect that encoder to prior_vae. A
    value of it has `channels`, as many as the layer `reads` takes where they are 0. The encoder compresses by `factor`
    a picture that was resized to suit `places`; without those, it makes one place of any picture.
    """

    name: str
    what: str
    encoder: str
    channels: int = 0
    reads: str = ""
    factor: int = 0
    places: Places | None = None


@dataclass(frozen=True)
class NetworkSize:
    """A size of a family with spellings of its own, told by how many features `layer` writes. `preset` is its row of
    `presets` where the family's does not suit it, and `neutral` its kind of neutral prompts."""

    layer: str
    features: int
    architecture: str
    base_version: str
    preset: str = ""
    neutral: str = ""


@dataclass(frozen=True)
class Family:
    """`config_class` is a pattern of ComfyUI's `supported_models` classes.

    `architecture` is how `modelspec.architecture` spells it: as the standard or sd-scripts do, else as musubi-tuner or
    SwarmUI, which reads it whatever the case. `base_version` is sd-scripts' or musubi-tuner's `ss_base_model_version`.
    `guidance` is the embedded guidance while training (None: not distilled). `foreign` are names among ComfyUI's that
    diffusers does not read for this family: most are a sister family's. `prior` is what pictures are made from besides
    their caption. `vae` names what encodes them, where another fits in all figures, by whose module `vae_has` it is
    told; `places` says to what size they are brought for it. Each of the modules that `halves` names halves a latent,
    which must divide. `system` is that of which it is a stage, where several sample one after another. `text_encoders`
    are the CLIP encoders that can be trained, as ComfyUI calls them, in the order of their output. `captions` is how
    those of different lengths share a forward: with padding on that side, which attention is kept from; on the right,
    after the network's own adapter has read them; or "", not at all, which is right for every family. Say more only of
    one whose gradients are tested with it.
    `preset` is its row of `presets`, "" that of its name. `neutral` is the kind of its neutral prompts
    (`data.neutral_prompts`): what it was trained on, and in which words.
    """

    name: str
    config_class: str
    architecture: str
    base_version: str
    text: Text = Text()
    guidance: float | None = None
    foreign: str = r"(?!)"
    sizes: tuple[NetworkSize, ...] = ()
    prior: Prior | None = None
    vae: str = ""
    vae_has: str = ""
    places: Places | None = None
    halves: str = ""
    system: str = ""
    text_encoders: tuple[str, ...] = ()
    captions: str = ""
    preset: str = ""
    neutral: str = "pictures"

    @property
    def spelled(self) -> tuple[str, str]:
        """The names that headers have for it."""
        return self.architecture, self.base_version

    @property
    def preset_name(self) -> str:
        return self.preset or self.name

    def sized(self, features: Callable[[str], int]) -> Family:
        """Return the row in the spelling of the size whose `layer` writes as many features as `features(layer)`
        says."""
        for size in self.sizes:
            if features(size.layer) == size.features:
                spelled = {"architecture": size.architecture, "base_version": size.base_version, "preset": size.preset}
                return replace(self, **spelled, neutral=size.neutral or self.neutral)
        return self


_FLUX_1_LAYERS = r"\.single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)$|\.net\.|\.time_text_embed\."
_FLUX_2_LAYERS = r"\.single_transformer_blocks\.\d+\.attn\.to_(qkv_mlp_proj|out)|\.linear_(in|out)$"
_FLUX_1_TEXT = Text(("txt_in",), "vector_in.in_layer")
DEMO_BASE = "LoRA Loom's demo base"
_STAGE_C = Prior(
    "stable_cascade_prior", "the stage C latent", "the stage C encoder (effnet_encoder, by Load VAE)",
    channels=16, factor=32, places=Places(42),  # the default of ComfyUI's Stable Cascade nodes
)  # fmt: skip
_CLIP_IMAGE = Prior(
    "kandinsky_image_embedding", "the CLIP image embedding",
    "the CLIP vision model that belongs to it (CLIP ViT-bigG), by CLIP Vision as VAE", reads="add_embedding.image_proj",
)  # fmt: skip
_SD3 = "joint_blocks.0.x_block.attn2.qkv"  # of SD 3.5 medium alone

FAMILIES = (
    Family(
        "SD 1.5", "SD15", "stable-diffusion-v1", "sd_v1", Text(("attn2.to_k",)),
        text_encoders=("clip_l",), captions="right",
    ),
    Family(
        "SDXL", r"SDXL|SSD1B|Segmind_Vega|KOALA_\w+", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0",
        Text(("attn2.to_k",), "label_emb.0.0", 6 * 256),
        foreign=r"class_embedding|lora_unet_add_embedding", text_encoders=("clip_l", "clip_g"), captions="right",
        neutral="pictures and tags",
    ),
    Family(
        "SD 3.5", "SD3", "stable-diffusion-3", "sd3", Text(("context_embedder",), "y_embedder.mlp.0"),
        sizes=(
            NetworkSize(_SD3, 4608, "stable-diffusion-v3.5-medium", "sd3"),
            NetworkSize("context_embedder", 1536, "stable-diffusion-v3-medium", "sd3"),
            NetworkSize("context_embedder", 2432, "stable-diffusion-v3.5-large", "sd3"),
        ),
        captions="right",
    ),
    Family(
        "FLUX.1 dev", "Flux", "flux-1-dev", "flux1", _FLUX_1_TEXT,
        guidance=1.0, foreign=_FLUX_2_LAYERS, captions="right",
    ),
    Family(
        "FLUX.1 schnell", "FluxSchnell", "flux-1-schnell", "flux1", _FLUX_1_TEXT,
        foreign=_FLUX_2_LAYERS, captions="right",
    ),
    Family(
        "Chroma", "Chroma", "chroma", "chroma", Text(("txt_in",)),
        guidance=0.0, foreign=_FLUX_2_LAYERS, captions="right",
    ),
    Family(
        "FLUX.2", "Flux2", "Flux.2-dev", "flux_2_dev", Text(("txt_in",)), guidance=1.0, foreign=_FLUX_1_LAYERS,
        sizes=(
            NetworkSize("txt_in", 3072, "Flux.2-klein-4b", "flux_2_klein_4b"),
            NetworkSize("txt_in", 4096, "Flux.2-klein-9b", "flux_2_klein_9b"),
        ),
        captions="right",
    ),
    Family(
        "Wan 2.1", "WAN2[12]_T2V", "wan2.1", "wan", Text(("text_embedding.0",)),
        sizes=(
            NetworkSize("blocks.0.ffn.0", 512, "wan2.1", "wan", DEMO_BASE, neutral="shapes"),
            NetworkSize("text_embedding.0", 1536, "wan-2_1-text2video-1_3b", "wan"),
            NetworkSize("text_embedding.0", 3072, "wan-2_2-ti2v-5b", "wan"),
            NetworkSize("text_embedding.0", 5120, "wan-2_1-text2video-14b", "wan"),
        ),
        captions="right",
    ),
    Family("Qwen-Image", "QwenImage", "Qwen-Image", "qwen_image", Text(("txt_in",)), captions="right"),
    Family("Krea 2", "Krea2", "Krea-2", "krea2", Text(("txtfusion.projector", "txtmlp.1")), captions="right"),
    Family("Ernie-Image", "ErnieImage", "ernie-image", "ernie_image", Text(("text_proj",))),
    Family(
        "HiDream I1", "HiDream", "hidream-i1", "hidream",
        Text(("caption_projection.0.linear",), "pooled_embedder.linear_1", also=("conditioning_llama3",)),
    ),
    Family("Ideogram 4", "Ideogram4", "ideogram-4", "ideogram4", Text(("llm_cond_proj",)), captions="right"),
    Family(
        "LTX-Video", "LTXV", "lightricks-ltx-video", "ltxv",
        Text(("caption_projection.linear_1",), also=("attention_mask",)),
    ),
    Family(
        "Kandinsky 5", r"Kandinsky5(Image)?", "Kandinsky-5", "kandinsky5",
        Text(("text_embeddings.in_layer",), "pooled_text_embeddings.in_layer"),
        sizes=(
            NetworkSize("text_embeddings.in_layer", 2560, "kandinsky5-image-lite", "kandinsky5"),
            NetworkSize("text_embeddings.in_layer", 1792, "kandinsky5-video-lite", "kandinsky5"),
            NetworkSize("text_embeddings.in_layer", 4096, "kandinsky5-video-pro", "kandinsky5"),
        ),
        captions="right",
    ),
    Family(
        "Anima", "Anima", "anima", "anima", Text(("llm_adapter.blocks.0.cross_attn.k_proj",), also=("t5xxl_ids",)),
        captions="adapter", neutral="pictures and tags",
    ),
    Family(
        "Stable Cascade C", "Stable_Cascade_C", "stable-cascade-v1-stage-c", "stable_cascade",
        Text(("clip_txt_mapper",), "clip_txt_pooled_mapper"), system="Stable Cascade",
    ),
    Family(
        "Stable Cascade B", "Stable_Cascade_B", "stable-cascade-v1-stage-b", "stable_cascade",
        Text(pooled="clip_mapper"), prior=_STAGE_C, vae="the VAE of stage A", system="Stable Cascade",
    ),
    Family(
        "Kandinsky 2.2 prior", "Kandinsky22Prior", "kandinsky-v2-2-prior", "kandinsky2_2_prior",
        Text(("encoder_hidden_states_proj",), "embedding_proj", also=("attention_mask",)),
        vae="its CLIP vision model (CLIP ViT-bigG), by CLIP Vision as VAE", vae_has="vision_model",
        system="Kandinsky 2.2",
    ),
    Family(
        "Kandinsky 2.2 decoder", "Kandinsky22Decoder", "kandinsky-v2-2-decoder", "kandinsky2_2_decoder",
        prior=_CLIP_IMAGE, vae="MoVQ, the VAE of Kandinsky 2.2", vae_has="quantize", halves="downsamplers.0",
        system="Kandinsky 2.2",
    ),
    Family(
        "Wuerstchen v2 prior", "Wuerstchen2Prior", "wuerstchen-v2-prior", "wuerstchen2_prior",
        Text(("cond_mapper.0",)), vae="the encoder of Wuerstchen v2", vae_has="backbone",
        places=Places(42.67, up=True),  # diffusers' pipelines; OneTrainer has three quarters of the encoder's 1 / 32
        system="Wuerstchen v2",
    ),
    Family("Z-Image", "ZImage", "Z-Image", "z_image", Text(("cap_embedder.1",)), captions="left"),
    Family(
        "Lumina 2", "Lumina2", "lumina-2", "lumina2", Text(("cap_embedder.1",)),
        foreign=r"^transformer\.", captions="left",
    ),
)  # fmt: skip


def for_config_class(name: str) -> Family:
    """Return the row of a ComfyUI model class. A class without one gets a plain row: it trains, with neutral
    defaults."""
    rows = [family for family in FAMILIES if re.fullmatch(family.config_class, name)]
    return rows[0] if rows else Family(name, name, name.lower(), name.lower())


_UNTRAINABLE = {
    "Wuerstchen2Decoder": "a picture's content and style come from the prior of Wuerstchen v2; train that",
    "MiniMaxH3": "it makes clips and their sound in one, and a picture has none",
    r"CogVideoX_\w+": "in ComfyUI its noise does not match its prediction, so it would learn something wrong",
}


def check_trainable(config_class: str) -> None:
    """Raises ValueError for a ComfyUI model class that pictures alone cannot train, or that would learn something
    wrong."""
    for pattern, reason in _UNTRAINABLE.items():
        if re.fullmatch(pattern, config_class):
            raise ValueError(f"{config_class} cannot be trained: {reason}")
