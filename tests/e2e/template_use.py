"""The templates that use and merge LoRAs."""

from __future__ import annotations

from dataclasses import replace

from e2e.template_nodes import CHECKPOINTS, CLIP, LORAS, MODEL, SDXL, SIDE, VAE, Node, checkpoint, loaded_stack, note


def stack() -> dict[str, Node]:
    text = (
        "### Load a LoRA stack\n"
        "**Load LoRA Stack**: add a row for each LoRA, drag rows to move them, switch them on and off, or paste tags such as "
        "<lora:name:0.8>. The LoRAs are added up exactly. The output *triggers* gives their trigger words; *lora_stack* passes "
        "the rows to other nodes. " + LORAS + "Then Run.\n\n" + CHECKPOINTS
    )
    changed, texts = ("stack", "model"), ("stack", "clip")
    sampler = {"model": changed, "positive": ("prompt", "CONDITIONING"), "negative": ("negative", "CONDITIONING")}
    return {
        "note": note(text, width=720, height=210),
        "checkpoint": checkpoint(0, 0),
        "stack": loaded_stack(),
        "prompt": Node("CLIPTextEncode", (820, 0), {"text": "a photo of a cat in a garden"}, {"clip": texts}, "Prompt", (340, 120)),
        "negative": Node("CLIPTextEncode", (820, 200), {"text": ""}, {"clip": texts}, "Negative prompt", (340, 120)),
        "latent": Node("EmptyLatentImage", (820, 400), {"width": SIDE, "height": SIDE}, size=(340, 110)),
        "sampler": Node("KSampler", (1210, 0), SDXL, {**sampler, "latent_image": ("latent", "LATENT")}, size=(320, 270)),
        "decode": Node("VAEDecode", (1210, 400), {}, {"samples": ("sampler", "LATENT"), "vae": VAE}, size=(320, 50)),
        "saved": Node("SaveImage", (1580, 0), {"filename_prefix": "lora_stack"}, {"images": ("decode", "IMAGE")}, size=(420, 480)),
    }  # fmt: skip


def merge() -> dict[str, Node]:
    text = (
        "### Merge LoRAs into one file\n"
        "Add the LoRAs and their strengths in **Load LoRA Stack**, then Run. With *rank* 0 the sum is exact: the saved file gives "
        "the same result as the stack. A lower rank or a size in MB makes a smaller file; the chart shows the error. *method* "
        "has other ways to merge; auto chooses one for you. " + LORAS + "\n\n" + CHECKPOINTS
    )
    rows = ("stack", "lora_stack")
    return {
        "note": note(text, width=720, height=210),
        "checkpoint": checkpoint(0, 0),
        "stack": loaded_stack(),
        "merge": Node("LoraLoom_MergeLora", (820, 0), {}, {"model": MODEL, "clip": CLIP, "lora_stack": rows}, size=(340, 520)),
        "save": Node("LoraLoom_SaveLora", (1210, 0), {"name": "my_merge"}, {"adapter": ("merge", "adapter"), "model": MODEL, "clip": CLIP}, size=(340, 560)),
        "chart": Node("PreviewImage", (1600, 0), {}, {"images": ("merge", "chart")}, "What the merge cost", (520, 420)),
    }  # fmt: skip


def regions() -> dict[str, Node]:
    text = (
        "### A mask for each LoRA\n"
        "Two LoRAs, one on the left half of the picture and one on the right, so that neither draws into the other.\n"
        "1. **Load LoRA Stack**: add two rows. Click the line under the name of the first and choose *inside mask1*; for the "
        "second choose *outside mask1*.\n"
        "2. The mask is the left half. For one of your own, paint it in the mask editor of **Load Image** (a picture with the "
        "sides of *Empty Latent Image*), and connect its MASK. Every mask has a place on the node; a row without one is on "
        "everywhere.\n"
        "3. **Prompt**: call both, with their trigger words.\n\n"
        "Then Run. Every part takes a forward of its own in each step: two parts take twice as long. "
        + LORAS
        + "\n\n"
        + CHECKPOINTS
    )
    drawn = {key: node for key, node in stack().items() if key not in ("note", "stack")}
    halves = {"value": 1.0, "width": SIDE // 2, "height": SIDE}
    masks = {"destination": ("canvas", "MASK"), "source": ("half", "MASK")}
    return {
        "note": note(text, width=720, height=330),
        "canvas": Node("SolidMask", (0, 180), {"value": 0.0, "width": SIDE, "height": SIDE}, title="The picture", size=(320, 110)),
        "half": Node("SolidMask", (0, 370), halves, title="Its left half", size=(320, 110)),
        "mask": Node("MaskComposite", (0, 560), {"operation": "add"}, masks, "mask1: the left half", (320, 150)),
        "stack": replace(loaded_stack(), links={"model": MODEL, "clip": CLIP, "masks.mask1": ("mask", "MASK")}),
        **drawn,
    }  # fmt: skip
