"""Load Kandinsky / Wuerstchen VAE: what turns pictures into latents of the two systems, and back."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.systems.coders import load_vae
from .bridge.systems.loading import file_names
from .types import CATEGORY


class LoadTwoStageVae(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_LoadTwoStageVae",
            display_name="Load Kandinsky / Wuerstchen VAE",
            category=f"{CATEGORY}/use",
            description="Loads MoVQ, the VAE of Kandinsky 2.2, or Wuerstchen's VQGAN, or the EfficientNet encoder that its prior is trained with. Which one it is, the file tells.",
            search_aliases=["kandinsky", "kandinsky 2.2", "movq", "wuerstchen", "w\u00fcrstchen", "vqgan", "effnet", "load vae"],
            inputs=[
                io.Combo.Input("vae_name", options=file_names("vae"), tooltip="A file from the vae folders: diffusion_pytorch_model.safetensors of a movq or a vqgan, or Wuerstchen's effnet encoder, under any name."),
            ],
            outputs=[
                io.Vae.Output("vae", tooltip="MoVQ and VQGAN go with the decoder. The EfficientNet encoder goes with Wuerstchen's prior, and only encodes."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(load_vae(vae_name))
