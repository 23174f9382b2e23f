"""The templates that ship, described by their nodes, widget values and links; `build_workflows.py` makes files of them.

What is not said here is a node's own default. The name of a file is all that the Templates dialog shows and searches,
and it finds words only in about the first 33 letters; so what people type comes first. Newer front ends look for words
by how they begin, a bracket included; so no word begins with one.
"""

from __future__ import annotations

from e2e.template_judge import files, judge, publish, repair
from e2e.template_train import (
    train_checkpoint,
    train_concepts,
    train_diffusion_model,
    train_distilled,
    train_edit,
    train_preference,
    train_slider,
)
from e2e.template_two_stages import kandinsky, wuerstchen
from e2e.template_use import merge, regions, stack

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
    "LoRA files - format, resize, passport": files,
}
