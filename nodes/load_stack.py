"""Load LoRA Stack: several LoRAs at their own strengths, applied as one exact sum."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.folders import NONE, lora_names, lora_state
from .bridge.progress import Progress
from .bridge.stack import active, apply_rows, check_rows, rows_of
from .types import CATEGORY, LoraStackType

ROWS = range(1, 5)
LIMIT = 20.0


class LoadLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [field for number in ROWS for field in _row(number)]
        return io.Schema(
            node_id="LoraLoom_LoadLoraStack",
            display_name="Load LoRA Stack",
            category=CATEGORY,
            description="Applies several LoRAs at once: their exact sum, rounded once, as one patch per weight. Chain more rows through lora_stack.",
            search_aliases=["lora loader", "multi lora", "lora stacker", "power lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model to change. The input itself stays as it is."),
                *rows,
                io.Clip.Input("clip", optional=True, tooltip="Text encoder, for LoRAs that change it."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="More rows, from another Load LoRA Stack or a stacker of another pack. They come first."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the stack applied."),
                io.Clip.Output("clip", tooltip="The text encoder with the stack applied."),
                LoraStackType.Output("lora_stack", tooltip="All rows, for Merge LoRA or the next stack."),
                io.String.Output("report", tooltip="Layers applied per file, and every key that did not match."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_1=NONE, lora_2=NONE, lora_3=NONE, lora_4=NONE):
        return check_rows([lora_1, lora_2, lora_3, lora_4])

    @classmethod
    def fingerprint_inputs(cls, lora_1=NONE, lora_2=NONE, lora_3=NONE, lora_4=NONE, **_):
        return [lora_state(name) for name in (lora_1, lora_2, lora_3, lora_4)]

    @classmethod
    def execute(
        cls, model, lora_1, strength_1, text_strength_1, lora_2=NONE, strength_2=1.0, text_strength_2=1.0,
        lora_3=NONE, strength_3=1.0, text_strength_3=1.0, lora_4=NONE, strength_4=1.0, text_strength_4=1.0,
        clip=None, lora_stack=None,
    ) -> io.NodeOutput:  # fmt: skip
        own = [
            (lora_1, strength_1, text_strength_1), (lora_2, strength_2, text_strength_2),
            (lora_3, strength_3, text_strength_3), (lora_4, strength_4, text_strength_4),
        ]  # fmt: skip
        rows = rows_of(lora_stack) + active(own)
        patched, text, report = apply_rows(model, clip, rows)
        Progress(1).say(report)
        return io.NodeOutput(patched, text, rows, report)


def _row(number: int) -> list[io.Input]:
    more = number > 1
    return [
        io.Combo.Input(f"lora_{number}", options=[NONE, *lora_names()], default=NONE, optional=more, tooltip="A file from the loras folders; None leaves the row out."),
        io.Float.Input(f"strength_{number}", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, optional=more, tooltip="Strength on the model; 0 switches it off, negative subtracts."),
        io.Float.Input(f"text_strength_{number}", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, optional=more, tooltip="Strength on the text encoder, for LoRAs that change it."),
    ]  # fmt: skip
