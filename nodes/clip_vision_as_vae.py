"""CLIP Vision as VAE: pictures become the image embeddings that Kandinsky's prior makes of text."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.systems.coders import ClipVisionVae
from .types import CATEGORY


class ClipVisionAsVae(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_ClipVisionAsVae",
            display_name="CLIP Vision as VAE (Kandinsky)",
            category=f"{CATEGORY}/use",
            description="Lets a CLIP vision model stand where a VAE is wanted: the latent of a picture is its image embedding. Train LoRA trains Kandinsky's prior with it, and the decoder as prior_vae. With VAE Encode, the decoder draws variations of a picture.",
            search_aliases=["kandinsky", "kandinsky 2.2", "image embedding", "clip vision", "unclip", "image variation"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision: CLIP ViT-bigG, the image encoder of Kandinsky 2.2."),
            ],
            outputs=[
                io.Vae.Output("vae", tooltip="Encodes a picture of any size to a latent of 1280 x 1 x 1. It cannot decode: Kandinsky's decoder does that."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip_vision) -> io.NodeOutput:
        return io.NodeOutput(ClipVisionVae(clip_vision))
