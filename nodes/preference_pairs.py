"""LoRA Preference Pairs: liked and disliked pictures as one data set, from which a LoRA learns what people prefer."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.contact_sheet import contact_sheet
from ..lora_core.data.pairs import paired, report, side_by_side
from ..lora_core.data.task import BETAS, LearnPreference
from .bridge.host.node_outputs import as_image_batch, report_ui
from .types import CATEGORY, LoraDatasetType


class PreferencePairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_PreferencePairs",
            display_name="LoRA Preference Pairs",
            category=f"{CATEGORY}/train",
            description="Pairs of a liked and a disliked picture for Train LoRA, which then learns what you prefer (Diffusion-DPO). Pictures with the same name are a pair; if no name is in both sets, pictures with the same caption and size are.",
            search_aliases=["DPO", "Diffusion-DPO", "preference optimization", "liked and disliked", "chosen rejected", "human feedback"],
            inputs=[
                LoraDatasetType.Input("liked", tooltip="From LoRA Dataset: the pictures that you like, with captions."),
                LoraDatasetType.Input("disliked", tooltip="From LoRA Dataset: the pictures that you do not like, at the same resolution. If names match, their own captions are not used; a trigger word is enough there."),
                io.Float.Input("beta", default=2000.0, min=BETAS[0], max=BETAS[1], step=100.0, tooltip="How closely the LoRA stays to the base model: lower learns the preference more strongly. 1000 to 5000 is usual."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="How many pairs there are, how they were found, and every picture that was not used, with the reason."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, liked, disliked, beta) -> io.NodeOutput:
        data = paired(liked, disliked, LearnPreference(beta))
        told = report(data)
        return io.NodeOutput(data, told, ui=report_ui(cls, told, as_image_batch(contact_sheet(side_by_side(data)))))
