"""LoRA Dataset: a folder of captioned pictures, or an IMAGE batch with captions."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..lora_core.training import dataset as datasets
from ..lora_core.training.buckets import RESOLUTIONS, STEPS, check_resolution
from ..lora_core.training.contact_sheet import contact_sheet
from .bridge.folders import dataset_folder, folder_state
from .bridge.images import as_image_batch
from .bridge.progress import Progress
from .types import CATEGORY, LoraDatasetType


class LoraDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Dataset",
            display_name="LoRA Dataset",
            category=CATEGORY,
            description="Pictures with captions for Train LoRA. Resizes and crops each picture to the aspect-ratio bucket nearest to it.",
            search_aliases=["training images", "captions", "buckets"],
            inputs=[
                io.String.Input("folder", default="", tooltip="Folder of PNG, JPEG or WebP files with a .txt caption of the same name each. Absolute, or inside ComfyUI's input folder. Leave empty when images are connected."),
                io.String.Input("trigger", default="", tooltip="Word that calls the concept. It is put in front of every caption that does not hold it, and stands in for missing captions."),
                io.Int.Input("resolution", default=512, min=RESOLUTIONS[0], max=RESOLUTIONS[1], step=8, tooltip="Training resolution: the side of the square bucket. SD 1.5 512, SDXL and newer 1024; less is faster."),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often each picture is seen in one pass over the set."),
                io.Image.Input("images", optional=True, tooltip="Pictures from the graph, used instead of the folder."),
                io.String.Input("captions", default="", multiline=True, optional=True, tooltip="For connected images: one caption per line in their order, or a single line for all."),
                io.Int.Input("bucket_step", default=32, min=STEPS[0], max=STEPS[1], step=8, optional=True, advanced=True, tooltip="Bucket sides are multiples of this. The VAE needs at least a multiple of 8, some models of 16 or 32."),
            ],
            outputs=[
                LoraDatasetType.Output("dataset", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="Counts, buckets, and every file that was left out with the reason."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder="", trigger="", resolution=512, bucket_step=32, images="unconnected"):
        try:
            if None not in (resolution, bucket_step):
                check_resolution(resolution, bucket_step)
            if images == "unconnected" and folder is not None:
                datasets.check_folder(dataset_folder(folder), trigger or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder="", **_):
        return folder_state(folder)

    @classmethod
    def execute(cls, folder, trigger, resolution, repeats, images=None, captions="", bucket_step=32) -> io.NodeOutput:
        if images is None:
            data = datasets.from_folder(dataset_folder(folder), trigger, resolution, bucket_step, repeats)
        else:
            lines = [line for line in captions.splitlines() if line.strip()] or [""]
            data = datasets.from_tensors(images, lines, trigger, resolution, bucket_step, repeats)
        Progress(1).say(data.report())
        return io.NodeOutput(data, data.report(), ui=ui.PreviewImage(as_image_batch(contact_sheet(data)), cls=cls))
