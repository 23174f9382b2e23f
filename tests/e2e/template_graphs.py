"""The templates that ship, described by their nodes, widget values and links; `build_workflows.py` makes files of them.

What is not said here is a node's own default. The name of a file is all that the Templates dialog shows and searches,
and it finds words only in about the first 33 letters; so what people type comes first. Newer front ends look for words
by how they begin, a bracket included; so no word begins with one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

HUB = "https://huggingface.co"
KANDINSKY_PRIOR, KANDINSKY_DECODER = (f"kandinsky-community/kandinsky-2-2-{stage}" for stage in ("prior", "decoder"))
WUERSTCHEN_PRIOR, WUERSTCHEN = "warp-ai/wuerstchen-prior", "warp-ai/wuerstchen"
MODELS = {  # what ComfyUI's own templates of these models name, and where it offers to fetch them from
    "sd_xl_base_1.0.safetensors": ("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/resolve/main"),
    "z_image_bf16.safetensors": ("diffusion_models", "Comfy-Org/z_image/resolve/main/split_files/diffusion_models"),
    "z_image_turbo_bf16.safetensors": (
        "diffusion_models",
        "Comfy-Org/z_image_turbo/resolve/main/split_files/diffusion_models",
    ),
    "qwen_3_4b.safetensors": ("text_encoders", "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders"),
    "ae.safetensors": ("vae", "Comfy-Org/z_image_turbo/resolve/main/split_files/vae"),
    "flux-2-klein-base-4b-fp8.safetensors": (
        "diffusion_models",
        "black-forest-labs/FLUX.2-klein-base-4b-fp8/resolve/main",
    ),
    "flux2-vae.safetensors": ("vae", "Comfy-Org/flux2-dev/resolve/main/split_files/vae"),
    **{
        f"{system}_{part}.safetensors": (folder, f"{repository}/resolve/main/{place}.safetensors")
        for system, part, folder, repository, place in (
            ("kandinsky22", "prior", "diffusion_models", KANDINSKY_PRIOR, "prior/diffusion_pytorch_model"),
            ("kandinsky22", "decoder", "diffusion_models", KANDINSKY_DECODER, "unet/diffusion_pytorch_model"),
            ("kandinsky22", "text", "text_encoders", KANDINSKY_PRIOR, "text_encoder/model"),
            ("kandinsky22", "movq", "vae", KANDINSKY_DECODER, "movq/diffusion_pytorch_model"),
            ("wuerstchen", "prior", "diffusion_models", WUERSTCHEN_PRIOR, "prior/diffusion_pytorch_model"),
            ("wuerstchen", "decoder", "diffusion_models", WUERSTCHEN, "decoder/diffusion_pytorch_model"),
            ("wuerstchen", "prior_text", "text_encoders", WUERSTCHEN_PRIOR, "text_encoder/model"),
            ("wuerstchen", "text", "text_encoders", WUERSTCHEN, "text_encoder/model"),
            ("wuerstchen", "vqgan", "vae", WUERSTCHEN, "vqgan/diffusion_pytorch_model"),
        )
    },
}
SDXL = {"steps": 25, "cfg": 6.0, "sampler_name": "euler", "scheduler": "normal"}
SIDE = 1024

Link = tuple[str, str]  # node key, output name


@dataclass
class Node:
    type: str
    pos: tuple[int, int]
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)  # by input name
    title: str = ""
    size: tuple[int, int] | None = None

    def models(self) -> list[dict[str, str]]:
        """The files that its widgets name, as ComfyUI's list of missing models takes them."""
        named = [value for value in self.widgets.values() if value in MODELS]
        places = {name: MODELS[name] for name in named}
        return [{"name": n, "url": address(n), "directory": d} for n, (d, _) in places.items()]


def address(name: str) -> str:
    """Where a file is had; where it is called otherwise there, that is said."""
    place = MODELS[name][1]
    return f"{HUB}/{place}" if place.endswith(".safetensors") else f"{HUB}/{place}/{name}"


def note(text: str, width: int = 640, height: int = 220) -> Node:
    return Node("MarkdownNote", (0, -height - 70), {"": text}, size=(width, height), title="Read me")


def checkpoint(x: int, y: int) -> Node:
    return Node("CheckpointLoaderSimple", (x, y), {"ckpt_name": "sd_xl_base_1.0.safetensors"}, size=(320, 100))


MISSING = (
    "**A file is missing?** ComfyUI names it when the template opens, and where to get it. Put it into {folders}, press R, "
    "and choose it in its loader. Any other model of yours that LoRA Loom knows will do as well."
)
CHECKPOINTS = MISSING.format(folders="models/checkpoints")
LORAS = "Your LoRAs are the files in models/loras; a new one is there after R. "

MODEL, CLIP, VAE = ("checkpoint", "MODEL"), ("checkpoint", "CLIP"), ("checkpoint", "VAE")


# -- train -------------------------------------------------------------------------------------------------------------


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
        "disliked": Node("LoraLoom_Dataset", (370, 640), disliked | {"trigger": "disliked"}, title="LoRA Dataset, disliked", size=(340, 560)),
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
        "second": Node("LoraLoom_Dataset", (370, 620), second, size=(340, 560)),
        "combined": Node("LoraLoom_CombineDatasets", (760, 0), {"keep_apart": True}, sets, size=(340, 420)),
        **moved, "train": replace(train, links={**train.links, "dataset": ("combined", "dataset")}),
        "charts": Node("PreviewImage", (2360, 510), {}, {"images": ("train", "charts")}, "How the run went", (420, 440)),
    }  # fmt: skip


# -- use, merge, measure -----------------------------------------------------------------------------------------------


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


def loaded_stack() -> Node:
    return Node("LoraLoom_LoadLoraStack", (370, 0), {}, {"model": MODEL, "clip": CLIP}, size=(400, 380))


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


# -- publish -----------------------------------------------------------------------------------------------------------


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


# -- systems of two stages ---------------------------------------------------------------------------------------------

RENAMED = (
    "\n\n**A file is missing?** ComfyUI names it when the template opens, and where to get it. On Hugging Face most of them "
    "are called diffusion_pytorch_model.safetensors or model.safetensors: give each a name of its own, put it into "
    "models/diffusion_models, models/text_encoders or models/vae, as the loader says, press R, and choose it there."
)
PRIOR, DECODER = {"cfg": 4.0, "sampler_name": "ddpm"}, {"sampler_name": "ddpm"}


def kandinsky() -> dict[str, Node]:
    text = (
        "### Kandinsky 2.2: text to picture\n"
        "Write the **Prompt**, then Run. The prior makes an image embedding of it, and one of the negative prompt; the decoder "
        "draws from the first and away from the second.\n"
        "To use LoRAs, add rows in **Load LoRA Stack**: one is for LoRAs of the prior, the other for those of the decoder. "
        + LORAS
        + RENAMED
    )
    stages = two_stages("kandinsky22", "kandinsky22_movq.safetensors", clips=("kandinsky22_text.safetensors",))
    texts = {"clip": ("prior stack", "clip")}
    asked, unasked = ("prompt", "CONDITIONING"), ("negative", "CONDITIONING")
    prior = {"model": ("prior stack", "model"), "negative": unasked, "latent_image": ("latents", "prior")}
    given = {"prior": ("prior sampler", "LATENT"), "negative_prior": ("negative sampler", "LATENT")}
    steps = {"steps": 25, "scheduler": "normal", **PRIOR}
    return {
        "note": note(text, width=720, height=320),
        **stages,
        "prompt": Node("CLIPTextEncode", (820, 0), {"text": "a photo of a cat in a garden"}, texts, "Prompt", (340, 120)),
        "negative": Node("CLIPTextEncode", (820, 200), {"text": "low quality, bad quality"}, texts, "Negative prompt", (340, 120)),
        "latents": latents(768),
        "prior sampler": Node("KSampler", (1210, 0), steps, {**prior, "positive": asked}, "Prior", (320, 270)),
        "negative sampler": Node("KSampler", (1210, 400), steps, {**prior, "positive": unasked}, "Prior, negative prompt", (320, 270)),
        **drawn_by_decoder(given, {"steps": 50, "cfg": 4.0, "scheduler": "ddim_uniform", **DECODER}),
    }  # fmt: skip


def wuerstchen() -> dict[str, Node]:
    text = (
        "### Wuerstchen v2: text to picture\n"
        "Write the **Prompt** twice, for the prior and for the decoder, which has a text encoder of its own; then Run. The prior "
        "makes a small latent of it, from which the decoder draws.\n"
        "To use LoRAs, add rows in **Load LoRA Stack**: one is for LoRAs of the prior, the other for those of the decoder. "
        + LORAS
        + RENAMED
    )
    clips = "wuerstchen_prior_text.safetensors", "wuerstchen_text.safetensors"
    stages = two_stages("wuerstchen", "wuerstchen_vqgan.safetensors", clips)
    first, second = {"clip": ("prior stack", "clip")}, {"clip": ("clip 2", "clip")}
    asked = {"text": "a photo of a cat in a garden"}
    prior = {"positive": ("prompt", "CONDITIONING"), "negative": ("negative", "CONDITIONING")}
    prior |= {"model": ("prior stack", "model"), "latent_image": ("latents", "prior")}
    given = {
        "prior": ("prior sampler", "LATENT"),
        "positive": ("prompt 2", "CONDITIONING"),
        "negative": ("negative 2", "CONDITIONING"),
    }
    return {
        "note": note(text, width=720, height=320),
        **stages,
        "prompt": Node("CLIPTextEncode", (820, 0), asked, first, "Prompt", (340, 120)),
        "negative": Node("CLIPTextEncode", (820, 200), {"text": ""}, first, "Negative prompt", (340, 120)),
        "latents": latents(1024),
        "prompt 2": Node("CLIPTextEncode", (820, 620), asked, second, "Prompt, for the decoder", (340, 120)),
        "negative 2": Node("CLIPTextEncode", (820, 820), {"text": ""}, second, "Negative prompt, for the decoder", (340, 120)),
        "prior sampler": Node("KSampler", (1210, 0), {"steps": 60, "scheduler": "simple", **PRIOR}, prior, "Prior", (320, 270)),
        **drawn_by_decoder(given, {"steps": 12, "cfg": 1.0, "scheduler": "simple", **DECODER}),
    }  # fmt: skip


def two_stages(system: str, vae: str, clips: tuple[str, ...]) -> dict[str, Node]:
    """The files of a system, a text encoder for each stage that reads text, and a stack for each stage."""
    loaders = {
        stage: Node(
            "LoraLoom_LoadTwoStageModel",
            (0, y),
            {"model_name": f"{system}_{stage}.safetensors"},
            title=title,
            size=(320, 90),
        )
        for stage, y, title in (("prior", 0, "Load the prior"), ("decoder", 170, "Load the decoder"))
    }
    texts = {
        f"clip {number}": Node(
            "LoraLoom_LoadTwoStageTextEncoder", (0, 200 + 140 * number), {"clip_name": name}, size=(320, 60)
        )
        for number, name in enumerate(clips, 1)
    }
    return {
        **loaders,
        **texts,
        "vae": Node("LoraLoom_LoadTwoStageVae", (0, 340 + 140 * len(clips)), {"vae_name": vae}, size=(320, 60)),
        "prior stack": Node(
            "LoraLoom_LoadLoraStack", (370, 0), {}, {"model": ("prior", "model"), "clip": ("clip 1", "clip")},
            "Load LoRA Stack, prior", (400, 380),
        ),
        "decoder stack": Node(
            "LoraLoom_LoadLoraStack", (370, 480), {}, {"model": ("decoder", "model")}, "Load LoRA Stack, decoder", (400, 380),
        ),
    }  # fmt: skip


def latents(side: int) -> Node:
    sides = {"width": side, "height": side}
    return Node("LoraLoom_EmptyTwoStageLatent", (820, 400), sides, {"model": ("prior", "model")}, size=(340, 130))


def drawn_by_decoder(given: dict[str, Link], sampler: dict[str, Any]) -> dict[str, Node]:
    """From what the prior made to the saved picture."""
    links = {"model": ("decoder stack", "model"), "latent_image": ("latents", "decoder")}
    links |= {side: ("conditioning", side) for side in ("positive", "negative")}
    decoded = {"samples": ("sampler", "LATENT"), "vae": ("vae", "vae")}
    return {
        "conditioning": Node("LoraLoom_PriorToConditioning", (1580, 0), {}, given, size=(320, 130)),
        "sampler": Node("KSampler", (1580, 280), sampler, links, "Decoder", (320, 270)),
        "decode": Node("VAEDecode", (1580, 680), {}, decoded, size=(320, 50)),
        "saved": Node("SaveImage", (1950, 0), {"filename_prefix": "two_stages"}, {"images": ("decode", "IMAGE")}, size=(420, 480)),
    }  # fmt: skip


GRAPHS = {
    "Train a LoRA on SDXL, SD 1.5 - checkpoint": train_checkpoint,
    "Train a LoRA on FLUX, Z-Image, Qwen - diffusion model": train_diffusion_model,
    "Load a LoRA stack": stack,
    "Merge LoRAs": merge,
    "Is this LoRA good - report, interference, leave-one-out": judge,
    "Publish a LoRA - contract, report, signature": publish,
    "Kandinsky 2.2 - text to picture": kandinsky,
    "Wuerstchen v2 - text to picture": wuerstchen,
    "Train a preference LoRA, DPO - liked, disliked pictures": train_preference,
    "LoRA regions - a mask for each LoRA": regions,
    "Train an edit LoRA - FLUX.2, Kontext, Qwen-Image-Edit": train_edit,
    "Train a LoRA of several concepts - kept apart": train_concepts,
    "Train a LoRA on a distilled model - Turbo, schnell": train_distilled,
    "Repair a LoRA - health, block weights": repair,
    "Train a slider LoRA - prompts, no pictures": train_slider,
}
