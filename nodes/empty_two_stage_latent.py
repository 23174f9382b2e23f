"""Empty Latents (Kandinsky / Wuerstchen): where the KSamplers of the prior and of the decoder begin."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.systems.conditioning import empty_latents
from .types import CATEGORY


class EmptyTwoStageLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_EmptyTwoStageLatent",
            display_name="Empty Latents (Kandinsky / Wuerstchen)",
            category=f"{CATEGORY}/use",
            description="Makes the two empty latents that a picture of Kandinsky 2.2 or Wuerstchen v2 begins with, in the shapes that the model wants.",
            search_aliases=["kandinsky", "kandinsky 2.2", "wuerstchen", "w\u00fcrstchen", "empty latent", "prior latent"],
            inputs=[
                io.Model.Input("model", tooltip="The prior or the decoder: it tells which system it is."),
                io.Int.Input("width", default=1024, min=64, max=16384, step=64, tooltip="Pixels. Kandinsky 2.2 was trained at 512 to 1024, Wuerstchen v2 at 1024 and more."),
                io.Int.Input("height", default=1024, min=64, max=16384, step=64, tooltip="Pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures."),
            ],
            outputs=[
                io.Latent.Output("prior", tooltip="For the KSampler of the prior."),
                io.Latent.Output("decoder", tooltip="For the KSampler of the decoder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, width, height, batch_size) -> io.NodeOutput:
        return io.NodeOutput(*empty_latents(model, width, height, batch_size))
