"""LoRA Dataset: a folder of captioned pictures, or an IMAGE batch with captions."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.training import reading
from ..lora_core.training.buckets import RESOLUTIONS, STEPS, check_resolution, numbers
from ..lora_core.training.contact_sheet import contact_sheet
from ..lora_core.training.dataset import Options
from ..lora_core.training.pictures import MASKS
from .bridge.folders import dataset_folder, folder_state
from .bridge.images import as_image_batch
from .bridge.shown import shown
from .types import CATEGORY, LoraDatasetType


class LoraDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Dataset",
            display_name="LoRA Dataset",
            category=f"{CATEGORY}/train",
            description="Pictures with captions for Train LoRA. Resizes and crops each picture to the aspect-ratio bucket nearest to it.",
            search_aliases=["training images", "captions", "buckets"],
            is_output_node=True,
            inputs=[
                io.String.Input("folder", default="", tooltip="Folder of pictures with a .txt caption of the same name each. Absolute, or inside ComfyUI's input or datasets folder. Leave empty when images are connected."),
                io.String.Input("trigger", default="", tooltip="Word that calls the concept. It is put in front of every caption that does not hold it, and stands in for missing captions."),
                io.Int.Input("resolution", default=512, min=RESOLUTIONS[0], max=RESOLUTIONS[1], step=8, tooltip="Training resolution: the side of the square bucket. SD 1.5 512, SDXL and newer 1024; less is faster."),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often each picture is seen in one pass over the set."),
                io.Image.Input("images", optional=True, tooltip="Pictures from the graph, used instead of the folder."),
                io.String.Input("captions", default="", multiline=True, optional=True, tooltip="For connected images: one caption per line in their order, or a single line for all."),
                io.Int.Input("bucket_step", default=32, min=STEPS[0], max=STEPS[1], step=8, optional=True, advanced=True, tooltip="Bucket sides are multiples of this. The VAE needs at least a multiple of 8, some models of 16 or 32."),
                io.Boolean.Input("flip", default=False, optional=True, advanced=True, tooltip="Also learn from the mirror image of each picture, drawn by chance in every step. Leave off for faces, text and anything with a left and a right."),
                io.Int.Input("crops", default=0, min=0, max=8, optional=True, advanced=True, tooltip="Further crops of each picture, a little closer and aside; every step draws one. 2 to 4 help small sets."),
                io.Boolean.Input("shuffle_tags", default=False, optional=True, advanced=True, tooltip="For captions that are tags separated by commas: learn from several orders of them, drawn by chance in every step."),
                io.Int.Input("keep_tokens", default=1, min=0, max=100, optional=True, advanced=True, tooltip="Tags at the beginning that stay there when tags are shuffled, such as the trigger."),
                io.Int.Input("caption_variants", default=4, min=1, max=64, optional=True, advanced=True, tooltip="Orders of tags per caption, the written one included. Each is encoded once, before training."),
                io.String.Input("resolutions", default="", optional=True, advanced=True, tooltip="Several training resolutions, separated by commas, such as 512, 768: every picture is learned at each. Used instead of resolution."),
                io.Float.Input("weight", default=1.0, min=0.01, max=100.0, step=0.05, optional=True, advanced=True, tooltip="How strongly this set is drawn when sets are combined: each picture is seen repeats x weight times in a pass."),
                io.Boolean.Input("class_images", default=False, optional=True, advanced=True, tooltip="These pictures show the class, not the concept: for prior preservation. Write the class word, such as dog, in trigger."),
                io.Combo.Input("masks", options=list(MASKS), default="off", optional=True, advanced=True, tooltip="Where to learn: opaque parts (alpha), or what is white in x-mask.png beside x.jpg (-mask files). auto takes the file, else alpha."),
                io.Boolean.Input("caption_weights", default=False, optional=True, advanced=True, tooltip="Read parentheses in captions as weights, (word:1.2), as prompts are. Off: they are text, as in sd-scripts; \\( means the same."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="Captions, counts, buckets, and every file that was left out with the reason."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, folder="", trigger="", resolution=512, bucket_step=32, images="unconnected", resolutions="", masks="off"
    ):
        try:
            if masks is not None and masks not in MASKS:
                return f"masks is {masks}; choose one of {', '.join(MASKS)}"
            if None not in (resolution, bucket_step, resolutions):
                for each in numbers("resolutions", resolutions) or (resolution,):
                    check_resolution(each, bucket_step)
            if images == "unconnected" and None not in (folder, masks):
                reading.check_folder(dataset_folder(folder), trigger or "", masks)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder="", **_):
        return folder_state(folder)

    @classmethod
    def execute(
        cls, folder, trigger, resolution, repeats, images=None, captions="", bucket_step=32, flip=False, crops=0,
        shuffle_tags=False, keep_tokens=1, caption_variants=4, resolutions="", weight=1.0, class_images=False, masks="off",
        caption_weights=False,
    ) -> io.NodeOutput:  # fmt: skip
        options = Options(
            flip=flip, crops=crops, shuffle_tags=shuffle_tags, keep_tokens=keep_tokens, caption_variants=caption_variants,
            resolutions=numbers("resolutions", resolutions), weight=weight, class_images=class_images, masks=masks,
            caption_weights=caption_weights,
        )  # fmt: skip
        if images is None:
            data = reading.from_folder(dataset_folder(folder), trigger, resolution, bucket_step, repeats, options)
        else:
            lines = [line for line in captions.splitlines() if line.strip()] or [""]
            data = reading.from_tensors(images, lines, trigger, resolution, bucket_step, repeats, options)
        report = data.report()
        return io.NodeOutput(data, report, ui=shown(cls, report, as_image_batch(contact_sheet(data))))
