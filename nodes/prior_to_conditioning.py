"""Prior to Conditioning: what the prior has made becomes what the decoder draws from."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.systems.conditioning import from_prior
from .types import CATEGORY


class PriorToConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_PriorToConditioning",
            display_name="Prior to Conditioning (Kandinsky / Wuerstchen)",
            category=f"{CATEGORY}/use",
            description="Turns the latent that a prior made into the conditioning that the decoder's KSampler takes, positive and negative. For Kandinsky 2.2 connect negative_prior or clip_vision, for Wuerstchen v2 positive and negative.",
            search_aliases=["kandinsky", "kandinsky 2.2", "wuerstchen", "w\u00fcrstchen", "image embedding", "decoder conditioning"],
            inputs=[
                io.Latent.Input("prior", tooltip="From the KSampler of the prior. For variations of a picture: from VAE Encode with CLIP Vision as VAE."),
                io.Latent.Input("negative_prior", optional=True, tooltip="Kandinsky: from a second KSampler of the prior, with the negative prompt as its positive one."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="Kandinsky, without negative_prior: CLIP ViT-bigG, of which the embedding of a grey picture is taken. This is what no negative prompt means."),
                io.Conditioning.Input("positive", optional=True, tooltip="Wuerstchen: the prompt, encoded with the decoder's own text encoder."),
                io.Conditioning.Input("negative", optional=True, tooltip="Wuerstchen: the negative prompt, encoded in the same way."),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="For the KSampler of the decoder."),
                io.Conditioning.Output("negative", tooltip="For the KSampler of the decoder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, prior, negative_prior=None, clip_vision=None, positive=None, negative=None) -> io.NodeOutput:
        return io.NodeOutput(*from_prior(prior, negative_prior, clip_vision, positive, negative))
