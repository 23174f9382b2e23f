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
            ],
            outputs=[
                io.String.Output("passport", tooltip="The passport as text."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora=NONE):
        return "no LoRA file is chosen; choose one in lora" if lora == NONE else check_rows([lora])

    @classmethod
    def fingerprint_inputs(cls, lora=NONE):
        return lora_state(lora)

    @classmethod
    def execute(cls, lora) -> io.NodeOutput:
        found = passport(lora)
        text = found.text()
        return io.NodeOutput(text, ui=report_ui(cls, text, measure=found.measure()))
