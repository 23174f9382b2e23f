"""Dataset Doctor: what is wrong with a data set, and what to do about it."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..lora_core.data import doctor
from ..lora_core.data.contact_sheet import marked_sheet
from ..lora_core.data.doctor_table import findings_measure
from .bridge.host.node_outputs import as_image_batch, report_ui
from .bridge.host.progress import Progress
from .types import CATEGORY, LoraDatasetType


class DatasetDoctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_DatasetDoctor",
            display_name="Dataset Doctor",
            category=f"{CATEGORY}/train",
            description="Finds problems in a data set: duplicates, small, blurred or badly lit pictures, captions and triggers that do not work, sets out of balance. Says what to do about each.",
            search_aliases=["duplicates", "check dataset", "blurry", "caption lint"],
            is_output_node=True,
            inputs=[
                LoraDatasetType.Input("dataset", tooltip="From LoRA Dataset or Combine LoRA Datasets."),
            ],
            outputs=[
                io.String.Output("report", tooltip="One sentence per finding, the most important first."),
                io.Image.Output("sheet", tooltip="Thumbnails. Pictures with a problem come first and are marked."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset) -> io.NodeOutput:
        progress = Progress(1)
        findings = doctor.examine(dataset, partial(progress.tick, 0))
        sheet = as_image_batch(marked_sheet(dataset, doctor.marks(findings)))
        text = doctor.report(dataset, findings)
        shown = report_ui(cls, text, sheet, measure=findings_measure(dataset, findings))
        return io.NodeOutput(text, sheet, ui=shown)
