"""Dataset Doctor: what is wrong with a data set, and what to do about it."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..lora_core.data import doctor
from ..lora_core.data.contact_sheet import marked_sheet
from .bridge.host.node_outputs import as_image_batch, shown
from .bridge.host.progress import Progress
from .types import CATEGORY, LoraDatasetType


class DatasetDoctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_DatasetDoctor",
            display_name="Dataset Doctor",
            category=f"{CATEGORY}/train",
            description="Looks for copies, small, blurred or badly lit pictures, captions and triggers that will not work, and imbalance; says in one sentence each what to do.",
            search_aliases=["duplicates", "check dataset", "blurry", "caption lint"],
            is_output_node=True,
            inputs=[
                LoraDatasetType.Input("dataset", tooltip="From LoRA Dataset or Combine LoRA Datasets."),
            ],
            outputs=[
                io.String.Output("report", tooltip="One sentence per finding, the most important first."),
                io.Image.Output("sheet", tooltip="Thumbnails; pictures with a finding come first, framed and marked."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset) -> io.NodeOutput:
        progress = Progress(1)
        findings = doctor.examine(dataset, partial(progress.tick, 0))
        sheet = as_image_batch(marked_sheet(dataset, doctor.marks(findings)))
        text = doctor.report(dataset, findings)
        return io.NodeOutput(text, sheet, ui=shown(cls, text, sheet))
