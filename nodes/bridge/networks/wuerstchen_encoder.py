"""The encoder of Wuerstchen v2's prior: EfficientNetV2-s and a projection, from 32 x 32 pixels to one of a latent.

It is the stage C encoder of Stable Cascade but for the norm at its end, which has weights here. They can as well be
part of the projection before it, so ComfyUI has it: `comfy.ldm.cascade.stage_c_coder.EfficientNetEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_EPS = 1e-5  # of BatchNorm2d
_PROJECTION, _MEAN, _VARIANCE = "mapper.0.weight", "mapper.1.running_mean", "mapper.1.running_var"
_GAIN, _SHIFT = "mapper.1.weight", "mapper.1.bias"


def cascade_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights (`effnet_state_dict` of model_v2_stage_b.pt, or OneTrainer's effnet_encoder) as those of
    ComfyUI's EfficientNetEncoder, which computes the same; those that are Stable Cascade's already stay."""
    if _GAIN not in weights:
        return dict(weights)
    gain, shift = weights[_GAIN], weights[_SHIFT]
    deviation = (weights[_VARIANCE] + _EPS).sqrt()
    folded = {
        _PROJECTION: weights[_PROJECTION] * gain[:, None, None, None],
        _MEAN: weights[_MEAN] * gain - shift * deviation,
    }
    return {name: weight for name, weight in weights.items() if name not in (_GAIN, _SHIFT)} | folded


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Return the keywords of EfficientNetEncoder for weights of these shapes by name; None if they are another
    network's, Stable Cascade's among them, whose last norm has no weights."""
    if "backbone.0.0.weight" not in shapes or _GAIN not in shapes:
        return None
    return {"c_latent": shapes[_PROJECTION][0]}
