"""API-format graphs on the demo base, for the tests that drive a real server."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]
FOLDER = "e2e"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def base() -> Graph:
    return {
        "unet": node("UNETLoader", unet_name="loom_demo.safetensors", weight_dtype="default"),
        "clip": node("CLIPLoader", clip_name="loom_demo_words.pt", type="stable_diffusion"),
        "vae": node("VAELoader", vae_name="loom_demo_vae.safetensors"),
    }


def training(folder: str, name: str, steps: int = 6, **choices: Any) -> Graph:
    """Train on `folder` and save as `e2e/<name>` in the native format, fp32."""
    dataset = node("LoraLoom_Dataset", folder=folder, trigger="", resolution=64, repeats=1, bucket_step=16)
    settings = {
        "rank": 4, "alpha": 4.0, "learning_rate": 1e-3, "targets": "attention", "seed": 3, "batch_size": 2,
        "accumulation": 1, "run_name": name, "gradient_checkpointing": False, **choices,
    }  # fmt: skip
    train = node(
        "LoraLoom_TrainLora",
        model=["unet", 0],
        clip=["clip", 0],
        vae=["vae", 0],
        dataset=["data", 0],
        steps=steps,
        **settings,
    )
    save = node(
        "LoraLoom_SaveLora",
        adapter=["train", 2],
        model=["unet", 0],
        name=f"{FOLDER}/{name}",
        format="comfyui",
        dtype="fp32",
        overwrite=True,
    )
    return {**base(), "data": dataset, "train": train, "save": save}


def picture(model: list, clip: list, prompt: str, seed: int = 5) -> Graph:
    """Sample one small picture from `model` into node `picture`."""
    return {
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node("KSampler", model=model, positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
                        seed=seed, steps=4, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=1.0),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="e2e"),
    }  # fmt: skip


def stack(rows: dict[str, float]) -> Graph:
    """Load LoRA Stack with up to four files at their strengths, and a picture with it."""
    fields: dict[str, Any] = {}
    for number, (name, strength) in enumerate([*rows.items(), *[("None", 1.0)] * 4][:4], 1):
        fields |= {f"lora_{number}": name, f"strength_{number}": strength, f"text_strength_{number}": strength}
    loader = node("LoraLoom_LoadLoraStack", model=["unet", 0], clip=["clip", 0], **fields)
    return {**base(), "stack": loader, **picture(["stack", 0], ["stack", 1], "a red heart on a white background")}
