"""Kandinsky 2.2 in small, loaded by the pack's nodes and as diffusers' pipelines, from the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import tiny.clip
import torch
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, PriorTransformer, UNet2DConditionModel, VQModel
from lora_loom.nodes.load_two_stage_model import LoadTwoStageModel
from lora_loom.nodes.load_two_stage_text_encoder import LoadTwoStageTextEncoder
from lora_loom.nodes.load_two_stage_vae import LoadTwoStageVae
from safetensors.torch import save_file
from tiny import kandinsky
from transformers import CLIPImageProcessor, CLIPTokenizer

from .calls import run_node
from .comfyui import comfyui_path
from .parity import theirs

DECODER = {**kandinsky.DECODER, "tokens": 32}  # as many as diffusers' has


def write_files(root: Path, text: Any, loud: float = 1.0) -> None:
    """The four files below a folder of models; `loud` scales what the prior predicts."""
    prior = kandinsky.prior_weights()
    prior["proj_to_clip_embeddings.weight"] *= loud
    for name, weights in {
        "diffusion_models/kandinsky_prior": prior,
        "diffusion_models/kandinsky_decoder": kandinsky.decoder_weights(DECODER),
        "vae/movq": kandinsky.movq_weights(),
        "text_encoders/kandinsky_text": text.state_dict(),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in weights.items()}, root / f"{name}.safetensors")


class System:
    """Both sides, from the same weights. The prior's last layer is so loud that its scheduler clips what it says."""

    def __init__(self, root: Path) -> None:
        self.text, self.vision = tiny.clip.text(kandinsky.EMBED), tiny.clip.vision(kandinsky.EMBED)
        write_files(root, self.text, loud=4.0)
        for kind in ("diffusion_models", "vae", "text_encoders"):
            folder_paths.add_model_folder_path(kind, str(root / kind))
        (self.prior,) = run_node(LoadTwoStageModel, model_name="kandinsky_prior.safetensors", weight_dtype="default")
        (self.decoder,) = run_node(
            LoadTwoStageModel, model_name="kandinsky_decoder.safetensors", weight_dtype="default"
        )
        (self.vae,) = run_node(LoadTwoStageVae, vae_name="movq.safetensors")
        (self.clip,) = run_node(LoadTwoStageTextEncoder, clip_name="kandinsky_text.safetensors")
        with torch.inference_mode():
            self.clip_vision = tiny.clip.in_comfyui(self.vision)
        nets = (self.prior.model.diffusion_model, self.decoder.model.diffusion_model, self.vae.first_stage_model)
        self.weights = [{name: value.clone() for name, value in net.state_dict().items()} for net in nets]

    def prior_pipeline(self, scheduler: Any) -> KandinskyV22PriorPipeline:
        prior = theirs(
            PriorTransformer, self.weights[0], num_attention_heads=2, attention_head_dim=64, num_layers=2,
            embedding_dim=kandinsky.EMBED, num_embeddings=77, additional_embeddings=4,
        )  # fmt: skip
        tokenizer = CLIPTokenizer.from_pretrained(comfyui_path() / "comfy" / "sd1_tokenizer", model_max_length=77)
        made = KandinskyV22PriorPipeline(
            prior, self.vision, self.text, tokenizer, scheduler, CLIPImageProcessor()
        )  # fmt: skip
        made.set_progress_bar_config(disable=True)
        return made

    def decoder_pipeline(self, scheduler: Any) -> KandinskyV22Pipeline:
        unet = theirs(
            UNet2DConditionModel, self.weights[1], in_channels=4, out_channels=8, addition_embed_type="image",
            encoder_hid_dim_type="image_proj", encoder_hid_dim=kandinsky.EMBED, cross_attention_dim=DECODER["context"],
            down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2), attention_head_dim=64,
            up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"), layers_per_block=2,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=DECODER["channels"],
            resnet_time_scale_shift="scale_shift",
        )  # fmt: skip
        movq = theirs(
            VQModel, self.weights[2], block_out_channels=kandinsky.MOVQ["channels"], layers_per_block=1,
            latent_channels=4, vq_embed_dim=4, num_vq_embeddings=kandinsky.MOVQ["codes"], norm_type="spatial",
            down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
        )  # fmt: skip
        made = KandinskyV22Pipeline(unet, scheduler, movq)
        made.set_progress_bar_config(disable=True)
        return made
