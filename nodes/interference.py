"""LoRA Interference: what the LoRAs of a stack share, and what that makes of their sum."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.analysis.interference import interference
from .bridge.host.node_outputs import as_image_batch, shown
from .bridge.stack.entries import check_strengths, connected
from .types import CATEGORY, LoraStackType, adapters_input


class LoraInterference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Interference",
            display_name="LoRA Interference",
            category=f"{CATEGORY}/measure",
            description="Measures where the LoRAs of a stack touch: for every pair and block of the model how alike they are, which directions they share and how they meet in attention, each beside what unrelated LoRAs have by chance; and how loud their sum is. Figures of risk, from the files alone: LoRA Leave-One-Out shows what it means in pictures.",
            search_aliases=["conflict", "compatibility", "lora overlap", "balance strengths", "analyze lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRAs. Patches on it are not counted."),
                io.String.Input("strengths", default="", tooltip="One strength per connected adapter, separated by commas; empty means 1 for all. Rows of the stack carry their own."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="Files with strengths, from Load LoRA Stack or a stacker of another pack."),
                io.Clip.Input("clip", optional=True, tooltip="Needed when a LoRA changes the text encoder."),
                adapters_input(),
            ],
            outputs=[
                io.Image.Output("heat_map", tooltip="Blocks by pairs; what is within chance is dark."),
                io.String.Output("report", tooltip="A sentence for every finding, and the noise floor."),
                io.String.Output("strengths", tooltip="Strengths that keep the sum as loud as its loudest member: of the connected adapters, as Merge LoRA takes them, or of the rows when there are none."),
                LoraStackType.Output("lora_stack", tooltip="The rows with those strengths."),
                io.String.Output("figures", tooltip="Everything measured, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths="", adapters=None):  # ComfyUI always passes dynamic inputs
        return check_strengths(adapters, strengths=strengths)

    @classmethod
    def execute(cls, model, strengths, lora_stack=None, clip=None, adapters=None) -> io.NodeOutput:
        given = connected((adapters or {}).values(), strengths, "")
        found = interference(model, clip, lora_stack, given)
        heat_map = as_image_batch(found.heat_map)
        return io.NodeOutput(
            heat_map, found.report, found.strengths, found.rows, found.figures, ui=shown(cls, found.report, heat_map)
        )
