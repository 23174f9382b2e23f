"""The templates that train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from e2e.template_nodes import CHECKPOINTS, CLIP, MISSING, MODEL, SIDE, VAE, Link, Node, checkpoint, note


def train_checkpoint() -> dict[str, Node]:
    text = (
        "### Train a LoRA on a checkpoint file (SDXL, SD 1.5)\n"
        "1. **Load Checkpoint**: choose your model.\n"
        "2. **LoRA Dataset**: make a folder in ComfyUI's input folder, put about 20 pictures in it, and write its name into "
        "*folder*; the caption of 01.png is in 01.txt. *trigger* is a word of your own that calls the concept. *resolution* is "
        "1024 for SDXL, 512 for SD 1.5.\n"
        "3. **Train LoRA (Loom)**: *steps* is 50 to 100 for each picture; *run_name* is among the advanced inputs. Keep 0 and "
        "auto: they are set to what suits your model.\n\n"
        "Then Run. Previews and validation appear during training. You can cancel at any time: Run continues from there. At the "
        "end, the LoRA is saved in models/loras.\n\n" + CHECKPOINTS
    )
    return {"note": note(text, width=720, height=310), "checkpoint": checkpoint(0, 0), **training(MODEL, CLIP, VAE, {})}


def train_diffusion_model() -> dict[str, Node]:
    text = (
        "### Train a LoRA on a diffusion model (Z-Image, FLUX, Qwen-Image, Wan, SD 3.5 ...)\n"
        "1. The three loaders: choose your model, its text encoder and its VAE. FLUX.1 needs DualCLIPLoader instead of Load CLIP. "
        "Train on the base model, not on a distilled one (turbo, lightning, schnell).\n"
        "2. **LoRA Dataset**: make a folder in ComfyUI's input folder, put about 20 pictures in it, and write its name into "
        "*folder*; the caption of 01.png is in 01.txt. *trigger* is a word of your own that calls the concept. Set *resolution*.\n"
        "3. **Train LoRA (Loom)**: *steps* is 50 to 100 for each picture; *run_name* is among the advanced inputs. Keep 0 and "
        "auto: they are set to what suits your model.\n"
        "4. **Training Previews**: *cfg* is 4 for Z-Image and Qwen-Image, 1 for FLUX.\n\n"
        "Then Run. You can cancel at any time: Run continues from there. At the end, the LoRA is saved in models/loras.\n\n"
        + MISSING.format(folders="models/diffusion_models, models/text_encoders or models/vae, as the loader says")
    )
    loaders = {
        "unet": Node("UNETLoader", (0, 0), {"unet_name": "z_image_bf16.safetensors"}, size=(320, 90)),
        "clip": Node("CLIPLoader", (0, 190), {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}, size=(320, 110)),
        "vae": Node("VAELoader", (0, 420), {"vae_name": "ae.safetensors"}, size=(320, 60)),
    }  # fmt: skip
    links = (("unet", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"))
    return {
        "note": note(text, width=720, height=340),
        **loaders,
        **training(*links, {"cfg": 4.0, "scheduler": "simple"}),
    }


def train_preference() -> dict[str, Node]:
    text = (
        "### Train a LoRA on what you like\n"
        "1. **Load Checkpoint**: choose your model. Draw pictures with it, two or more for each prompt.\n"
        "2. **LoRA Dataset**, twice: make the folders *my_pictures/liked* and *my_pictures/disliked* in ComfyUI's input folder. "
        "Put the better picture of a prompt into the first and the worse one, with the same name and size, into the second; the "
        "caption of liked/01.png, its prompt, is in liked/01.txt. 50 pairs are a beginning.\n"
        "3. **LoRA Preference Pairs**: *beta* is how closely the LoRA stays to the model.\n"
        "4. **Train LoRA (Loom)**: keep 0 and auto.\n\n"
        "Then Run. The report gives the win rate: how many of the pairs that were held out the LoRA gets right, where chance is "
        "50 %. You can cancel at any time: Run continues from there. The LoRA is saved in models/loras.\n\n"
        + CHECKPOINTS
    )
    liked, disliked = ({"folder": f"my_pictures/{side}", "resolution": SIDE} for side in ("liked", "disliked"))
    pairs = {"liked": ("liked", "dataset"), "disliked": ("disliked", "dataset")}
    made = training(MODEL, CLIP, VAE, {})
    made["train"].links["dataset"] = ("pairs", "dataset")
    made["previews"].pos, made["validation"].pos = (760, 240), (760, 740)
    del made["dataset"]
    return {
        "note": note(text, width=720, height=400),
        "checkpoint": checkpoint(0, 0),
        "liked": Node("LoraLoom_Dataset", (370, 0), liked, title="LoRA Dataset, liked", size=(340, 560)),
        "disliked": Node("LoraLoom_Dataset", (370, 760), disliked | {"trigger": "disliked"}, title="LoRA Dataset, disliked", size=(340, 560)),
        "pairs": Node("LoraLoom_PreferencePairs", (760, 0), {}, pairs, size=(340, 150)),
        **made,
    }  # fmt: skip


def train_edit() -> dict[str, Node]:
    text = (
        "### Train an edit LoRA (FLUX.2, FLUX.1 Kontext, Qwen-Image-Edit)\n"
        "1. The three loaders: choose a model that edits pictures, its text encoder and its VAE.\n"
        "2. **LoRA Dataset**: make a folder in ComfyUI's input folder. Put the *results* in it (01.png), beside each the "
        "instruction as its caption (01.txt: turn it into a pencil drawing), and what it is made from under the same name into "
        "a folder *control* inside (control/01.png). More than one reference: control_1, control_2, control_3. Set "
        "*resolution*.\n"
        "3. **Training Previews**: write the instruction; it is tried on your references, which are shown beside.\n"
        "4. **Train LoRA (Loom)**: *steps* is 50 to 100 for each picture. Keep 0 and auto.\n\n"
        "Then Run. You can cancel at any time: Run continues from there. At the end, the LoRA is saved in models/loras. To use it, "
        "load it and give the model a reference, as ComfyUI's own template for editing does.\n\n"
        + MISSING.format(folders="models/diffusion_models, models/text_encoders or models/vae, as the loader says")
    )
    loaders = {
        "unet": Node("UNETLoader", (0, 0), {"unet_name": "flux-2-klein-base-4b-fp8.safetensors"}, size=(320, 90)),
        "clip": Node("CLIPLoader", (0, 190), {"clip_name": "qwen_3_4b.safetensors", "type": "flux2"}, size=(320, 110)),
        "vae": Node("VAELoader", (0, 420), {"vae_name": "flux2-vae.safetensors"}, size=(320, 60)),
    }  # fmt: skip
    links = (("unet", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"))
    drawn = {"prompts": "turn it into a pencil drawing", "cfg": 4.0, "scheduler": "simple"}
    trained = training(*links, drawn, {"folder": "my_edits", "trigger": ""})
    return {"note": note(text, width=720, height=400), **loaders, **trained}


def train_distilled() -> dict[str, Node]:
    text = (
        "### Train a LoRA on a distilled model (Z-Image Turbo, FLUX schnell ...)\n"
        "Training on a model of few steps soon destroys its few steps. A training adapter, a LoRA made for this very model, is on "
        "while you train and off when you use the result. If the base model can be had, train on that instead.\n"
        "1. The three loaders: choose your model, its text encoder and its VAE.\n"
        "2. **Training adapter**: add the adapter made for your model, at strength 1. It goes to *assistants* of Train LoRA, and "
        "nowhere else.\n"
        "3. **LoRA Dataset**: make a folder in ComfyUI's input folder, put about 20 pictures in it, and write its name into "
        "*folder*; the caption of 01.png is in 01.txt. *trigger* is a word of your own. Set *resolution*.\n"
        "4. **Train LoRA (Loom)**: keep 0 and auto.\n"
        "5. **Training Previews**: *steps* and *cfg* as you use the model: 8 and 1 for Z-Image Turbo. They are drawn without the "
        "adapter, so they show what you will get: stop when they turn dull or noisy.\n\n"
        "Then Run. The LoRA in models/loras does not need the adapter.\n\n"
        + MISSING.format(folders="models/diffusion_models, models/text_encoders or models/vae, as the loader says")
    )
    loaders = {
        "unet": Node("UNETLoader", (0, 0), {"unet_name": "z_image_turbo_bf16.safetensors"}, size=(320, 90)),
        "clip": Node("CLIPLoader", (0, 190), {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}, size=(320, 110)),
        "vae": Node("VAELoader", (0, 420), {"vae_name": "ae.safetensors"}, size=(320, 60)),
    }  # fmt: skip
    links = (("unet", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"))
    nodes = training(*links, {"steps": 8, "cfg": 1.0, "scheduler": "simple"})
    nodes["train"].links["assistants"] = ("adapter", "lora_stack")
    adapter = Node(
        "LoraLoom_LoadLoraStack", (370, 660), {}, {"model": ("unet", "MODEL")}, "Training adapter", (340, 380)
    )
    return {"note": note(text, width=720, height=400), **loaders, "adapter": adapter, **nodes}


def train_slider() -> dict[str, Node]:
    text = (
        "### Train a slider: more or less of something, without pictures\n"
        "1. **Load Checkpoint**: choose your model.\n"
        "2. **LoRA Slider**: *more* is what pictures show at strength 1, *less* at -1. *subject* is what the slider is for; "
        "the two are put where {} stands. Write what must not change along with it as lines of their own, such as one for women "
        "and one for men. *resolution* is 1024 for SDXL, 512 for SD 1.5.\n"
        "3. **Train LoRA (Loom)**: 500 to 1000 *steps*; keep 0 and auto. A step takes about two and a half times as long as "
        "with pictures.\n\n"
        "Then Run. The model draws the pictures that it learns on; previews show every prompt at strengths from -2 to 2, and "
        "the report says how even and symmetric the slider is. You can cancel at any time: Run continues from there. The LoRA "
        "is saved in models/loras: use it at -2 to 2.\n\n" + CHECKPOINTS
    )
    prompts = {
        "more": "very old", "less": "very young", "subject": "photo of a {} woman\nphoto of a {} man", "resolution": SIDE,
    }  # fmt: skip
    made = training(MODEL, CLIP, VAE, {"prompts": "portrait photo of a woman"})
    links = {"model": MODEL, "clip": CLIP, "vae": VAE}
    return {
        "note": note(text, width=720, height=340),
        "checkpoint": checkpoint(0, 0),
        **made,
        "dataset": Node("LoraLoom_Slider", (370, 0), prompts, links, size=(340, 640)),
    }


def training(
    model: Link, clip: Link, vae: Link, previews: dict[str, Any], pictures: dict[str, Any] | None = None
) -> dict[str, Node]:
    """From the folder of pictures to the saved file."""
    dataset = {"folder": "my_pictures", "trigger": "ohwx", "resolution": SIDE, **(pictures or {})}
    given = {"model": model, "clip": clip, "vae": vae, "dataset": ("dataset", "dataset")}
    given |= {"previews": ("previews", "previews"), "validation": ("validation", "validation")}
    return {
        "dataset": Node("LoraLoom_Dataset", (370, 0), dataset, size=(340, 560)),
        "previews": Node("LoraLoom_Previews", (760, 0), previews, size=(340, 420)),
        "validation": Node("LoraLoom_Validation", (760, 560), {}, size=(340, 220)),
        "train": Node("LoraLoom_TrainLora", (1150, 0), {}, given, size=(380, 1000)),
        "save": Node("LoraLoom_SaveLora", (1580, 0), {}, {"adapter": ("train", "adapter"), "model": model, "clip": clip}, size=(340, 560)),
        "sheet": Node("PreviewImage", (1970, 0), {}, {"images": ("train", "previews")}, "The last previews", (420, 440)),
    }  # fmt: skip


def train_concepts() -> dict[str, Node]:
    text = (
        "### Train several concepts in one LoRA\n"
        "1. **Load Checkpoint**: choose your model.\n"
        "2. **LoRA Dataset**, one for each concept: make a folder in ComfyUI's input folder with about 20 pictures and write its "
        "name into *folder*; the caption of 01.png is in 01.txt. Each *trigger* is a word of its own; no word is in two of them.\n"
        "3. **Combine LoRA Datasets**: connect as many as you have. *keep_apart* makes the LoRA draw a concept when its trigger "
        "asks for it, and hardly when nothing does.\n"
        "4. **Train LoRA (Loom)**: *steps* is 50 to 100 for each picture of all sets.\n\n"
        "Then Run. At the end, the charts show how much of each concept is there under another one's trigger; the LoRA is saved in "
        "models/loras.\n\n" + CHECKPOINTS
    )
    found = {
        "note": note(text, width=720, height=310),
        "checkpoint": checkpoint(0, 0),
        **training(MODEL, CLIP, VAE, {}),
    }
    first, second = found.pop("dataset"), {"folder": "my_other_pictures", "trigger": "zwx", "resolution": SIDE}
    sets = {f"datasets.dataset{i}": (name, "dataset") for i, name in enumerate(("dataset", "second"))}
    moved = {
        name: replace(node, pos=(node.pos[0] + 390, node.pos[1])) for name, node in found.items() if node.pos[0] > 0
    }
    train = moved["train"]
    return {
        **found, "dataset": first,
        "second": Node("LoraLoom_Dataset", (370, 760), second, size=(340, 560)),
        "combined": Node("LoraLoom_CombineDatasets", (760, 0), {"keep_apart": True}, sets, size=(340, 420)),
        **moved, "train": replace(train, links={**train.links, "dataset": ("combined", "dataset")}),
        "charts": Node("PreviewImage", (2360, 510), {}, {"images": ("train", "charts")}, "How the run went", (420, 440)),
    }  # fmt: skip
