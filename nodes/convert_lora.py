"""Convert LoRA: a LoHa, LoKr, DoRA, OFT, GLoRA or full-difference file becomes a plain LoRA, at a stated error."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging.truncation import Limits
from ..lora_core.stack.rows import LIMIT
from .bridge.host import takedown
from .bridge.host.folders import lora_names, lora_state
from .bridge.host.node_outputs import as_lora_model, report_ui
from .bridge.host.progress import Progress
from .bridge.merging.conversion import convert_file
from .bridge.merging.recast import CHOICES, PLAIN
from .bridge.stack.entries import check_rows
from .types import CATEGORY, AdapterType


class ConvertLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_ConvertLora",
            display_name="Convert LoRA",
            category=f"{CATEGORY}/merge",
            description="Converts a file of another kind (LoHa, LoKr, DoRA, OFT, BOFT, GLoRA, full differences) to a plain LoRA, as closely as the rank allows. Reports the error of every layer.",
            search_aliases=["lycoris to lora", "loha to lora", "lokr to lora", "dora to lora"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model the file was made for. It gives the layer names, and the weights that DoRA, OFT and GLoRA depend on."),
                io.Combo.Input("lora", options=lora_names(), tooltip="A file from the loras folders. Layers that are already plain LoRA are not changed."),
                io.Int.Input("rank", default=64, min=0, max=1024, tooltip="Highest rank of a converted layer. 0 = auto: exact for LoHa, LoKr and GLoRA, 128 for the other kinds."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, advanced=True, tooltip="Share of each converted layer to keep, as squared norm. A lower value gives smaller layers; 1 keeps all that the rank allows."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder; needed when the file changes it."),
                io.Combo.Input("kind", options=list(CHOICES), default=PLAIN, optional=True, tooltip="LoRA: any tool reads it. LoHa, LoKr: the nearest; rank bounds a LoHa's own rank, and a LoKr's size to that of a LoRA of that rank. as it is: nothing is converted."),
                io.Float.Input("strength", default=1.0, min=-LIMIT, max=LIMIT, step=0.05, optional=True, advanced=True, tooltip="The new file at strength 1 does what the old one did at this strength. LoRA, LoHa and LoKr are exact at any."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The plain LoRA, for Save LoRA or Merge LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="The kinds found, the rank, and the relative error of every layer."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora=None):
        return check_rows([lora])

    @classmethod
    def fingerprint_inputs(cls, lora=None, **_):
        return [*lora_state(lora), *takedown.state()]

    @classmethod
    def execute(cls, model, lora, rank, energy, clip=None, kind=PLAIN, strength=1.0) -> io.NodeOutput:
        progress = Progress(1)
        adapter, report, measure = convert_file(lora, model, clip, Limits(rank, energy), progress.tick, kind, strength)
        return io.NodeOutput(adapter, as_lora_model(adapter), report, ui=report_ui(cls, report, measure=measure))
