"""LoRA Report: what a LoRA changes that it was not meant to, and what it copies."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.prompts import lines
from .bridge.analysis.leakage_report import Questions, report
from .bridge.analysis.stamp import stamped
from .bridge.host.node_outputs import as_image_batch, report_ui, with_pictures
from .bridge.model.sampling import Sampling
from .bridge.stack.entries import Connected, all_entries, rows_of
from .types import CATEGORY, AdapterType, LoraDatasetType, LoraStackType, sampling_inputs


class LoraReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Report",
            display_name="LoRA Report",
            category=f"{CATEGORY}/measure",
            description="Tests a LoRA. Leakage: does it also change prompts without its trigger? Memorisation: does it copy its training pictures? (Connect dataset for this.)",
            search_aliases=["leakage", "overfitting", "memorisation", "memorization", "evaluate lora", "compare lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA."),
                io.Clip.Input("clip", tooltip="Its text encoder, without the LoRA."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input("trigger", default="", tooltip="The LoRA's trigger word. Empty: the one in its file, or the data set's."),
                io.String.Input("prompts", default="", multiline=True, tooltip="Prompts for the concept, one per line. Pictures of each are made with the trigger and without it. Empty: the trigger, and 'a picture of' it."),
                io.String.Input("class_words", default="", tooltip="Words that replace the trigger in prompts without it, separated by commas: dog for 'sks dog'. Empty: the trigger is only removed."),
                io.String.Input("neutral", default="", multiline=True, tooltip="Prompts that have nothing to do with the concept, one per line. Empty: a landscape, a bowl of fruit, and a street."),
                io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt for all pictures."),
                io.Int.Input("seeds", default=2, min=1, max=1000, tooltip="Number of seeds per prompt. More seeds make the result more reliable."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The first seed."),
                *sampling_inputs(),
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip="Strength of the connected adapter. Rows of lora_stack have their own strengths."),
                AdapterType.Input("adapter", optional=True, tooltip="From Train LoRA or Merge LoRA."),
                LoraStackType.Input("lora_stack", optional=True, tooltip="LoRA files with strengths, from Load LoRA Stack or a stack node of another pack."),
                LoraDatasetType.Input("dataset", optional=True, tooltip="The LoRA's training pictures, for the memorisation test and the suggested strength."),
                io.Boolean.Input("suggest_strength", default=True, optional=True, advanced=True, tooltip="Also measure at which strength the LoRA is best used, and whether a part of its blocks can be left out: a few hundred steps more. Connect dataset for this."),
            ],
            outputs=[
                io.String.Output("report", tooltip="The results in words and figures."),
                io.Image.Output("sheet", tooltip="All pictures, without and with the LoRA, and each sample next to its most similar training picture."),
                io.String.Output("figures", tooltip="All measurements, as JSON."),
                AdapterType.Output("adapter", tooltip="The connected adapter with the results in its contract, for Save LoRA. Only for an adapter that is tested alone."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, trigger, prompts, class_words, neutral, negative, seeds, seed, width, height, steps, cfg,
        sampler_name, scheduler, strength, adapter=None, lora_stack=None, dataset=None, suggest_strength=True,
    ) -> io.NodeOutput:  # fmt: skip
        words = tuple(word.strip() for word in class_words.split(",") if word.strip())
        questions = Questions(trigger.strip(), lines(prompts), words, lines(neutral), negative, seeds)
        sampling = Sampling(width, height, steps, cfg, sampler=sampler_name, scheduler=scheduler, seed=seed)
        given = [Connected(adapter, strength, strength)] if adapter is not None else []
        entries = all_entries(model, clip, rows_of(lora_stack), given)
        found = report(model, clip, vae, entries, questions, sampling, dataset, suggest_strength)
        tested = stamped(adapter, strength, found.figures, sampling.seed, seeds, alone=len(entries) == 1)
        sheet = as_image_batch(found.sheet)
        shown = with_pictures(cls, found.measure, found.pictures)
        return io.NodeOutput(
            found.text, sheet, found.figures, tested, ui=report_ui(cls, found.text, sheet, measure=shown)
        )
