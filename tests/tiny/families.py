"""One row per model family: the smallest network of the real architecture that is worth testing.

Widths that ComfyUI's detection fixes are kept (SD 1.5: 320 channels, text 768); everything else is as small as it goes.
`sd15` and the FLUX rows are files that the stock loaders accept; `sd15_full` has all 686 keys of the real SD 1.5 at a
tenth of its width, which no loader would accept, so it is built through ComfyUI's own model class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_loom.lora_core.families.signs import KIN


@dataclass(frozen=True)
class Latent:
    """TAESD of a latent space: with its scale and shift, `process_latent_in(encode(x))` is the raw encoder output."""

    channels: int
    scale: float
    shift: float


@dataclass(frozen=True)
class WanLatent:
    """Wan 2.1's latent space of clips, which others use for pictures."""

    channels: int = 16


@dataclass(frozen=True)
class GivenLatent:
    """A latent space of which no small VAE exists: latents are given, one of `factor` x `factor` pixels each."""

    channels: int
    factor: int


@dataclass(frozen=True)
class GivenEmbedding:
    """A picture as one place of so many channels, as CLIP vision sees it."""

    channels: int


@dataclass(frozen=True)
class StageALatent:
    """Stable Cascade's latent space of stage B."""

    channels: int = 4


@dataclass(frozen=True)
class Tiny:
    """`config`: a class of comfy.supported_models; `unet`: what detection makes of the file; `text`: see text.py.

    `marks`: keys whose mere presence tells the loader something; `norm`: 0 where files hold scales of norms minus 1.
    """

    name: str
    config: str
    unet: dict[str, Any]
    text: str
    latent: Latent | WanLatent | GivenLatent | GivenEmbedding | StageALatent
    prefix: str = ""
    stock: bool = True
    marks: tuple[str, ...] = ()
    norm: float = 1.0


def _unet(width: int, blocks: int, mult: list[int], down: list[int], up: list[int], middle: int) -> dict[str, Any]:
    return dict(
        use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
        use_temporal_attention=False, use_temporal_resblock=False, adm_in_channels=None, context_dim=768,
        use_linear_in_transformer=False, model_channels=width, num_res_blocks=[blocks] * len(mult), channel_mult=mult,
        transformer_depth=down, transformer_depth_output=up, transformer_depth_middle=middle,
    )  # fmt: skip


def _flux(guidance: bool) -> dict[str, Any]:
    return dict(
        image_model="flux", axes_dim=[16, 56, 56], num_heads=1, hidden_size=128, mlp_ratio=4.0, theta=10000,
        patch_size=2, in_channels=16, out_channels=16, qkv_bias=True, txt_ids_dims=[], context_in_dim=64, vec_in_dim=64,
        depth=2, depth_single_blocks=2, guidance_embed=guidance, yak_mlp=False, txt_norm=False,
    )  # fmt: skip


def _sdxl() -> dict[str, Any]:
    """All levels and block kinds of SDXL, a fifth of its width, depth 1 and 2 for 2 and 10."""
    small = _unet(64, 2, [1, 1, 1], [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], 2)
    return small | dict(
        num_classes="sequential", adm_in_channels=64 + 6 * 256, context_dim=96, use_linear_in_transformer=True
    )


def _sd3(second_attention: list[int]) -> dict[str, Any]:
    """Depth 2, which also sets the width; `second_attention`: blocks of SD 3.5 medium that have one more."""
    return dict(
        in_channels=16, patch_size=2, out_channels=16, depth=2, input_size=None, adm_in_channels=128, num_patches=256,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
        pos_embed_max_size=16, pos_embed_scaling_factor=None, qk_norm="rms", x_block_self_attn_layers=second_attention,
    )  # fmt: skip


def _flux2() -> dict[str, Any]:
    return dict(
        image_model="flux2", axes_dim=[32] * 4, num_heads=1, hidden_size=128, mlp_ratio=3.0, theta=2000, patch_size=1,
        in_channels=128, out_channels=128, qkv_bias=False, ops_bias=False, txt_ids_dims=[3], context_in_dim=192,
        vec_in_dim=None, depth=2, depth_single_blocks=2, guidance_embed=False, yak_mlp=False, txt_norm=False,
        global_modulation=True, mlp_silu_act=True, default_ref_method="index", ref_index_scale=10.0,
    )  # fmt: skip


def _wan() -> dict[str, Any]:
    return dict(
        image_model="wan2.1", model_type="t2v", dim=128, out_dim=16, num_heads=1, ffn_dim=128, num_layers=2, in_dim=16,
        patch_size=(1, 2, 2), freq_dim=256, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
    )  # fmt: skip


def _qwen() -> dict[str, Any]:
    return dict(
        image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=64,
    )  # fmt: skip


def _next_dit(dim: int, heads: int, kv_heads: int, text: int, **more: Any) -> dict[str, Any]:
    return dict(
        image_model="lumina2", patch_size=2, in_channels=16, dim=dim, cap_feat_dim=text, n_layers=2, qk_norm=True,
        n_heads=heads, n_kv_heads=kv_heads, n_refiner_layers=1, **more,
    )  # fmt: skip


def _zimage() -> dict[str, Any]:
    return _next_dit(
        384, 3, 3, 64, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8 / 3,
        z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
    )  # fmt: skip


def _lumina2() -> dict[str, Any]:
    """Three queries to a key, as in the real one."""
    return _next_dit(
        288, 3, 1, 64, axes_dims=[32] * 3, axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=4.0
    )


def _chroma() -> dict[str, Any]:
    return dict(
        image_model="chroma", axes_dim=[16, 56, 56], num_heads=1, hidden_size=128, mlp_ratio=4.0, theta=10000,
        patch_size=2, in_channels=64, out_channels=64, qkv_bias=True, txt_ids_dims=[], context_in_dim=64,
        vec_in_dim=None, depth=2, depth_single_blocks=2, in_dim=64, out_dim=128, hidden_dim=64, n_layers=2,
    )  # fmt: skip


def _krea2() -> dict[str, Any]:
    """Twelve layers of text at width 40: its 20 text heads are fixed."""
    return dict(
        image_model="krea2", features=128, channels=16, patch=2, layers=2, heads=1, kvheads=1, txtlayers=12, txtdim=40
    )


def _ernie() -> dict[str, Any]:
    return dict(
        image_model="ernie", hidden_size=128, num_attention_heads=1, num_layers=2, ffn_hidden_size=384, text_in_dim=64
    )


def _hidream() -> dict[str, Any]:
    """Four experts, of which a token goes to two, in both kinds of blocks."""
    return dict(
        image_model="hidream", attention_head_dim=128, axes_dims_rope=[64, 32, 32], caption_channels=[64, 64],
        max_resolution=[128, 128], in_channels=16, llama_layers=[0, 1, 1, 1], num_attention_heads=1,
        num_routed_experts=4, num_activated_experts=2, num_layers=2, num_single_layers=2, out_channels=16, patch_size=2,
        text_emb_dim=128,
    )  # fmt: skip


def _ideogram4() -> dict[str, Any]:
    return dict(
        image_model="ideogram4", in_channels=128, num_layers=2, num_attention_heads=2, attention_head_dim=64,
        intermediate_size=256, adaln_dim=32, llm_features_dim=13 * 8, rope_theta=5_000_000, mrope_section=[12, 10, 10],
        norm_eps=1e-5,
    )  # fmt: skip


def _ltxv() -> dict[str, Any]:
    """Pictures of the tests are too small for the real VAE, which compresses by 32: theirs by 16."""
    return dict(
        image_model="ltxv", num_layers=2, num_attention_heads=2, attention_head_dim=64, cross_attention_dim=128,
        caption_channels=64,
    )  # fmt: skip


def _kandinsky5() -> dict[str, Any]:
    """The model of pictures; that of clips has the same blocks."""
    return dict(
        image_model="kandinsky5", model_dim=128, axes_dims=(32, 48, 48), rope_scale_factor=(1.0, 1.0, 1.0), time_dim=32,
        ff_dim=128, visual_embed_dim=64, num_text_blocks=1, num_visual_blocks=2, in_text_dim=64, in_text_dim2=64,
    )  # fmt: skip


def _kandinsky5_clips() -> dict[str, Any]:
    """16 channels of latents, 16 of a picture to go on from, 1 of its mask."""
    heads = dict(axes_dims=(16, 24, 24), rope_scale_factor=(1.0, 2.0, 2.0))
    return _kandinsky5() | heads | dict(model_dim=64, visual_embed_dim=132)


def _anima() -> dict[str, Any]:
    return dict(
        image_model="anima", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16,
        patch_spatial=2, patch_temporal=1, model_channels=64, concat_padding_mask=True, crossattn_emb_channels=64,
        pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30,
        use_adaln_lora=True, adaln_lora_dim=64, num_blocks=2, num_heads=2, extra_per_block_abs_pos_emb=False,
        rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0, rope_t_extrapolation_ratio=1.0,
        extra_h_extrapolation_ratio=1.0, extra_w_extrapolation_ratio=1.0, extra_t_extrapolation_ratio=1.0,
        rope_enable_fps_modulation=False,
    )  # fmt: skip


def _kandinsky22_prior() -> dict[str, Any]:
    return dict(image_model="Kandinsky22Prior", width=128, depth=2, embed=64, words=77)


def _kandinsky22_decoder() -> dict[str, Any]:
    """Two of the four levels, so that the smallest pictures pass, each kind among them."""
    return dict(image_model="Kandinsky22Decoder", channels=(32, 64), layers=1, context=32, embed=64, tokens=4)


def _wuerstchen2_prior() -> dict[str, Any]:
    return dict(image_model="Wuerstchen2Prior", c_in=16, c=64, c_cond=64, c_r=16, depth=2)


def _cascade_c() -> dict[str, Any]:
    return dict(
        stable_cascade_stage="c", c_cond=64, c_hidden=[64, 64], nhead=[2, 2], blocks=[[1, 1], [1, 1]], c_clip_text=64,
        c_clip_text_pooled=64,
    )  # fmt: skip


def _cascade_b() -> dict[str, Any]:
    """Three of the four levels, so that the smallest pictures pass, each kind among them."""
    return dict(
        stable_cascade_stage="b", c_cond=64, c_hidden=[32, 32, 64], nhead=[-1, -1, 2], blocks=[[1, 1, 1], [1, 1, 1]],
        block_repeat=[[1, 1, 1], [2, 2, 2]], c_clip=64,
    )  # fmt: skip


SD_SMALLEST = _unet(320, 1, [1], [1], [0, 0], -2)
SD_WHOLE = _unet(32, 2, [1, 2, 4, 4], [1] * 6 + [0] * 2, [1] * 9 + [0] * 3, 1)
SD_LATENT = Latent(4, 0.18215, 0.0)
SDXL_LATENT = Latent(4, 0.13025, 0.0)
SD3_LATENT = Latent(16, 1.5305, 0.0609)
FLUX_LATENT = Latent(16, 0.3611, 0.1159)
FLUX2_LATENT = GivenLatent(128, 16)

FAMILIES = {
    row.name: row
    for row in (
        Tiny("sd15", "SD15", SD_SMALLEST, "sd15", SD_LATENT, "model.diffusion_model."),
        Tiny("sd15_full", "SD15", SD_WHOLE, "sd15", SD_LATENT, stock=False),
        Tiny("sdxl", "SDXL", _sdxl(), "sdxl", SDXL_LATENT, stock=False),
        Tiny("sdxl_v", "SDXL", _sdxl(), "sdxl", SDXL_LATENT, stock=False, marks=("v_pred",)),
        Tiny("sd35_large", "SD3", _sd3([]), "sd3", SD3_LATENT, "model.diffusion_model."),
        Tiny("sd35_medium", "SD3", _sd3([0]), "sd3", SD3_LATENT, "model.diffusion_model."),
        Tiny("flux1", "Flux", _flux(True), "flux", FLUX_LATENT),
        Tiny("flux1_schnell", "FluxSchnell", _flux(False), "flux", FLUX_LATENT),
        Tiny("chroma", "Chroma", _chroma(), "chroma", FLUX_LATENT, stock=False),
        Tiny("flux2", "Flux2", _flux2(), "flux2", FLUX2_LATENT),
        Tiny("wan21", "WAN21_T2V", _wan(), "wan", WanLatent()),
        Tiny("wan22_5b", "WAN22_T2V", _wan() | {"in_dim": 48, "out_dim": 48}, "wan", GivenLatent(48, 16)),
        Tiny("qwen_image", "QwenImage", _qwen(), "qwen_image", WanLatent(), stock=False),
        Tiny("krea2", "Krea2", _krea2(), "krea2", WanLatent(), norm=0.0),
        Tiny("ernie_image", "ErnieImage", _ernie(), "ernie", FLUX2_LATENT, stock=False),
        Tiny("hidream", "HiDream", _hidream(), "hidream", FLUX_LATENT, stock=False),
        Tiny("ideogram4", "Ideogram4", _ideogram4(), "ideogram4", FLUX2_LATENT, stock=False),
        Tiny("ltxv", "LTXV", _ltxv(), "ltxv", GivenLatent(128, 16), stock=False),
        Tiny("kandinsky5", "Kandinsky5Image", _kandinsky5(), "kandinsky5", FLUX_LATENT, stock=False),
        Tiny("kandinsky5_clips", "Kandinsky5", _kandinsky5_clips(), "kandinsky5", GivenLatent(16, 8), stock=False),
        Tiny("anima", "Anima", _anima(), "anima", WanLatent(), stock=False),
        Tiny("cascade_c", "Stable_Cascade_C", _cascade_c(), "cascade", GivenLatent(16, 8), stock=False),
        Tiny("cascade_b", "Stable_Cascade_B", _cascade_b(), "cascade", StageALatent(), stock=False),
        Tiny("kandinsky22_prior", "Kandinsky22Prior", _kandinsky22_prior(), "clip_g", GivenEmbedding(64), stock=False),
        Tiny(
            "kandinsky22_decoder", "Kandinsky22Decoder", _kandinsky22_decoder(), "clip_image", GivenLatent(4, 8),
            stock=False,
        ),
        Tiny("wuerstchen2", "Wuerstchen2Prior", _wuerstchen2_prior(), "clip_g", GivenLatent(16, 8), stock=False),
        Tiny("zimage", "ZImage", _zimage(), "zimage", FLUX_LATENT, stock=False),
        Tiny("lumina2", "Lumina2", _lumina2(), "lumina2", FLUX_LATENT, stock=False),
    )
}  # fmt: skip
FIRST = ("sd15", "sd15_full", "flux1", "flux1_schnell")  # the tests name these; they try every other row, too
MORE = [name for name in FAMILIES if name not in FIRST]
# Families for which ComfyUI knows no names of diffusers.
WITHOUT_DIFFUSERS = ("lumina2", "cascade_c", "cascade_b")
# Families that ComfyUI knows nothing of, and diffusers by the same names.
DIFFUSERS_ALONE = ("kandinsky22_prior", "kandinsky22_decoder", "wuerstchen2")
# Families of which ComfyUI's loaders read no file of diffusers.
NOT_BY_COMFYUI = (*WITHOUT_DIFFUSERS, *DIFFUSERS_ALONE)
# Pairs of which the one takes the other's files: the same names and, at least of tiny models, the same shapes.
ALIKE = (*KIN, {"Qwen-Image", "Krea 2"}, {"LTX-Video", "Kandinsky 2.2 prior"})
