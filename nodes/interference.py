"""LoRA Interference: what the LoRAs of a stack share, and what that makes of their sum."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.analysis.interference import interference
from .bridge.host.node_outputs import as_image_batch, report_ui
from .bridge.stack.entries import check_strengths, connected
from .types import CATEGORY, LoraStackType, adapters_input


class LoraInterference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Interference",
            display_name="LoRA Interference",
            category=f"{CATEGORY}/measure",
            description="Measures how much the LoRAs of a stack overlap or work against each other, for every pair and every block of the model, compared with unrelated LoRAs. Suggests strengths that keep the sum in balance. The figures come from the files only and show a risk: LoRA Leave-One-Out shows the effect in pictures.",
            search_aliases=["conflict", "compatibility", "lora overlap", "balance strengths", "analyze lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRAs. Patches on it are ignored."),
                io.String.Input("strengths", default="", tooltip="One strength for each connected adapter, separated by commas. Empty: 1 for all. Rows of lora_stack have their own strengths."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="LoRA files with strengths, from Load LoRA Stack or a stack node of another pack."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder; needed when a LoRA changes it."),
                adapters_input(),
            ],
            outputs=[
                io.Image.Output("heat_map", tooltip="Heat map: a row for each block, a column for each pair. Dark cells are no more than chance."),
                io.String.Output("report", tooltip="One sentence for each finding, with its figures."),
                io.String.Output("strengths", tooltip="Suggested strengths, which make the sum only as strong as the strongest LoRA. For the connected adapters, in the form that Merge LoRA takes; without adapters, for the rows."),
                LoraStackType.Output("lora_stack", tooltip="The rows with the suggested strengths."),
                io.String.Output("figures", tooltip="All measurements, as JSON."),
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
            heat_map,
            found.report,
            found.strengths,
            found.rows,
            found.figures,
            ui=report_ui(cls, found.report, heat_map, measure=found.measure),
        )
