"""Merge LoRA: several adapters become one, exactly, with an optional smaller rank at a stated error."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.merging import AUTO, METHODS, SUM
from ..lora_core.merging.merge import NOTHING, Settings
from ..lora_core.merging.truncation import Limits
from .bridge.images import as_image_batch
from .bridge.merging import CHOICES, check_strengths, connected, merge
from .bridge.progress import Progress
from .bridge.shown import shown
from .bridge.training import as_lora_model
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
            description="Makes one LoRA of several. The sum is exact for any mix of ranks, alphas and formats: the result applied alone equals the live stack.",
            search_aliases=["combine lora", "lora merger", "merge svd", *METHODS],
            inputs=[
                io.Model.Input("model", tooltip="The base model of the LoRAs: it tells which keys of their files mean the same layer."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="0 keeps the sum exact; its rank is the sum of all ranks. Otherwise each layer is cut to this rank, optimally, and the error is shown."),
                io.String.Input("strengths", default="", tooltip="One strength per connected adapter, separated by commas; empty means 1 for all. Rows of the stack carry their own."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="Files with strengths, from Load LoRA Stack or a stacker of another pack."),
                io.Clip.Input("clip", optional=True, tooltip="Needed when a LoRA changes the text encoder."),
                adapters_input("Train LoRA or another Merge LoRA"),
                io.Combo.Input("method", options=CHOICES, default="sum", optional=True, tooltip="sum: exactly what the live stack does. auto: proposes one from how the LoRAs overlap, and says why. The others change what LoRAs do to each other; the help page says how, and the chart shows it."),
                io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.001, optional=True, advanced=True, tooltip="Share of each layer's squared norm to keep; 0.99 leaves an error of at most 10 % per layer. 1 keeps all."),
                io.Float.Input("size_mb", default=0.0, min=0.0, max=100000.0, step=1.0, optional=True, advanced=True, tooltip="Largest size of the fp16 file in MB, shared out over all layers so that the error of the whole is smallest. 0 sets no size."),
                io.String.Input("text_strengths", default="", optional=True, advanced=True, tooltip="Strengths of the connected adapters on the text encoder, separated by commas; empty means the same as strengths."),
                io.Float.Input("amount", default=1.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip="From the exact sum (0) to the method in full (1)."),
                io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip=f"For {_DROPPING}: the share of entries to keep. 0 = auto: the usual value of the method."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True, advanced=True, tooltip=f"For {_BY_CHANCE}: the same seed gives the same merge."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The merged LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="Parents, ranks, and the relative error of every layer and of the whole."),
                io.Image.Output("chart", tooltip="The singular values before and after, and the error of each layer."),
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
        settings = Settings(SUM if method == AUTO else method, density, amount, seed)
        progress = Progress(1)
        limits = Limits(rank, energy, size_mb)
        merged, report, chart = merge(model, clip, lora_stack, found, settings, limits, progress.tick, method == AUTO)
        return io.NodeOutput(merged, as_lora_model(merged), report, as_image_batch(chart), ui=shown(cls, report))
