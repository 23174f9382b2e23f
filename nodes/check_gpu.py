"""Check This GPU: whether training, stacking and merging are right and fast on the device of this ComfyUI."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.check.run import on_node
from .bridge.host.node_outputs import report_ui
from .types import CATEGORY


class CheckGpu(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_CheckGpu",
            display_name="Check This GPU (Loom)",
            category=f"{CATEGORY}/measure",
            description="Tests training, stacking and merging on your GPU with small networks: are the results the same as on the CPU, is the memory prediction right, how long does a step take? Takes about three minutes and saves two files in the output folder, to attach to a bug report.",
            search_aliases=["gpu check", "self test", "diagnose", "benchmark"],
            is_output_node=True,
            inputs=[
                io.Boolean.Input("quick", default=False, tooltip="Takes half a minute instead of three: leaves out the networks of real size, so memory is not checked."),
            ],
            outputs=[
                io.String.Output("report", tooltip="The results as Markdown, verdicts first."),
                io.String.Output("figures", tooltip="All measurements, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, quick=False):
        return float("nan")  # a device is asked anew each time: it is equal to no earlier answer

    @classmethod
    def execute(cls, quick) -> io.NodeOutput:
        found, told = on_node(quick)
        return io.NodeOutput(found.page(), found.as_json(), ui=report_ui(cls, told))
