"""Average Saved Steps: one LoRA of the steps that a run has saved, after the fact."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.stack.rows import NONE
from .bridge.host.node_outputs import as_lora_model, report_ui
from .bridge.host.progress import Progress
from .bridge.merging.average import average, run_names, saved_steps, state_of
from .types import CATEGORY, AdapterType


class AverageSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_AverageSteps",
            display_name="Average Saved Steps",
            category=f"{CATEGORY}/merge",
            description="Makes one LoRA of the steps that a training run has saved: their exact mean, or a moving average, at the rank of the run. Often steadier than the last step alone.",
            search_aliases=["ema lora", "post hoc ema", "average checkpoints", "checkpoint soup", "swa"],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input("run", options=[NONE, *run_names()], default=NONE, tooltip="A run of Train LoRA, from output/lora_loom. The newest are first."),
                io.Int.Input("from_step", default=0, min=0, max=1_000_000, tooltip="The first saved step to take. 0: those of the last half of the run."),
                io.Float.Input("decay", default=0.0, min=0.0, max=0.999, step=0.01, tooltip="0: the plain mean. Otherwise a moving average over the saved steps: each step replaces 1 - decay of the average before it, so later steps weigh more."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The averaged LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.String.Output("report", tooltip="The steps and their weights, how far the average is from the last step, and what the cut to the run's rank costs."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, run=NONE, from_step=0):
        if run is None or from_step is None:  # linked, and not known yet
            return True
        if run == NONE:
            return "no run is chosen; choose one in run"
        try:
            saved_steps(run, from_step)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run=NONE, from_step=0, **_):
        return state_of(run, from_step)

    @classmethod
    def execute(cls, run, from_step, decay) -> io.NodeOutput:
        adapter, report, measure = average(run, from_step, decay, Progress(1).tick)
        return io.NodeOutput(adapter, as_lora_model(adapter), report, ui=report_ui(cls, report, measure=measure))
