"""Merge LoRA: several adapters become one, exactly, with an optional smaller rank at a stated error."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging import AUTO, METHODS, SUM
from ..lora_core.merging.merge import NOTHING
from ..lora_core.merging.settings import MergeSettings
from ..lora_core.merging.truncation import Limits
from ..lora_core.ranks.group import here
from .bridge.host.node_outputs import as_image_batch, as_lora_model, report_ui
from .bridge.host.progress import Progress
from .bridge.merging.merge import CHOICES, merge
from .bridge.stack.entries import check_strengths, connected
from .types import CATEGORY, AdapterType, LoraStackType, adapters_input

_DROPPING = ", ".join(name for name, method in METHODS.items() if method.density)
_BY_CHANCE = ", ".join(name for name, method in METHODS.items() if method.by_chance)


class MergeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_MergeLora",
            display_name="Merge LoRA",
            category=f"{CATEGORY}/merge",
            description="Merges several LoRAs into one. The sum is exact for any mix of ranks, alphas and formats: the merged file gives the same result as the stack.",
            search_aliases=["combine lora", "lora merger", "merge svd", *METHODS],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRAs. It is needed to find the same layer in different file formats."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="0: the sum is exact, and its rank is the sum of all ranks. Otherwise each layer is reduced to this rank with the smallest possible error, which is shown."),
                io.String.Input("strengths", default="", tooltip="One strength for each connected adapter, separated by commas. Empty: 1 for all. Rows of lora_stack have their own strengths."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="LoRA files with strengths, from Load LoRA Stack or a stack node of another pack."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder; needed when a LoRA changes it."),
                adapters_input("Train LoRA or another Merge LoRA"),
                io.Combo.Input("method", options=CHOICES, default="sum", optional=True, tooltip="sum: the same result as the stack. auto: chooses a method by how much the LoRAs overlap, and says why. The other methods change how the LoRAs combine; see the help page."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, optional=True, advanced=True, tooltip="Share of each layer to keep (squared norm): 0.99 means an error of at most 10 % per layer. 1 keeps everything."),
                io.Float.Input("size_mb", default=0.0, min=0.0, max=100000.0, step=1.0, optional=True, advanced=True, tooltip="Largest size of the fp16 file in MB. Each layer gets the rank that makes the total error smallest. 0: no limit."),
                io.String.Input("text_strengths", default="", optional=True, advanced=True, tooltip="Strengths of the connected adapters on the text encoder, separated by commas. Empty: the same as strengths."),
                io.Float.Input("amount", default=1.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip="How much of the method to use: 0 is the exact sum, 1 the full method."),
                io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip=f"For {_DROPPING}: the share of entries to keep. 0 = auto: the usual value of the method."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True, advanced=True, tooltip=f"For {_BY_CHANCE}: the same seed gives the same merge."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The merged LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="The merged LoRAs, ranks, and the relative error of every layer and of the whole merge."),
                io.Image.Output("chart", tooltip="Chart of the singular values before and after, and of the error of each layer."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths="", text_strengths="", lora_stack="", adapters=None):
        """ComfyUI passes dynamic inputs always, and a link as None."""
        if adapters == {} and lora_stack == "":
            return NOTHING
        return check_strengths(adapters, strengths=strengths, text_strengths=text_strengths)

    @classmethod
    def execute(
        cls, model, rank, strengths, lora_stack=None, clip=None, adapters=None, method="sum", energy=1.0, size_mb=0.0,
        text_strengths="", amount=1.0, density=0.0, seed=0,
    ) -> io.NodeOutput:  # fmt: skip
        found = connected((adapters or {}).values(), strengths, text_strengths)
        settings = MergeSettings(SUM if method == AUTO else method, density, amount, seed)
        progress = Progress(1)
        limits = Limits(rank, energy, size_mb)
        made = merge(model, clip, lora_stack, found, settings, limits, progress.tick, method == AUTO, here())
        asked = {"rank": rank, "energy": energy, "size_mb": size_mb}
        if "parts" in (made.measure.live or {}):
            asked |= {"strengths": strengths, "text_strengths": text_strengths}
        shown = made.measure.asked_with(asked)
        return io.NodeOutput(
            made.adapter,
            as_lora_model(made.adapter),
            made.report,
            as_image_batch(made.chart),
            ui=report_ui(cls, made.report, measure=shown),
        )
