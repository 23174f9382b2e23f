"""Load LoRA Stack: several LoRAs at their own strengths, applied as one exact sum."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.stack.rows import LIMIT, NONE, Row, checked, parse
from .bridge.host import picture_metadata, takedown
from .bridge.host.folders import lora_state
from .bridge.host.node_outputs import report_ui
from .bridge.stack.apply_chain import APPLY
from .bridge.stack.apply_stack import apply_stack, ignored_by
from .bridge.stack.entries import check_rows, rows_state
from .types import CATEGORY, LoraStackType, file_input, masks_input

FIELDS = range(1, 5)  # the fixed rows of the first version; `rows` holds any number


class LoadLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        fixed = [field for number in FIELDS for field in _fields(number)]
        return io.Schema(
            node_id="LoraLoom_LoadLoraStack",
            display_name="Load LoRA Stack",
            category=f"{CATEGORY}/use",
            description="Applies any number of LoRAs at once, as their exact sum. Use lora_stack to add the rows of another stack node.",
            search_aliases=["lora loader", "multi lora", "lora stacker", "power lora", "lora list", "lora block weight"],
            inputs=[
                io.Model.Input("model", tooltip="The model to apply the LoRAs to. The connected model itself is not changed."),
                *fixed,
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for LoRAs that change it."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="More rows, from another Load LoRA Stack or a stack node of another pack. They are applied first."),
                io.String.Input("rows", optional=True, default="", multiline=True, tooltip="One LoRA per line, as in prompts: <lora:styles/ink:0.8:1.0> is the file, its strength on the model, and its strength on the text encoder. :off switches a row off; a line that starts with # is a comment."),
                io.Combo.Input("apply", options=list(APPLY), default="auto", optional=True, advanced=True, tooltip="How LoRAs are applied. weights: written into the weights. beside: computed next to each layer, exact also for fp8, GGUF and quantised weights, which would round small changes away. auto: the best way for each weight."),
                masks_input(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the stack applied."),
                io.Clip.Output("clip", tooltip="The text encoder with the stack applied."),
                LoraStackType.Output("lora_stack", tooltip="All rows, for Merge LoRA or the next stack node."),
                io.String.Output("report", tooltip="The number of layers applied for each file, and every key that did not match."),
                io.String.Output("triggers", tooltip="The trigger words of all active rows, separated by commas."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_1=NONE, lora_2=NONE, lora_3=NONE, lora_4=NONE, rows="", masks=None):
        """ComfyUI passes dynamic inputs always, and a link as None."""
        return check_rows([lora_1, lora_2, lora_3, lora_4], rows, masks)

    @classmethod
    def fingerprint_inputs(cls, lora_1=NONE, lora_2=NONE, lora_3=NONE, lora_4=NONE, rows="", **_):
        named = [lora_state(name) for name in (lora_1, lora_2, lora_3, lora_4)]
        return [picture_metadata.recall(), *named, *rows_state(rows), *ignored_by(rows), *takedown.state()]

    @classmethod
    def execute(
        cls, model, lora_1=NONE, strength_1=1.0, text_strength_1=1.0, lora_2=NONE, strength_2=1.0, text_strength_2=1.0,
        lora_3=NONE, strength_3=1.0, text_strength_3=1.0, lora_4=NONE, strength_4=1.0, text_strength_4=1.0,
        clip=None, lora_stack=None, rows="", apply="auto", masks=None,
    ) -> io.NodeOutput:  # fmt: skip
        fixed = [
            Row(lora_1, strength_1, text_strength_1), Row(lora_2, strength_2, text_strength_2),
            Row(lora_3, strength_3, text_strength_3), Row(lora_4, strength_4, text_strength_4),
        ]  # fmt: skip
        done = apply_stack(model, clip, lora_stack, [*map(checked, fixed), *parse(rows)], apply, masks)
        return io.NodeOutput(
            done.model, done.clip, done.rows, done.report, done.triggers, ui=report_ui(cls, done.report)
        )


def _fields(number: int) -> list[io.Input]:
    return [
        file_input(f"lora_{number}", optional=True, advanced=True, tooltip="A file from the loras folders. None: the row is not used."),
        io.Float.Input(f"strength_{number}", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, optional=True, advanced=True, tooltip="Strength on the model. 0 is off; a negative strength subtracts the LoRA."),
        io.Float.Input(f"text_strength_{number}", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, optional=True, advanced=True, tooltip="Strength on the text encoder, for LoRAs that change it."),
    ]  # fmt: skip
