"""The VQGAN of Wuerstchen v2: pictures to latents of one pixel for 4 x 4, and back (Paella, arXiv 2211.07292).

It is stage A of Stable Cascade under almost the same names, so ComfyUI has it: `comfy.ldm.cascade.stage_a.StageA`.
Wuerstchen's latents are what it decodes divided by SCALE.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

SCALE = 0.3764  # PaellaVQModel's scale_factor

_CODEBOOK = "vquantizer.embedding.weight", "vquantizer.codebook.weight"  # in diffusers, in ComfyUI


def stage_a(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of diffusers' PaellaVQModel, as published, in StageA's names; those of StageA stay."""
    ours, theirs = _CODEBOOK
    return {theirs if name == ours else name: weight for name, weight in weights.items()}


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Return the keywords of StageA for weights of these shapes by name, in either spelling; None if they are another
    network's. Stable Cascade's stage A is this network, too."""
    codebook = next((shapes[name] for name in _CODEBOOK if name in shapes), None)
    if codebook is None or "in_block.1.weight" not in shapes:
        return None
    width = max(shape[0] for name, shape in shapes.items() if name.startswith("down_blocks.") and len(shape) == 4)
    blocks = sum(name.startswith("up_blocks.") and name.endswith("gammas") for name in shapes)
    levels = sum(name.startswith("down_blocks.") and name.endswith("gammas") for name in shapes)
    return {
        "levels": levels,
        "bottleneck_blocks": blocks - (levels - 1),
        "c_hidden": width,
        "c_latent": codebook[1],
        "codebook_size": codebook[0],
    }
