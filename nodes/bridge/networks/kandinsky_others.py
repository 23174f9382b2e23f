"""Names the networks that may be taken for those of Kandinsky 2.2, so that a loader can say which one a file has."""

from __future__ import annotations

from .kandinsky_decoder import HINT, LATENT
from .kandinsky_prior import EARLIER, embedding_width
from .parts import Shapes

_BY_NAME = {  # a weight that no other of them has
    "add_embedding.text_proj.weight": "the decoder of Kandinsky 2.1",
    HINT: "the ControlNet decoder of Kandinsky 2.2",
    "encoder_hid_proj.projection_linear.weight": "Kandinsky 3",
    "visual_embeddings.in_layer.weight": "Kandinsky 5",
}


def unlike(shapes: Shapes) -> str:
    """Return what a file is that has these weights, without a prefix; empty for any that is no kin of Kandinsky 2.2."""
    for name, told in _BY_NAME.items():
        if name in shapes:
            return told
    if "prd_embedding" in shapes and embedding_width(shapes) == EARLIER:
        return "the prior of Kandinsky 2.1"
    if "add_embedding.image_norm.weight" in shapes and shapes.get("conv_in.weight", (0, LATENT))[1] != LATENT:
        return "the inpainting decoder of Kandinsky 2.2"
    return ""
