"""Change LoRA Format: the names of another format for the layers of a file, without its model."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.files.names import check_template
from ..lora_core.stack.rows import NONE
from .bridge.host import takedown
from .bridge.host.folders import lora_state
from .bridge.host.node_outputs import report_ui
from .bridge.merging.renaming import AUTO, EMBEDDINGS, FAMILIES, SAME, rename
from .bridge.merging.save import DTYPES, STYLES
from .bridge.stack.entries import check_rows
from .types import CATEGORY, file_input


class ChangeFormat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_ChangeFormat",
            display_name="Change LoRA Format",
            category=f"{CATEGORY}/merge",
            description="Saves a LoRA with the layer names of another format, for ComfyUI, kohya's scripts or diffusers. It needs no model: the layers tell which family the file is for.",
            search_aliases=["rename lora keys", "kohya to diffusers", "diffusers to kohya", "peft", "lora converter"],
            is_output_node=True,
            inputs=[
                file_input("lora", tooltip="A file from the loras folders."),
                io.Combo.Input("format", options=list(STYLES), default="comfyui", tooltip="comfyui: for ComfyUI, every model. kohya: also for A1111 and Forge. diffusers: also for diffusers."),
                io.String.Input("name", default="%name%_%format%", tooltip="File name; / makes folders. %name%, %format%, %rank% and %date% are replaced by their values."),
                io.Combo.Input("dtype", options=[SAME, *DTYPES], default=SAME, optional=True, advanced=True, tooltip="as it is: the type of the file, so that no number is rounded where the format allows it."),
                io.Combo.Input("family", options=[AUTO, *FAMILIES], default=AUTO, optional=True, advanced=True, tooltip="The family of the model the file is for. auto: by its layers. Choose it when the layers fit several families."),
                io.Boolean.Input("overwrite", default=False, optional=True, advanced=True, tooltip="On: replaces a file with the same name. Off: a number is added to the name."),
                io.Combo.Input("embeddings", options=list(EMBEDDINGS), default="keep", optional=True, advanced=True, tooltip="Embeddings that the file comes with. keep: in the new file, too. save apart: as files in the embeddings folder. leave out: neither."),
            ],
            outputs=[
                io.String.Output("lora_name", tooltip="The name of the new file as loaders list it."),
                io.String.Output("report", tooltip="File, size, family, and the result of the check with ComfyUI's loader."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora=NONE, name="lora"):
        if lora == NONE:
            return "no LoRA file is chosen; choose one in lora"
        try:
            check_template("lora" if name is None else name)
        except ValueError as error:
            return str(error)
        return check_rows([lora])

    @classmethod
    def fingerprint_inputs(cls, lora=NONE, **_):
        return [*lora_state(lora), *takedown.state()]

    @classmethod
    def execute(cls, lora, format, name, dtype=SAME, family=AUTO, overwrite=False, embeddings="keep") -> io.NodeOutput:
        lora_name, report = rename(lora, name, format, dtype, family, overwrite, embeddings)
        return io.NodeOutput(lora_name, report, ui={**report_ui(cls, report), "lora_loom_files": (lora_name,)})
