"""Resize LoRA: another rank, size, strength or choice of layers for one LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging.pick import Pick
from ..lora_core.merging.truncation import Limits
from ..lora_core.stack.rows import LIMIT, NONE
from .bridge.host import takedown
from .bridge.host.folders import lora_state
from .bridge.host.node_outputs import as_image_batch, as_lora_model, report_ui
from .bridge.host.progress import Progress
from .bridge.merging.resize import resize
from .bridge.merging.sources import check_one
from .types import CATEGORY, AdapterType, file_input


class ResizeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_ResizeLora",
            display_name="Resize LoRA",
            category=f"{CATEGORY}/merge",
            description="Makes a LoRA smaller with the least possible error, changes its strength for good, or splits it by layers.",
            search_aliases=["shrink lora", "lora rank", "split lora", "lora blocks", "invert lora"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRA. It is needed to find the layers in the file."),
                file_input("lora_name", tooltip="A file from the loras folders. Choose None when an adapter is connected."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="Highest rank of a layer. 0: no limit."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, tooltip="Share of each layer to keep (squared norm): 0.99 means an error of at most 10 % per layer. 1 keeps everything."),
                io.Float.Input("size_mb", default=0.0, min=0.0, max=100000.0, step=1.0, tooltip="Largest size of the fp16 file in MB. Each layer gets the rank that makes the total error smallest. 0: no limit."),
                io.Float.Input("strength", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, tooltip="The new LoRA at strength 1 does what the old one did at this strength. -1 gives the inverse."),
                io.Float.Input("text_strength", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, tooltip="The same for the text encoder. 0 removes its layers."),
                io.String.Input("keep", default="", multiline=True, optional=True, tooltip="Only layers with one of these parts in the name, separated by commas, such as 'double_blocks.*.img_attn, single_blocks'. Empty: all layers."),
                io.String.Input("drop", default="", multiline=True, optional=True, tooltip="Layers to leave out, written as in keep. They go to the output rest."),
                AdapterType.Input("adapter", optional=True, tooltip="A LoRA from Train LoRA, Merge LoRA or Extract LoRA, instead of a file."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder; needed when the LoRA changes it."),
                io.Float.Input("ratio", default=0.0, min=0.0, max=1000.0, step=0.5, optional=True, advanced=True, tooltip="Leaves out what is more than this many times weaker than the strongest part of its layer (sv_ratio in sd-scripts). 0: no limit."),
                io.Float.Input("share", default=1.0, min=0.01, max=1.0, step=0.001, optional=True, advanced=True, tooltip="Share of the sum of each layer's singular values to keep (sv_cumulative in sd-scripts). 1 keeps everything."),
                io.Int.Input("conv_rank", default=0, min=0, max=1024, optional=True, advanced=True, tooltip="Highest rank of 3x3 convolutions and others that look at more than one place. 0: as rank."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The resized LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                AdapterType.Output("rest", tooltip="The layers that keep and drop left out, at full rank. adapter and rest together are the whole LoRA."),
                io.String.Output("report", tooltip="Ranks, size, and the relative error of every layer and of the whole LoRA."),
                io.Image.Output("chart", tooltip="Chart of the singular values, what is kept of them, and the error of each layer."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name=NONE, adapter=""):
        return check_one(lora_name, adapter)

    @classmethod
    def fingerprint_inputs(cls, lora_name=NONE, **_):
        return [*lora_state(lora_name), *takedown.state()]

    @classmethod
    def execute(
        cls, model, lora_name, rank, energy, size_mb, strength, text_strength, keep="", drop="", adapter=None, clip=None,
        ratio=0.0, share=1.0, conv_rank=0,
    ) -> io.NodeOutput:  # fmt: skip
        limits = Limits(rank, energy, size_mb, ratio=ratio, share=share, conv_rank=conv_rank)
        progress = Progress(1)
        made, rest = resize(
            model, clip, adapter, lora_name, (strength, text_strength), Pick.of(keep, drop), limits, progress.tick
        )
        asked = {"rank": rank, "energy": energy, "size_mb": size_mb}
        asked |= {"ratio": ratio, "share": share, "conv_rank": conv_rank}
        shown = made.measure.asked_with({**asked, "strength": strength, "text_strength": text_strength})
        return io.NodeOutput(
            made.adapter,
            as_lora_model(made.adapter),
            rest,
            made.report,
            as_image_batch(made.chart),
            ui=report_ui(cls, made.report, measure=shown),
        )
