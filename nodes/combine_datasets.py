"""Combine LoRA Datasets: several sets as one, each with its own repeats, weight, trigger and captions."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.concepts import kept_apart
from ..lora_core.data.contact_sheet import contact_sheet
from ..lora_core.data.dataset import combined
from .bridge.host.node_outputs import as_image_batch, report_ui
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
            description="Combines several data sets into one. Each keeps the repeats, weight, trigger and captions of its LoRA Dataset. The report shows how often each set is used.",
            search_aliases=["merge datasets", "several folders", "multi concept", "regularisation images"],
            inputs=[
                io.Autogrow.Input("datasets", template=sets, tooltip="Any number of data sets."),
                io.Boolean.Input("keep_apart", default=False, optional=True, tooltip="For several concepts in one LoRA, each set with a trigger word of its own. In every fourth step, pictures under captions without their trigger keep the result of the base model: each concept is drawn with its own trigger and hardly without it. Such a step takes about twice as long."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="Counts, buckets, and how often each set is used."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, datasets, keep_apart=False) -> io.NodeOutput:
        data = combined([each for each in datasets.values() if each is not None])
        data = kept_apart(data) if keep_apart else data
        report = data.report()
        return io.NodeOutput(data, report, ui=report_ui(cls, report, as_image_batch(contact_sheet(data))))
