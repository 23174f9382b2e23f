"""Save LoRA: write an adapter in a chosen format and prove that ComfyUI loads it as it was made."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.files.label import Label
from ..lora_core.files.names import check_template
from ..lora_core.files.thumbnail import jpeg
from .bridge.host.node_outputs import as_picture, report_ui
from .bridge.merging.save import DTYPES, STYLES, save_adapter, with_embeddings
from .types import CATEGORY, AdapterType, ContractType


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_SaveLora",
            display_name="Save LoRA",
            category=f"{CATEGORY}/train",
            description="Saves the LoRA in the first loras folder, then loads it with ComfyUI's own loader and compares every weight. If the file does not load correctly, you get an error.",
            search_aliases=["export lora", "kohya", "diffusers", "peft"],
            is_output_node=True,
            inputs=[
                AdapterType.Input("adapter", tooltip="From Train LoRA or Merge LoRA."),
                io.Model.Input("model", tooltip="The base model. It is needed for the layer names in the file and for the check."),
                io.String.Input("name", default="%title%_%rank%", tooltip="File name; / makes folders. %title%, %trigger%, %rank%, %steps% and %date% are replaced by their values."),
                io.Combo.Input("format", options=list(STYLES), default="comfyui", tooltip="comfyui: for ComfyUI, every model. kohya: also for A1111 and Forge. diffusers: also for diffusers."),
                io.Combo.Input("dtype", options=list(DTYPES), default="fp16", tooltip="fp16 is the usual choice. fp32 is exact, and the file is twice as large."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder; needed when the LoRA changes it."),
                io.Boolean.Input("overwrite", default=False, optional=True, advanced=True, tooltip="On: replaces a file with the same name. Off: a number is added to the name."),
                io.Combo.Input("captions", options=["include", "redact"], default="include", optional=True, tooltip="What the file says about the training data. include: how often each tag was trained, as most tools expect. redact: only the trigger; choose it when captions contain names."),
                io.Image.Input("preview", optional=True, tooltip="Preview picture for model browsers: the first of a batch, scaled to at most 512 px."),
                io.Boolean.Input("side_files", default=False, optional=True, advanced=True, tooltip="Also save the preview as a .jpg with the same name, for tools that do not read it from the file."),
                io.String.Input("author", default="", optional=True, advanced=True, tooltip="Who made the LoRA, for the file's header."),
                io.String.Input("license", default="", optional=True, advanced=True, tooltip="Its licence: a name such as CC-BY-4.0, or a link."),
                io.String.Input("description", default="", multiline=True, optional=True, advanced=True, tooltip="Description of the LoRA. Markdown is allowed."),
                io.String.Input("usage_hint", default="", optional=True, advanced=True, tooltip="A short hint for users, such as 'strength 0.6 to 0.9'."),
                io.String.Input("tags", default="", optional=True, advanced=True, tooltip="Search words, separated by commas, such as style, ink."),
                ContractType.Input("contract", optional=True, tooltip="From LoRA Contract: what the LoRA is and what may be done with it. What it leaves empty is filled from the training; author and license of this node go before it."),
                io.Boolean.Input("sign", default=False, optional=True, tooltip="Sign the file with this machine's key, which is made the first time. Load LoRA Stack and LoRA Passport then tell everybody that it is yours and whether it was changed."),
                io.String.Input("embeddings", default="", optional=True, advanced=True, tooltip="Embeddings of the embeddings folder to put into the file, separated by commas. Load LoRA Stack, A1111 and Forge read them from it. Those that the LoRA came with are kept in any case."),
            ],
            outputs=[
                io.String.Output("lora_name", tooltip="The name of the file as loaders list it."),
                io.String.Output("report", tooltip="File, size, hash, and the result of the check."),
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
        side_files=False, author="", license="", description="", usage_hint="", tags="", contract=None, sign=False,
        embeddings="",
    ) -> io.NodeOutput:  # fmt: skip
        thumbnail = b"" if preview is None else jpeg(as_picture(preview))
        label = Label(
            author=author, license=license, description=description, usage_hint=usage_hint, tags=tags,
            thumbnail=thumbnail, redact=captions == "redact",
        )  # fmt: skip
        given = with_embeddings(adapter, embeddings)
        lora_name, report = save_adapter(
            given, name, format, dtype, model, clip, overwrite, label, beside=side_files, contract=contract, sign=sign
        )
        return io.NodeOutput(lora_name, report, ui={**report_ui(cls, report), "lora_loom_files": (lora_name,)})
