"""Extract LoRA: the difference of two models as a LoRA, at a measured error."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging.pick import Pick
from .bridge.host.node_outputs import as_image_batch, as_lora_model, shown
from .bridge.host.progress import Progress
from .bridge.merging.extraction import extract_lora
from .types import CATEGORY, AdapterType


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_ExtractLora",
            display_name="Extract LoRA",
            category=f"{CATEGORY}/merge",
            description="Makes a LoRA of the difference between a tuned model and its base, one weight at a time, and measures what it misses.",
            search_aliases=["extract lora", "lora from checkpoint", "model difference", "lora svd", "subtract models"],
            inputs=[
                io.Model.Input("model_a", tooltip="The tuned model: a checkpoint, a merge of checkpoints, or a model with LoRAs on it."),
                io.Model.Input("model_b", tooltip="Its base. The LoRA on this model gives the tuned one, but for the error shown."),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Most rank of a layer."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, tooltip="A layer takes less rank where that holds this share of the squared norm of the difference. 1 takes the rank."),
                io.String.Input("keep", default="", multiline=True, optional=True, tooltip="Parts of layer names, separated by commas, such as 'attn'. Empty takes all."),
                io.String.Input("drop", default="", multiline=True, optional=True, tooltip="Parts of layer names to leave out."),
                io.Clip.Input("clip_a", optional=True, tooltip="The tuned text encoder, when it is to be in the LoRA."),
                io.Clip.Input("clip_b", optional=True, tooltip="The base's text encoder."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="The relative error of every layer and of the whole, and what differs that a LoRA cannot hold."),
                io.Image.Output("chart", tooltip="The singular values found and kept, and the error of each layer."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model_a, model_b, rank, energy, keep="", drop="", clip_a=None, clip_b=None) -> io.NodeOutput:
        progress = Progress(1)
        made, report, chart = extract_lora(
            model_a, model_b, clip_a, clip_b, rank, energy, Pick.of(keep, drop), progress.tick
        )
        return io.NodeOutput(made, as_lora_model(made), report, as_image_batch(chart), ui=shown(cls, report))
