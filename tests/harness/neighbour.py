"""A pack beside ours, built as others are: a prompt handler and nodes that read what prompts carry. ComfyUI loads this
file as a custom node; `seen.json` beside it is what they found."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import numpy as np
from PIL import Image
from server import PromptServer

SEEN = Path(__file__).with_name("seen.json")
SEEN.write_text("[]", encoding="utf-8")


def note(**found: object) -> None:
    SEEN.write_text(json.dumps([*json.loads(SEEN.read_text(encoding="utf-8")), found]), encoding="utf-8")


def populate(posted: dict) -> dict:
    """Whoever gives a prompt `extra_pnginfo` is taken to give a workflow."""
    if "extra_data" in posted and "extra_pnginfo" in posted["extra_data"]:
        for node in posted["extra_data"]["extra_pnginfo"]["workflow"]["nodes"]:
            node["seen"] = True
    note(handler=sorted(posted), extra="extra_data" in posted)
    return posted


class Saver:
    """Writes one picture, with its workflow when there is one."""

    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"images": ("IMAGE",), "name": ("STRING", {"default": "neighbour"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }
    )
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "save", "neighbour", True

    def save(self, images, name, prompt=None, extra_pnginfo=None):
        workflow = None
        if extra_pnginfo is not None:
            workflow = json.dumps(extra_pnginfo["workflow"])
        pixels = (images[0].numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(folder_paths.get_output_directory()) / f"{name}.png")
        titles = [node["_meta"]["title"] for node in prompt.values() if "_meta" in node]
        note(saver=workflow, names=list(extra_pnginfo or ()), titles=titles)
        return {}


class Apply:
    """Reads a LORA_STACK as loaders of other packs do."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"lora_stack": ("LORA_STACK",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "apply", "neighbour", True

    def apply(self, lora_stack):
        note(stack=[[name, strength, text] for name, strength, text in lora_stack])
        return {}


PromptServer.instance.add_on_prompt_handler(populate)
NODE_CLASS_MAPPINGS = {"NeighbourSave": Saver, "NeighbourApply": Apply}
NODE_DISPLAY_NAME_MAPPINGS = {"NeighbourApply": "Apply Their Stack"}
