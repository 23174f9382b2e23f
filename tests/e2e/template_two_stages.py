"""The templates of systems of two stages."""

from __future__ import annotations

from typing import Any

from e2e.template_nodes import LORAS, Link, Node, note

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
