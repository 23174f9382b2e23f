"""Merge LoRA: several adapters become one, exactly, with an optional smaller rank at a stated error."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.merging import merge, parse_strengths
from .bridge.progress import Progress
from .bridge.training import as_lora_model
from .types import CATEGORY, AdapterType, LoraStackType


class MergeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        adapters = io.Autogrow.TemplatePrefix(
            AdapterType.Input("adapter", tooltip="From Train LoRA or another Merge LoRA."),
            prefix="adapter",
            min=0,
            max=16,
        )
        return io.Schema(
            node_id="LoraLoom_MergeLora",
            display_name="Merge LoRA",
            category=CATEGORY,
            description="Makes one LoRA of several. The sum is exact for any mix of ranks, alphas and formats: the result applied alone equals the live stack.",
            search_aliases=["combine lora", "lora merger", "resize lora"],
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRAs: it tells which keys of their files mean the same layer."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="0 keeps the sum exact; its rank is the sum of all ranks. Otherwise each layer is cut to this rank, optimally, and the error is shown."),
                io.String.Input("strengths", default="", tooltip="One strength per connected adapter, separated by commas; empty means 1 for all. Rows of the stack carry their own."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="Files with strengths, from Load LoRA Stack or a stacker of another pack."),
                io.Clip.Input("clip", optional=True, tooltip="Needed when a LoRA changes the text encoder."),
                io.Autogrow.Input("adapters", template=adapters, optional=True, tooltip="Adapters from the graph, any number."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The merged LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="Parents, ranks, and the relative error of every layer."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths="", adapters=None):  # ComfyUI always passes dynamic inputs
        try:
            parse_strengths(strengths or "", None)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, rank, strengths, lora_stack=None, clip=None, adapters=None) -> io.NodeOutput:
        connected = [adapter for adapter in (adapters or {}).values() if adapter is not None]
        merged, report = merge(model, clip, lora_stack, connected, parse_strengths(strengths, len(connected)), rank)
        Progress(1).say(report)
        return io.NodeOutput(merged, as_lora_model(merged), report)
