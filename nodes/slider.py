"""LoRA Slider: a LoRA that moves pictures between less and more of something, learned from prompts or from pairs."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data.contact_sheet import contact_sheet
from ..lora_core.data.pairs import report as pairs_report
from ..lora_core.data.pairs import side_by_side
from ..lora_core.data.prompts import lines
from ..lora_core.data.slider import pairs_of, slider_of
from ..lora_core.data.slider_pairs import slider_pairs
from .bridge.host.node_outputs import as_image_batch, report_ui
from .bridge.model.sampling import SAMPLERS, SCHEDULERS, Sampling
from .bridge.training.base_pictures import Base, slider_set
from .types import CATEGORY, LoraDatasetType

STEP = 32


class LoraSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Slider",
            display_name="LoRA Slider",
            category=f"{CATEGORY}/train",
            description="For a LoRA that is a slider: at strength 1 pictures show more of something, at -1 less. It learns from prompts alone, on pictures that the base model draws itself, or from pairs of pictures.",
            search_aliases=["concept slider", "slider lora", "more or less", "negative strength"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, as for Train LoRA. It draws the pictures that the slider learns on."),
                io.Clip.Input("clip", tooltip="Text encoder of the model."),
                io.Vae.Input("vae", tooltip="VAE of the model."),
                io.String.Input("more", default="", multiline=True, tooltip="What pictures show at strength 1, such as: very old. One per line; each is put into every subject."),
                io.String.Input("less", default="", multiline=True, tooltip="What pictures show at strength -1, such as: very young. A line for each line of more, or a single one for all."),
                io.String.Input("subject", default="", multiline=True, tooltip="What the slider is for, one prompt per line, such as: photo of a {} woman. More and less are put where {} stands, or else at the end. Several lines, such as one for women and one for men, keep what they differ in as it is. Empty: more and less alone."),
                io.Float.Input("guidance", default=0.5, min=0.01, max=100.0, step=0.05, round=0.01, tooltip="How far strength 1 goes: so many times the distance from less to more. 0.5: from the middle to more. Where the strip of pictures hardly moves beyond -1 and 1, lower it; where it moves little, raise it."),
                io.Int.Input("resolution", default=512, min=STEP, max=8192, step=STEP, tooltip="Training resolution (side of a square picture). 512 for SD 1.5, 1024 for SDXL and newer; lower is faster."),
                io.Int.Input("pictures", default=8, min=1, max=1024, tooltip="Pictures that the base model draws to learn on, of the subjects in turn. They are drawn once and kept."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="Seed of the first picture."),
                io.Int.Input("steps", default=20, min=1, max=10_000, optional=True, advanced=True, tooltip="Sampling steps of these pictures, as in KSampler."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True, advanced=True, tooltip="CFG of these pictures, as in KSampler. 0 = auto: a value that suits the model family."),
                io.Combo.Input("sampler_name", options=list(SAMPLERS), default="euler", optional=True, advanced=True, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=list(SCHEDULERS), default="normal", optional=True, advanced=True, tooltip="As in KSampler."),
                LoraDatasetType.Input("more_pictures", optional=True, tooltip="From LoRA Dataset, in the place of prompts: pictures with more of it. Each needs a partner of the same name and size in less_pictures that differs in nothing else. Its caption is used for both and names what they share."),
                LoraDatasetType.Input("less_pictures", optional=True, tooltip="From LoRA Dataset: the same pictures with less of it. Their own captions are not used."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="The prompts that are compared and the pictures that were drawn, or the pairs."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, more=None, less=None, resolution=None):
        try:
            if None not in (more, less) and lines(more + less):  # none where pictures stand in their place
                pairs_of(lines(more), lines(less))
        except ValueError as error:
            return str(error)
        if resolution is not None and resolution % STEP:
            return (
                f"resolution is {resolution}; choose a multiple of {STEP}, such as {max(resolution // STEP, 1) * STEP}"
            )
        return True

    @classmethod
    def execute(
        cls, model, clip, vae, more, less, subject, guidance, resolution, pictures, seed, steps=20, cfg=0.0,
        sampler_name="euler", scheduler="normal", more_pictures=None, less_pictures=None,
    ) -> io.NodeOutput:  # fmt: skip
        if more_pictures or less_pictures:
            written = [name for name, text in (("more", more), ("less", less), ("subject", subject)) if lines(text)]
            data = slider_pairs(more_pictures, less_pictures, written, guidance)
            return cls._made(data, f"{data.task.report()}\n{pairs_report(data)}", side_by_side(data))
        choice = slider_of(lines(subject), lines(more), lines(less), guidance)
        sampling = Sampling(resolution, resolution, steps, cfg, sampler=sampler_name, scheduler=scheduler, seed=seed)
        data = slider_set(Base(model, clip, vae), choice, pictures, sampling)
        return cls._made(data, f"{choice.report()}\n{data.report()}", data)

    @classmethod
    def _made(cls, data, report, shown) -> io.NodeOutput:
        return io.NodeOutput(data, report, ui=report_ui(cls, report, as_image_batch(contact_sheet(shown))))
