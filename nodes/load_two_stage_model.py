"""Load Kandinsky / Wuerstchen Model: a prior or a decoder of the systems that draw in two stages."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.systems.loading import WEIGHT_TYPES, file_names, load_model
from .types import CATEGORY


class LoadTwoStageModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_LoadTwoStageModel",
            display_name="Load Kandinsky / Wuerstchen Model",
            category=f"{CATEGORY}/use",
            description="Loads the prior or the decoder of Kandinsky 2.2 or Wuerstchen v2 from the file that diffusers publishes. Which one it is, the file tells. KSampler, Train LoRA and Load LoRA Stack take it as any other model.",
            search_aliases=["kandinsky", "kandinsky 2.2", "wuerstchen", "w\u00fcrstchen", "two stage", "unclip prior", "load prior", "load decoder"],
            inputs=[
                io.Combo.Input("model_name", options=file_names("diffusion_models"), tooltip="A file from the diffusion_models folders: diffusion_pytorch_model.safetensors of a prior, a unet or a decoder, under any name."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_TYPES), default="default", advanced=True, tooltip="The type in which weights are kept, as in Load Diffusion Model. default: what suits the file and your device."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="A prior makes of text what the decoder draws from. Each has a KSampler of its own."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model_name, weight_dtype) -> io.NodeOutput:
        return io.NodeOutput(load_model(model_name, weight_dtype))
