"""Makes by hand, from CONDITIONING, what each diffusion network takes besides the noisy latent and the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from torch import Tensor
from torch.nn import functional

Options = dict[str, Any]
GUIDANCE = torch.tensor([2.5])


def arguments(model: Any, text: Tensor, options: Options, latent: Tensor) -> Options:
    """Keyword arguments for the network of a BaseModel; `latent` (channels, ..., height, width)."""
    return _ARGUMENTS.get(type(model).__name__, _text)(text, options, latent)


def seen(model: Any, latent: Tensor) -> Tensor:
    """The noisy latent with the channels that come beside it: Kandinsky 5 for clips could go on from a picture."""
    more = 17 if type(model).__name__ == "Kandinsky5" else 0
    return torch.cat([latent, torch.zeros_like(latent[:1]).expand(more, *latent.shape[1:])])


def _text(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text}


def _flux(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text, "y": options["pooled_output"], "guidance": GUIDANCE}


def _anima(text: Tensor, options: Options, latent: Tensor) -> Options:
    """The network's own adapter reads the caption again, as T5 would."""
    ids, weights = options["t5xxl_ids"], options["t5xxl_weights"]
    return {"context": text, "t5xxl_ids": ids[None], "t5xxl_weights": weights[None, :, None]}


def _cascade(text: Tensor, options: Options, latent: Tensor) -> Options:
    """Without a picture among the conditions."""
    picture = torch.zeros(1, 1, 768)
    return {"clip_text": text, "clip_text_pooled": options["pooled_output"], "clip_img": picture}


def _cascade_b(text: Tensor, options: Options, latent: Tensor) -> Options:
    prior = options.get("stable_cascade_prior", torch.zeros(1, 16, 1, 1))
    return {"clip": options["pooled_output"], "effnet": prior, "sca": torch.zeros(1)}


def _kandinsky22_prior(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text, "y": options["pooled_output"], "attention_mask": options["attention_mask"]}


def _kandinsky22_decoder(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"y": options["kandinsky_image_embedding"].flatten(1)}


def _hidream(text: Tensor, options: Options, latent: Tensor) -> Options:
    return _pooled(text, options, latent) | {"encoder_hidden_states_llama3": options["conditioning_llama3"]}


def _masked(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text, "attention_mask": options["attention_mask"]}


def _chroma(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text, "guidance": GUIDANCE}


def _flux2(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": functional.pad(text, (0, 0, 512 - text.shape[1], 0)) if text.shape[1] < 512 else text}


def _lumina(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text, "num_tokens": text.shape[1]}


def _pooled(text: Tensor, options: Options, latent: Tensor) -> Options:
    return {"context": text, "y": options["pooled_output"]}


def _sdxl(text: Tensor, options: Options, latent: Tensor) -> Options:
    """Original size, crop and target size of a picture that is used whole (Podell et al. 2023, section 2.2)."""
    height, width = (8.0 * side for side in latent.shape[-2:])
    sizes = timestep_embedding(torch.tensor([height, width, 0.0, 0.0, height, width]), 256)
    return {"context": text, "y": torch.cat([options["pooled_output"], sizes.view(1, -1)], 1)}


_ARGUMENTS: dict[str, Callable[[Tensor, Options, Tensor], Options]] = {
    "Flux": _flux,
    "Flux2": _flux2,
    "Anima": _anima,
    "Chroma": _chroma,
    "HiDream": _hidream,
    "Kandinsky5": _pooled,
    "Kandinsky5Image": _pooled,
    "LTXV": _masked,
    "Lumina2": _lumina,
    "PriorModel": _kandinsky22_prior,
    "DecoderModel": _kandinsky22_decoder,
    "SD3": _pooled,
    "SDXL": _sdxl,
    "StableCascade_B": _cascade_b,
    "StableCascade_C": _cascade,
}
