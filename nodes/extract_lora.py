"""Extract LoRA: the difference of two models as a LoRA, at a measured error."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging.pick import Pick
from ..lora_core.ranks.group import here
from .bridge.host.node_outputs import as_image_batch, as_lora_model, report_ui
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
            description="Makes a LoRA from the difference between a fine-tuned model and its base, and measures how much the LoRA misses.",
            search_aliases=["extract lora", "lora from checkpoint", "model difference", "lora svd", "subtract models"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model_a", tooltip="The fine-tuned model: a checkpoint, a merge, or a model with LoRAs applied."),
                io.Model.Input("model_b", tooltip="Its base model. This model plus the LoRA gives model_a, except for the error shown."),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Highest rank of a layer."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, tooltip="A layer gets a lower rank where that keeps this share of the difference (squared norm). 1 always uses rank."),
                io.String.Input("keep", default="", multiline=True, optional=True, tooltip="Only layers with one of these parts in the name, separated by commas, such as 'attn'. Empty: all layers."),
                io.String.Input("drop", default="", multiline=True, optional=True, tooltip="Layers to leave out, written as in keep."),
                io.Clip.Input("clip_a", optional=True, tooltip="The fine-tuned text encoder, to include it in the LoRA."),
                io.Clip.Input("clip_b", optional=True, tooltip="The base model's text encoder."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="The relative error of every layer and of the whole LoRA, and differences that a LoRA cannot contain."),
                io.Image.Output("chart", tooltip="Chart of the singular values found and kept, and of the error of each layer."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model_a, model_b, rank, energy, keep="", drop="", clip_a=None, clip_b=None) -> io.NodeOutput:
        progress = Progress(1)
        pick = Pick.of(keep, drop)
        made = extract_lora(model_a, model_b, clip_a, clip_b, rank, energy, pick, progress.tick, here())
        return io.NodeOutput(
            made.adapter,
            as_lora_model(made.adapter),
            made.report,
            as_image_batch(made.chart),
            ui=report_ui(cls, made.report, measure=made.measure),
        )
