"""Training Previews: pictures of the LoRA while Train LoRA makes it."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.training.prompts import lines
from .bridge.previews import Previews
from .bridge.sampling import SAMPLERS, SCHEDULERS, Sampling
from .types import CATEGORY, PreviewsType

LARGEST = 16384


class TrainingPreviews(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Previews",
            display_name="Training Previews",
            category=f"{CATEGORY}/train",
            description="Pictures of the LoRA while it is trained, made by ComfyUI's own sampler from the model in training: with the trigger and without it, beside the base model. The trained LoRA is the same, byte for byte, with previews and without.",
            search_aliases=["sample images", "training samples", "preview"],
            inputs=[
                io.String.Input("prompts", default="", multiline=True, tooltip="One prompt per line. Each is drawn with the trigger of LoRA Dataset and without it; write it either way. Empty: the trigger alone."),
                io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt of all pictures."),
                io.Int.Input("every", default=250, min=0, max=1_000_000, tooltip="Steps between previews, from step 0, which is the base model. 0 shows the end alone."),
                io.Int.Input("width", default=0, min=0, max=LARGEST, step=8, tooltip="Width in pixels; 0 is the training resolution."),
                io.Int.Input("height", default=0, min=0, max=LARGEST, step=8, tooltip="Height in pixels; 0 is the training resolution."),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps of each picture, as in KSampler."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance, as in KSampler: 1 for FLUX and other models with guidance of their own."),
                io.Combo.Input("sampler_name", options=list(SAMPLERS), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=list(SCHEDULERS), default="normal", tooltip="As in KSampler."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The noise that every picture starts from, as in KSampler."),
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip="Strength of the LoRA in the pictures."),
            ],
            outputs=[PreviewsType.Output("previews", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, prompts, negative, every, width, height, steps, cfg, sampler_name, scheduler, seed, strength
    ) -> io.NodeOutput:
        sampling = Sampling(width, height, steps, cfg, sampler=sampler_name, scheduler=scheduler, seed=seed)
        return io.NodeOutput(Previews(sampling, lines(prompts), negative, every, strength))
