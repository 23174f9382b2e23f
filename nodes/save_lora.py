"""Save LoRA: write an adapter in a chosen format and prove that ComfyUI loads it as it was made."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.files.label import Label
from ..lora_core.files.names import check_template
from ..lora_core.files.thumbnail import jpeg
from .bridge.export import DTYPES, STYLES, save_adapter
from .bridge.images import as_picture
from .bridge.shown import shown
from .types import CATEGORY, AdapterType


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_SaveLora",
            display_name="Save LoRA",
            category=f"{CATEGORY}/train",
            description="Writes the LoRA into the first loras folder, then loads it back with ComfyUI's own loader and compares every weight. A file that would not load is an error, not a surprise.",
            search_aliases=["export lora", "kohya", "diffusers", "peft"],
            is_output_node=True,
            inputs=[
                AdapterType.Input("adapter", tooltip="From Train LoRA or Merge LoRA."),
                io.Model.Input("model", tooltip="The base model: it gives the layers their names in the file, and the proof."),
                io.String.Input("name", default="%title%_%rank%", tooltip="File name; / makes folders. %title%, %trigger%, %rank%, %steps% and %date% are filled in."),
                io.Combo.Input("format", options=list(STYLES), default="comfyui", tooltip="comfyui: loads in ComfyUI for every model. kohya: also in A1111 and Forge. diffusers: also in diffusers."),
                io.Combo.Input("dtype", options=list(DTYPES), default="fp16", tooltip="fp16 is what everybody shares; fp32 keeps every bit at twice the size."),
                io.Clip.Input("clip", optional=True, tooltip="Needed when the LoRA changes the text encoder."),
                io.Boolean.Input("overwrite", default=False, optional=True, advanced=True, tooltip="Replace a file of that name. Off: a number is added."),
                io.Combo.Input("captions", options=["include", "redact"], default="include", optional=True, tooltip="include: the file tells how often each tag of the captions was trained, as most tools expect. redact: nothing of captions, folder and single pictures but the trigger; choose it when captions hold names."),
                io.Image.Input("preview", optional=True, tooltip="Picture that model browsers show; the first of a batch, scaled to at most 512 px."),
                io.Boolean.Input("side_files", default=False, optional=True, advanced=True, tooltip="Write the preview also as a .jpg of the same name, for tools that do not look into the file."),
                io.String.Input("author", default="", optional=True, advanced=True, tooltip="Who made the LoRA, for the file's header."),
                io.String.Input("license", default="", optional=True, advanced=True, tooltip="Its licence: a name such as CC-BY-4.0, or a link."),
                io.String.Input("description", default="", multiline=True, optional=True, advanced=True, tooltip="What it does, in your words. Markdown is fine."),
                io.String.Input("usage_hint", default="", optional=True, advanced=True, tooltip="What one needs to know at hand, such as 'strength 0.6 to 0.9'."),
                io.String.Input("tags", default="", optional=True, advanced=True, tooltip="Words to find it by, separated by commas, such as style, ink."),
            ],
            outputs=[
                io.String.Output("lora_name", tooltip="The name under which loaders list the file."),
                io.String.Output("report", tooltip="File, size, hash, and the proof."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name="lora"):
        try:
            check_template("lora" if name is None else name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, adapter, model, name, format, dtype, clip=None, overwrite=False, captions="include", preview=None,
        side_files=False, author="", license="", description="", usage_hint="", tags="",
    ) -> io.NodeOutput:  # fmt: skip
        thumbnail = b"" if preview is None else jpeg(as_picture(preview))
        label = Label(
            author=author, license=license, description=description, usage_hint=usage_hint, tags=tags,
            thumbnail=thumbnail, redact=captions == "redact",
        )  # fmt: skip
        lora_name, report = save_adapter(adapter, name, format, dtype, model, clip, overwrite, label, side_files)
        return io.NodeOutput(lora_name, report, ui=shown(cls, report))
