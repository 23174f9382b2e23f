"""LoRA Leave-One-Out: pictures with all LoRAs of a stack, without each of them, and with none."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.prompts import lines
from .bridge.analysis.drawn_sets import Prompts
from .bridge.analysis.leave_one_out import leave_one_out
from .bridge.host.node_outputs import as_image_batch, report_ui, with_pictures
from .bridge.model.sampling import Sampling
from .bridge.stack.entries import active, all_entries, check_strengths, connected, rows_of
from .types import CATEGORY, LoraStackType, adapters_input, sampling_inputs


class LeaveOneOut(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_LeaveOneOut",
            display_name="LoRA Leave-One-Out",
            category=f"{CATEGORY}/measure",
            description="Shows what each LoRA of a stack really does: makes the same picture with all LoRAs, without each one, and with none, and measures the change.",
            search_aliases=["ablation", "compare lora", "lora conflict", "contact sheet"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRAs."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input("prompts", default="", multiline=True, tooltip="One prompt per line. Pictures of each are made with every set of LoRAs. Not used when positive is connected."),
                io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt for all pictures. Not used when negative_conditioning is connected."),
                io.Int.Input("seeds", default=1, min=1, max=100, tooltip="Number of seeds per prompt. More seeds make the result more reliable."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The first seed."),
                *sampling_inputs(),
                io.String.Input("strengths", default="", tooltip="One strength for each connected adapter, separated by commas. Empty: 1 for all. Rows of lora_stack have their own strengths."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder without the LoRAs. Not needed when positive and negative_conditioning are connected."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="LoRA files with strengths, from Load LoRA Stack or a stack node of another pack."),
                io.Conditioning.Input("positive", optional=True, tooltip="Used instead of prompts. The effect of the LoRAs on the text encoder is then not measured."),
                io.Conditioning.Input("negative_conditioning", optional=True, tooltip="Used instead of negative."),
                adapters_input(),
            ],
            outputs=[
                io.Image.Output("sheet", tooltip="All pictures: a row for each prompt and seed, with all LoRAs, without each one, and with none."),
                io.String.Output("report", tooltip="The average change when each LoRA is left out."),
                io.String.Output("figures", tooltip="All measurements, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths="", adapters=None):  # ComfyUI always passes dynamic inputs
        return check_strengths(adapters, strengths=strengths)

    @classmethod
    def execute(
        cls, model, vae, prompts, negative, seeds, seed, width, height, steps, cfg, sampler_name, scheduler, strengths,
        clip=None, lora_stack=None, positive=None, negative_conditioning=None, adapters=None,
    ) -> io.NodeOutput:  # fmt: skip
        given = connected((adapters or {}).values(), strengths, "")
        entries = all_entries(model, clip, active(rows_of(lora_stack)), given)
        asked = Prompts(lines(prompts) if positive is None else (), negative, seeds, positive, negative_conditioning)
        sampling = Sampling(width, height, steps, cfg, sampler=sampler_name, scheduler=scheduler, seed=seed)
        found = leave_one_out(model, clip, vae, entries, asked, sampling)
        sheet = as_image_batch(found.sheet)
        shown = with_pictures(cls, found.measure, found.pictures)
        return io.NodeOutput(sheet, found.report, found.figures, ui=report_ui(cls, found.report, sheet, measure=shown))
