"""Resize LoRA: another rank, size, strength or choice of layers for one LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging.pick import Pick
from ..lora_core.merging.truncation import Limits
from ..lora_core.stack.rows import LIMIT, NONE
from .bridge.host.folders import lora_state
from .bridge.host.node_outputs import as_image_batch, as_lora_model, shown
from .bridge.host.progress import Progress
from .bridge.merging.resize import resize
from .bridge.stack.entries import check_rows
from .types import CATEGORY, AdapterType, file_input


class ResizeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_ResizeLora",
            display_name="Resize LoRA",
            category=f"{CATEGORY}/merge",
            description="Makes a LoRA smaller at the least possible error, folds a strength into it, or splits it by layers.",
            search_aliases=["shrink lora", "lora rank", "split lora", "lora blocks", "invert lora"],
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRA: it tells which keys of the file mean which layer."),
                file_input("lora_name", tooltip="A file from the loras folders; None when an adapter is connected."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="Most rank of a layer; 0 sets none."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, tooltip="Share of each layer's squared norm to keep; 0.99 leaves an error of at most 10 % per layer. 1 keeps all."),
                io.Float.Input("size_mb", default=0.0, min=0.0, max=100000.0, step=1.0, tooltip="Largest size of the fp16 file in MB, shared out over all layers so that the error of the whole is smallest. 0 sets no size."),
                io.Float.Input("strength", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, tooltip="Folded into the LoRA, which then does at 1 what it did at this strength. -1 is its inverse."),
                io.Float.Input("text_strength", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, tooltip="The same for the text encoder; 0 takes its layers out."),
                io.String.Input("keep", default="", multiline=True, optional=True, tooltip="Parts of layer names, separated by commas, such as 'double_blocks.*.img_attn, single_blocks'. Empty keeps all."),
                io.String.Input("drop", default="", multiline=True, optional=True, tooltip="Parts of layer names to leave out. What is left out comes out as rest."),
                AdapterType.Input("adapter", optional=True, tooltip="In place of a file: from Train LoRA, Merge LoRA or Extract LoRA."),
                io.Clip.Input("clip", optional=True, tooltip="Needed when the LoRA changes the text encoder."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The resized LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                AdapterType.Output("rest", tooltip="The layers that keep and drop left out, uncut: with adapter, the LoRA split in two."),
                io.String.Output("report", tooltip="Ranks, size, and the relative error of every layer and of the whole."),
                io.Image.Output("chart", tooltip="The singular values and what is kept of them, and the error of each layer."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name=NONE):
        return check_rows([lora_name])

    @classmethod
    def fingerprint_inputs(cls, lora_name=NONE, **_):
        return lora_state(lora_name)

    @classmethod
    def execute(
        cls, model, lora_name, rank, energy, size_mb, strength, text_strength, keep="", drop="", adapter=None, clip=None
    ) -> io.NodeOutput:
        limits, progress = Limits(rank, energy, size_mb), Progress(1)
        made, rest, report, chart = resize(
            model, clip, adapter, lora_name, (strength, text_strength), Pick.of(keep, drop), limits, progress.tick
        )
        return io.NodeOutput(made, as_lora_model(made), rest, report, as_image_batch(chart), ui=shown(cls, report))
