"""Names that the layers of an attention have, in the networks of all families as ComfyUI builds them.

Whoever looks for such layers goes by this table: what is trained as attention, and whose rows and columns are heads.
"""

from __future__ import annotations

LEAVES = {
    "q": ("to_q", "q", "wq", "q_proj", "to_query", "add_q_proj", "to_q_t"),
    "k": ("to_k", "k", "wk", "k_proj", "to_key", "add_k_proj", "to_k_t"),
    "v": ("to_v", "v", "wv", "v_proj", "to_value", "add_v_proj", "to_v_t"),
    "o": (
        "to_out.0", "to_out", "proj", "out", "o", "wo", "o_proj", "output_proj", "out_proj", "out_layer", "to_add_out",
        "to_out_t",
    ),
    "qkv": ("to_qkv", "qkv"),
}  # fmt: skip
"""The ends of names by what the layers are: the queries', keys', values' and output's, and the first three in one."""

HOME = r"\w*(?:attn\d?|attentions?)"
"""A pattern of what an attention is called in its block."""

SINGLE = r"single_blocks\.\d+"
"""A pattern of FLUX's blocks whose attention and feed-forward share two layers, `linear1` and `linear2`."""


def leaf(*roles: str) -> str:
    """Return a pattern of the names of these roles, of all of them unless given."""
    names = [name for role in roles or LEAVES for name in LEAVES[role]]
    return "|".join(name.replace(".", r"\.") for name in names)
