"""Load Kandinsky / Wuerstchen Text Encoder: CLIP as the two systems were trained with it."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.systems.loading import file_names
from .bridge.systems.text import load_text_encoder
from .types import CATEGORY


class LoadTwoStageTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_LoadTwoStageTextEncoder",
            display_name="Load Kandinsky / Wuerstchen Text Encoder",
            category=f"{CATEGORY}/use",
            description="Loads the CLIP text encoder of Kandinsky 2.2 or Wuerstchen v2. ComfyUI's Load CLIP reads the same file, but gives another layer, without the mask that these models were trained with.",
            search_aliases=["kandinsky", "kandinsky 2.2", "wuerstchen", "w\u00fcrstchen", "clip bigg", "load clip"],
            inputs=[
                io.Combo.Input("clip_name", options=file_names("text_encoders"), tooltip="A file from the text_encoders folders: CLIP ViT-bigG for Kandinsky 2.2 and for Wuerstchen's prior, CLIP ViT-H for Wuerstchen's decoder. SDXL's text_encoder_2 is ViT-bigG, too."),
            ],
            outputs=[
                io.Clip.Output("clip", tooltip="For CLIP Text Encode. A text is cut after 75 tokens, as these models read no more."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip_name) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder(clip_name))
