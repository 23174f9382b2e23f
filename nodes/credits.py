"""LoRA Credits: who made the LoRAs of a picture, as text for its caption."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.stack.credit import FORMS, credits
from .bridge.host import picture_metadata
from .bridge.host.node_outputs import report_ui
from .types import CATEGORY


class LoraCredits(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Credits",
            display_name="LoRA Credits",
            category=f"{CATEGORY}/use",
            description="Names the LoRAs on a model with author, strength and licence, as text for the caption of a picture.",
            search_aliases=["attribution", "caption", "licence", "license", "author"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that makes the picture, with the LoRAs of Load LoRA Stack."),
                io.Combo.Input("form", options=list(FORMS), default="line", optional=True, tooltip="line: one line. list: a line for each LoRA. markdown: the same, with names in bold."),
            ],
            outputs=[io.String.Output("credits", tooltip="The credits; empty when there is no LoRA of Load LoRA Stack on the model.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, form="line") -> io.NodeOutput:
        text = credits(picture_metadata.attached(model), form)
        return io.NodeOutput(text, ui=report_ui(cls, text or "no LoRA of Load LoRA Stack is on this model"))
