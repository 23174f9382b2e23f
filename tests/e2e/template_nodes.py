"""What the descriptions of templates are made of: nodes, notes, and models with where they are had."""

from __future__ import annotations

from dataclasses import dataclass, field
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


def loaded_stack() -> Node:
    return Node("LoraLoom_LoadLoraStack", (370, 0), {}, {"model": MODEL, "clip": CLIP}, size=(400, 380))
