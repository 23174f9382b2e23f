"""LoRA Health: what is wrong with a LoRA, what each of its blocks does, and the LoRA repaired."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.prompts import lines
from ..lora_core.stack.rows import NONE
from .bridge.health.checkup import AND_BLOCKS, FAULTS, NOTHING, Instruments, Wanted, check_up
from .bridge.host import takedown
from .bridge.host.folders import lora_state
from .bridge.host.node_outputs import as_image_batch, report_ui, with_pictures
from .bridge.merging.sources import check_one
from .bridge.model.sampling import Sampling
from .types import CATEGORY, AdapterType, LoraDatasetType, file_input, sampling_inputs

PARTS, BLOCKS = "parts", "every block"


class LoraHealth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Health",
            display_name="LoRA Health",
            category=f"{CATEGORY}/measure",
            description="Examines one LoRA: broken, dead and far too loud layers, directions that stand out, its rank, and what each of its blocks does, in figures and pictures. Gives the repaired LoRA, with the change that was made.",
            search_aliases=["fix lora", "repair lora", "lora doctor", "broken lora", "lora block weight", "analyze lora", "burnt lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA."),
                file_input("lora_name", tooltip="A file from the loras folders. Choose None when an adapter is connected."),
                io.Combo.Input("repair", options=[FAULTS, AND_BLOCKS, NOTHING], default=FAULTS, tooltip="faults: broken and dead layers are left out, loud layers and directions that stand out are brought down to what is usual for their kind. faults and blocks: the proposed strengths of blocks are folded in as well."),
                io.Combo.Input("blocks", options=[PARTS, BLOCKS], default=PARTS, tooltip="What is left out one at a time, in figures and pictures: up to four parts of the model, or every block, which takes longer."),
                io.String.Input("trigger", default="", tooltip="The LoRA's trigger word. Empty: the one in its file, or the data set's."),
                io.String.Input("prompts", default="", multiline=True, tooltip="Prompts for the pictures, one per line; the trigger is added where it is missing. Empty: the trigger alone."),
                io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt for all pictures."),
                io.Int.Input("seeds", default=1, min=1, max=100, tooltip="Number of seeds per prompt."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The first seed."),
                *sampling_inputs(),
                AdapterType.Input("adapter", optional=True, tooltip="A LoRA from Train LoRA, Merge LoRA or Extract LoRA, instead of a file."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, to see what the LoRA does to prompts; needed when the LoRA changes it."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE, for pictures without each block."),
                LoraDatasetType.Input("dataset", optional=True, tooltip="Pictures of the LoRA's concept: strengths of blocks are then proposed by how much of it they keep. Without, by the change of prompts with the trigger."),
            ],
            outputs=[
                AdapterType.Output("adapter", tooltip="The repaired LoRA, for Save LoRA."),
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model."),
                io.Image.Output("page", tooltip="The strength of every layer, what a rank holds, and the pictures without each block."),
                io.String.Output("report", tooltip="The verdict, a sentence for each finding, and every repair."),
                io.String.Output("blocks", tooltip="Proposed strengths of blocks, as Load LoRA Stack takes them for a row. Empty when none is better."),
                io.String.Output("figures", tooltip="All measurements, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name=NONE, adapter=""):
        return check_one(lora_name, adapter)

    @classmethod
    def fingerprint_inputs(cls, lora_name=NONE, **_):
        return [*lora_state(lora_name), *takedown.state()]

    @classmethod
    def execute(
        cls, model, lora_name, repair, blocks, trigger, prompts, negative, seeds, seed, width, height, steps, cfg,
        sampler_name, scheduler, adapter=None, clip=None, vae=None, dataset=None,
    ) -> io.NodeOutput:  # fmt: skip
        wanted = Wanted(repair, blocks == BLOCKS, trigger.strip(), lines(prompts), negative, seeds)
        sampling = Sampling(width, height, steps, cfg, sampler=sampler_name, scheduler=scheduler, seed=seed)
        found = check_up(Instruments(model, clip, vae, dataset), adapter, lora_name, wanted, sampling)
        page = as_image_batch(found.page)
        shown = with_pictures(cls, found.measure, found.pictures)
        return io.NodeOutput(
            found.adapter,
            found.lora_model,
            page,
            found.report,
            found.blocks,
            found.figures,
            ui=report_ui(cls, found.report, page, measure=shown),
        )
