"""The templates that judge, repair and publish LoRAs, and that make files of files."""

from __future__ import annotations

from e2e.template_nodes import CHECKPOINTS, CLIP, LORAS, MODEL, SDXL, SIDE, VAE, Node, checkpoint, loaded_stack, note


def judge() -> dict[str, Node]:
    text = (
        "### Is this LoRA good?\n"
        "Add it in **Load LoRA Stack**, alone or with the LoRAs you use it with, write one or two prompts, then Run.\n"
        "- **LoRA Report**: does it change prompts without its trigger, and does it copy its training pictures? Write the "
        "*trigger* if the file does not contain it.\n"
        "- **LoRA Leave-One-Out**: the same picture with all LoRAs, without each one, and with none.\n"
        "- **LoRA Interference**: how much the LoRAs overlap, and strengths that keep their sum in balance.\n\n"
        + LORAS
        + CHECKPOINTS
    )
    rows = ("stack", "lora_stack")
    prompts = {"prompts": "a photo of a cat in a garden", "width": SIDE, "height": SIDE, **SDXL}
    drawn = {"model": MODEL, "clip": CLIP, "vae": VAE, "lora_stack": rows}
    return {
        "note": note(text, width=720, height=270),
        "checkpoint": checkpoint(0, 0),
        "stack": loaded_stack(),
        "report": Node("LoraLoom_Report", (820, 0), {**prompts, "prompts": ""}, drawn, size=(420, 960)),
        "leave": Node("LoraLoom_LeaveOneOut", (1290, 0), prompts, drawn, size=(420, 800)),
        "interference": Node("LoraLoom_Interference", (1760, 0), {}, {"model": MODEL, "clip": CLIP, "lora_stack": rows}, size=(480, 520)),
    }  # fmt: skip


def repair() -> dict[str, Node]:
    text = (
        "### Repair a LoRA\n"
        "1. **LoRA Health**: choose the LoRA in *lora_name*, and write its *trigger* if the file does not contain it. Set *cfg* "
        "and *steps* to what suits your model.\n"
        "2. Run. The node says what is wrong, draws the LoRA without each part of its blocks, and proposes strengths for them.\n"
        "3. **Save LoRA** writes the repaired LoRA under a name of its own; the old file stays.\n\n"
        "*repair* = faults and blocks folds the proposed strengths in as well. Connect a **LoRA Dataset** with pictures of the "
        "concept to *dataset*, and they are chosen by how much of it they keep. " + LORAS + "\n\n" + CHECKPOINTS
    )
    drawn = {"prompts": "a photo in a garden", "width": SIDE, "height": SIDE, **SDXL}
    models = {"model": MODEL, "clip": CLIP, "vae": VAE}
    saved = {"adapter": ("health", "adapter"), "model": MODEL, "clip": CLIP}
    return {
        "note": note(text, width=720, height=310),
        "checkpoint": checkpoint(0, 0),
        "health": Node("LoraLoom_Health", (370, 0), drawn, models, size=(480, 1160)),
        "save": Node("LoraLoom_SaveLora", (900, 0), {"name": "repaired"}, saved, size=(340, 560)),
        "page": Node("PreviewImage", (1290, 0), {}, {"images": ("health", "page")}, "The whole page", (620, 620)),
    }  # fmt: skip


def publish() -> dict[str, Node]:
    text = (
        "### Publish a LoRA\n"
        "Trains a LoRA, tests it, and saves it signed, with what it is and what may be done with it in its file.\n"
        "1. **Load Checkpoint**: choose your model.\n"
        "2. **LoRA Dataset**: make a folder in ComfyUI's input folder, put about 20 pictures in it, and write its name into "
        "*folder*. *trigger* is a word of your own that calls the concept.\n"
        "3. **LoRA Contract**: write who you are, which licence you give, and where the pictures are from. Leave empty what you "
        "do not want to say.\n"
        "4. **LoRA Report**: what it measures is written beside what you say. Set *cfg* and *steps* to what suits your model.\n"
        "5. **Save LoRA**: *sign* is on. The first time, a key is made for you in ComfyUI's user folder; keep a copy of it, and "
        "show it to nobody. If captions contain names, set *captions* to redact.\n\n"
        "Then Run. The LoRA is saved in models/loras, and **LoRA Passport** shows what others will see. If you change the "
        "contract later, Run again: only saving is repeated. Who makes pictures with it can have their credits from LoRA "
        "Credits. A contract helps others to treat you fairly; it is no legal advice.\n\n" + CHECKPOINTS
    )
    dataset = {"folder": "my_pictures", "trigger": "ohwx", "resolution": SIDE}
    given = {"model": MODEL, "clip": CLIP, "vae": VAE, "dataset": ("dataset", "dataset")}
    tested, drawn = {"adapter": ("train", "adapter")}, {"width": SIDE, "height": SIDE, **SDXL}
    kept = {"adapter": ("report", "adapter"), "model": MODEL, "clip": CLIP, "contract": ("contract", "contract")}
    return {
        "note": note(text, width=860, height=430),
        "checkpoint": checkpoint(0, 0),
        "dataset": Node("LoraLoom_Dataset", (0, 180), dataset, size=(320, 560)),
        "contract": Node("LoraLoom_Contract", (370, 0), {}, size=(360, 860)),
        "train": Node("LoraLoom_TrainLora", (780, 0), {}, given, size=(380, 1000)),
        "report": Node("LoraLoom_Report", (1210, 0), drawn, {**given, **tested}, size=(420, 960)),
        "save": Node("LoraLoom_SaveLora", (1680, 0), {"sign": True}, kept, size=(340, 600)),
        "passport": Node("LoraLoom_Passport", (2070, 0), {}, {"lora_name": ("save", "lora_name")}, size=(460, 620)),
    }  # fmt: skip


def files() -> dict[str, Node]:
    text = (
        "### Files of LoRAs: another format, another size, and what a file says of itself\n"
        "Each row of nodes needs a choice of its own. Run goes through the rows that have theirs and leaves out the others.\n"
        "1. **Change LoRA Format**: choose a file in *lora*, and its new *format*: kohya for A1111 and Forge, diffusers for "
        "diffusers. It needs no model.\n"
        "2. **Resize LoRA**: choose your model in **Load Checkpoint** and a file in *lora_name*. *rank* says how large the new "
        "file is; the node and the chart say what is lost. A LoHa, LoKr or DoRA becomes a plain LoRA; **Convert LoRA** in its "
        "place makes or keeps LoHa and LoKr.\n"
        "3. **Average Saved Steps**: choose a training of yours in *run*, and its model in **Load Checkpoint**. One LoRA is made "
        "of the steps that it has saved.\n\n"
        "**LoRA Passport** shows what a new file says of itself. For any other file, disconnect *lora_name* and choose it in "
        "*lora*. Old files stay as they are. " + LORAS + "\n\n" + CHECKPOINTS
    )
    models = {"model": MODEL, "clip": CLIP}
    resized, averaged = ({"adapter": (made, "adapter"), **models} for made in ("resize", "average"))
    return {
        "note": note(text, width=720, height=290),
        "format": Node("LoraLoom_ChangeFormat", (0, 0), {"format": "kohya"}, size=(340, 320)),
        "renamed": Node("LoraLoom_Passport", (390, 0), {}, {"lora_name": ("format", "lora_name")}, "The file in its new format", (420, 420)),
        "checkpoint": checkpoint(0, 560),
        "resize": Node("LoraLoom_ResizeLora", (390, 560), {"rank": 16}, models, size=(420, 700)),
        "save": Node("LoraLoom_SaveLora", (860, 560), {}, resized, "Save LoRA, resized", (340, 560)),
        "small": Node("LoraLoom_Passport", (1250, 560), {}, {"lora_name": ("save", "lora_name")}, "The resized file", (420, 420)),
        "chart": Node("PreviewImage", (1720, 560), {}, {"images": ("resize", "chart")}, "What the size cost", (520, 420)),
        "average": Node("LoraLoom_AverageSteps", (390, 1400), {}, size=(420, 420)),
        "mean": Node("LoraLoom_SaveLora", (860, 1400), {"name": "%title%_average"}, averaged, "Save LoRA, averaged", (340, 560)),
        "steps": Node("LoraLoom_Passport", (1250, 1400), {}, {"lora_name": ("mean", "lora_name")}, "The averaged file", (420, 420)),
    }  # fmt: skip
