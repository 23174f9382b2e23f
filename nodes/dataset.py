"""LoRA Dataset: a folder of captioned pictures, or an IMAGE batch with captions."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.data import reading
from ..lora_core.data.buckets import RESOLUTIONS, STEPS, check_resolution, numbers
from ..lora_core.data.contact_sheet import contact_sheet
from ..lora_core.data.dataset import Options
from ..lora_core.data.pictures import MASKS
from .bridge.host.folders import dataset_folder, folder_state
from .bridge.host.node_outputs import as_image_batch, report_ui
from .types import CATEGORY, LoraDatasetType

FOR_IMAGES = (
    "references are connected but images are not; connect images, or put the references of a folder into its folder "
    "control, under the names of the pictures"
)


class LoraDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Dataset",
            display_name="LoRA Dataset",
            category=f"{CATEGORY}/train",
            description="Pictures with captions for Train LoRA. Resizes and crops each picture to the nearest aspect-ratio bucket.",
            search_aliases=["training images", "captions", "buckets"],
            is_output_node=True,
            inputs=[
                io.String.Input("folder", default="", tooltip="Folder with pictures; the caption of 01.png is in 01.txt. An absolute path, or a folder inside ComfyUI's input or datasets folder. Leave it empty when images are connected."),
                io.String.Input("trigger", default="", tooltip="Word that triggers the concept in prompts. It is added in front of captions that do not contain it, and replaces missing captions."),
                io.Int.Input("resolution", default=512, min=RESOLUTIONS[0], max=RESOLUTIONS[1], step=8, tooltip="Training resolution (side of a square picture). 512 for SD 1.5, 1024 for SDXL and newer; lower is faster."),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often each picture is used in one epoch."),
                io.Image.Input("images", optional=True, tooltip="Pictures from other nodes, used instead of the folder."),
                io.String.Input("captions", default="", multiline=True, optional=True, tooltip="For connected images: one caption per line, in the same order, or a single line for all."),
                io.Int.Input("bucket_step", default=32, min=STEPS[0], max=STEPS[1], step=8, optional=True, advanced=True, tooltip="Width and height of buckets are multiples of this. Use a multiple of 8; some models need 16 or 32. Below a resolution of 256, 32 means 16, so that pictures keep their shape."),
                io.Boolean.Input("flip", default=False, optional=True, advanced=True, tooltip="Mirrors pictures at random. Leave it off for faces, text and everything where left and right differ."),
                io.Int.Input("crops", default=0, min=0, max=8, optional=True, advanced=True, tooltip="Extra crops of each picture, slightly closer and shifted; each step uses one at random. 2 to 4 help small data sets."),
                io.Boolean.Input("shuffle_tags", default=False, optional=True, advanced=True, tooltip="For captions made of tags separated by commas: uses the tags in several random orders."),
                io.Int.Input("keep_tokens", default=1, min=0, max=100, optional=True, advanced=True, tooltip="Number of tags at the beginning that are not shuffled, such as the trigger."),
                io.Int.Input("caption_variants", default=4, min=1, max=64, optional=True, advanced=True, tooltip="Number of tag orders per caption, including the original. Each is encoded once, before training."),
                io.String.Input("resolutions", default="", optional=True, advanced=True, tooltip="Several training resolutions, separated by commas, such as 512, 768. Every picture is used at each of them. Replaces resolution."),
                io.Float.Input("weight", default=1.0, min=0.01, max=100.0, step=0.05, optional=True, advanced=True, tooltip="For Combine LoRA Datasets: each picture is used repeats x weight times per epoch."),
                io.Boolean.Input("class_images", default=False, optional=True, advanced=True, tooltip="For prior preservation: these pictures show the class (any dog), not the concept. Write the class word, such as dog, in trigger."),
                io.Combo.Input("masks", options=list(MASKS), default="off", optional=True, advanced=True, tooltip="Which parts of a picture are trained. alpha: the opaque parts. -mask files: the white parts of x-mask.png, for x.jpg. auto: the mask file if there is one, otherwise alpha."),
                io.Boolean.Input("caption_weights", default=False, optional=True, advanced=True, tooltip="On: parentheses in captions are weights, as in prompts: (word:1.2). Off: they are ordinary text, as in sd-scripts; \\( is the same as (."),
                io.Image.Input("references", optional=True, tooltip="For connected images and a base that edits (FLUX.2, FLUX.1 Kontext, Qwen-Image-Edit): what each image is made from, one for each, in the same order. In a folder, put them into control (or control_1 to control_3) under the same names, or beside 01.png as 01_ref1.png."),
                io.Image.Input("references_2", optional=True, tooltip="A second reference for each connected image."),
                io.Image.Input("references_3", optional=True, tooltip="A third reference for each connected image."),
                io.Boolean.Input("use_references", default=True, optional=True, advanced=True, tooltip="Off: reference pictures of the folder are not used, and the LoRA learns from the pictures and captions alone."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="Captions, counts, buckets, and every file that was not used, with the reason."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, folder="", trigger="", resolution=512, bucket_step=32, images="unconnected", resolutions="", masks="off",
        use_references=True,
    ):  # fmt: skip
        try:
            if masks is not None and masks not in MASKS:
                return f"masks is {masks}; choose one of {', '.join(MASKS)}"
            if None not in (resolution, bucket_step, resolutions):
                for each in numbers("resolutions", resolutions) or (resolution,):
                    check_resolution(each, bucket_step)
            if images == "unconnected" and None not in (folder, masks):
                reading.check_folder(dataset_folder(folder), trigger or "", masks, use_references is not False)
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
        caption_weights=False, references=None, references_2=None, references_3=None, use_references=True,
    ) -> io.NodeOutput:  # fmt: skip
        beside = [each for each in (references, references_2, references_3) if each is not None]
        if beside and images is None:
            raise ValueError(FOR_IMAGES)
        options = Options(
            flip=flip, crops=crops, shuffle_tags=shuffle_tags, keep_tokens=keep_tokens, caption_variants=caption_variants,
            resolutions=numbers("resolutions", resolutions), weight=weight, class_images=class_images, masks=masks,
            caption_weights=caption_weights, references=use_references,
        )  # fmt: skip
        if images is None:
            data = reading.from_folder(dataset_folder(folder), trigger, resolution, bucket_step, repeats, options)
        else:
            lines = [line for line in captions.splitlines() if line.strip()] or [""]
            data = reading.from_tensors(
                images, lines, trigger, resolution, bucket_step, repeats, options, beside if use_references else ()
            )
        report = data.report()
        return io.NodeOutput(data, report, ui=report_ui(cls, report, as_image_batch(contact_sheet(data))))
