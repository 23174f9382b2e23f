"""LoRA Passport: who signed a LoRA file, what its contract says, what it was made of, and what has changed since."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.stack.rows import NONE
from .bridge.host.folders import lora_state
from .bridge.host.node_outputs import report_ui
from .bridge.stack.entries import check_rows
from .bridge.trust.passport import passport
from .types import CATEGORY, file_input


class LoraPassport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Passport",
            display_name="LoRA Passport",
            category=f"{CATEGORY}/measure",
            description="Shows what a LoRA file says of itself and whether that can be believed: its signature, what has changed since, its contract, and the files it was made of.",
            search_aliases=["signature", "verify lora", "provenance", "lineage", "licence", "who made this"],
            is_output_node=True,
            inputs=[
                file_input("lora", tooltip="A file from the loras folders."),
                io.String.Input("lora_name", optional=True, force_input=True, tooltip="From Save LoRA: the file that was just saved, in place of the one chosen in lora."),
            ],
            outputs=[
                io.String.Output("passport", tooltip="The passport as text."),
                io.String.Output("tensors", tooltip="Every tensor of the file, in columns between tabs: name, shape, type, bytes, norm, and the layer and part that it is, or that it is left out."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora=NONE, lora_name="", input_types=None):
        if "lora_name" in (input_types or {}):
            return True
        file = lora_name or lora
        return "no LoRA file is chosen; choose one in lora" if file == NONE else check_rows([file])

    @classmethod
    def fingerprint_inputs(cls, lora=NONE, lora_name=""):
        file = lora_name or lora
        return float("nan") if file == NONE else lora_state(file)

    @classmethod
    def execute(cls, lora, lora_name="") -> io.NodeOutput:
        found, held = passport(lora_name or lora)
        text = found.text()
        return io.NodeOutput(text, held.text(), ui=report_ui(cls, text, measure=found.measure(held)))
