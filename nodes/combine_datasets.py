"""Combine LoRA Datasets: several sets as one, each with its own repeats, weight, trigger and captions."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.contact_sheet import contact_sheet
from ..lora_core.data.dataset import combined
from .bridge.host.node_outputs import as_image_batch, shown
from .types import CATEGORY, LoraDatasetType


class CombineDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sets = io.Autogrow.TemplatePrefix(
            LoraDatasetType.Input("dataset", tooltip="From LoRA Dataset."), prefix="dataset", min=1, max=32
        )
        return io.Schema(
            node_id="LoraLoom_CombineDatasets",
            display_name="Combine LoRA Datasets",
            category=f"{CATEGORY}/train",
            description="Makes one data set of several. Each keeps its repeats, weight, trigger and captions, as set in its LoRA Dataset; the shares in which they are drawn are shown.",
            search_aliases=["merge datasets", "several folders", "multi concept", "regularisation images"],
            inputs=[
                io.Autogrow.Input("datasets", template=sets, tooltip="Data sets, any number."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="Counts, buckets, and the share in which each set is drawn."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, datasets) -> io.NodeOutput:
        data = combined([each for each in datasets.values() if each is not None])
        report = data.report()
        return io.NodeOutput(data, report, ui=shown(cls, report, as_image_batch(contact_sheet(data))))
