"""The prior of Kandinsky 2.2: a transformer that makes a CLIP image embedding of a CLIP text.

The architecture is that of unCLIP (Ramesh et al. 2022, arXiv 2204.06125), as diffusers' PriorTransformer has it;
weights have the names of the published file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Attention, Layers, Options, Shapes, TimeEmbedding, like, numbered

_SIGNS = ("clip_mean", "positional_embedding", "prd_embedding")
_BESIDE = 4  # tokens that follow the words: pooled text, time, noisy image embedding, and the one that is read
_HIDDEN = -10000.0
EARLIER = 768  # width of the embeddings of Kandinsky 2.1's prior, which has the same names


def config(shapes: Shapes) -> dict[str, Any] | None:
    """Return the keywords of `KandinskyPrior` for a file with these weights, None for one of another network."""
    if not all(name in shapes for name in _SIGNS) or embedding_width(shapes) == EARLIER:
        return None
    _, tokens, width = shapes["positional_embedding"]
    return {
        "width": width,
        "depth": numbered(shapes, "transformer_blocks."),
        "embed": embedding_width(shapes),
        "words": tokens - _BESIDE,
    }


def embedding_width(shapes: Shapes) -> int:
    """Return how many numbers the image embedding has that a prior makes; 0 for what is no prior."""
    return shapes.get("clip_mean", (0,))[-1]


class KandinskyPrior(nn.Module):
    """Predicts the clean image embedding, in units of the noise: (it - clip_mean) / clip_std of the file.

    `width` numbers per token, `depth` blocks, `embed` numbers in an embedding, `words` tokens of text.
    """

    def __init__(
        self,
        *,
        width: int = 2048,
        depth: int = 20,
        embed: int = 1280,
        words: int = 77,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        layers = Layers(operations, dtype, device)
        self.time_embedding = TimeEmbedding(width, width, layers)
        self.proj_in = layers.linear(embed, width)
        self.embedding_proj = layers.linear(embed, width)
        self.encoder_hidden_states_proj = layers.linear(embed, width)
        self.positional_embedding = layers.parameter(1, words + _BESIDE, width)
        self.prd_embedding = layers.parameter(1, 1, width)
        self.transformer_blocks = nn.ModuleList(_Block(width, layers) for _ in range(depth))
        self.norm_out = layers.layer_norm(width)
        self.proj_to_clip_embeddings = layers.linear(width, embed)
        self.clip_mean = layers.parameter(1, embed)  # not used here: they are of the latent format
        self.clip_std = layers.parameter(1, embed)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        attention_mask: Tensor | None = None,
        transformer_options: Options | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the image embeddings, shaped as `x`, (batch, embed, 1, 1).

        `context` (batch, words, embed) is CLIP's last hidden state after its final norm, `y` (batch, embed) the text
        embedding, `attention_mask` (batch, words) 0 where the text is padded. Raises ValueError for a latent of more
        than one pixel.
        """
        if x.shape[2:].numel() != 1:
            raise ValueError(
                "the prior of Kandinsky 2.2 makes a single embedding, a latent of 1 x 1, but was given one of "
                f"{x.shape[-1]} x {x.shape[-2]}; use the empty latent that is made for it"
            )
        tokens = self._tokens(x.flatten(1), timesteps, context, y)
        mask = _mask(tokens, attention_mask)
        for block in self.transformer_blocks:
            tokens = block(tokens, mask, transformer_options or {})
        return self.proj_to_clip_embeddings(self.norm_out(tokens)[:, -1]).reshape(x.shape)

    def _tokens(self, embedding: Tensor, timesteps: Tensor, context: Tensor, y: Tensor) -> Tensor:
        single = (self.embedding_proj(y), self.time_embedding(timesteps, embedding.dtype), self.proj_in(embedding))
        words = self.encoder_hidden_states_proj(context)
        read = like(self.prd_embedding, words).expand(len(words), -1, -1)
        tokens = torch.cat([words, torch.stack(single, 1), read], 1)
        return tokens + like(self.positional_embedding, tokens)


class _Block(nn.Module):
    def __init__(self, width: int, layers: Layers) -> None:
        super().__init__()
        self.norm1 = layers.layer_norm(width)
        self.attn1 = _SelfAttention(width, layers)
        self.norm3 = layers.layer_norm(width)
        self.ff = _FeedForward(width, layers)

    def forward(self, tokens: Tensor, mask: Tensor, options: Options) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens), mask, options)
        return tokens + self.ff(self.norm3(tokens))


class _SelfAttention(Attention):
    def forward(self, tokens: Tensor, mask: Tensor, options: Options) -> Tensor:
        return self.attend(tokens, self.to_k(tokens), self.to_v(tokens), mask, options)


class _FeedForward(nn.Module):
    def __init__(self, width: int, layers: Layers) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Gelu(width, 4 * width, layers), nn.Identity(), layers.linear(4 * width, width)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net[2](self.net[0](tokens))


class _Gelu(nn.Module):
    def __init__(self, inner: int, outer: int, layers: Layers) -> None:
        super().__init__()
        self.proj = layers.linear(inner, outer)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.gelu(self.proj(tokens))


def _mask(tokens: Tensor, words: Tensor | None) -> Tensor:
    """Return what is added to attention: a token sees none that come later, nor padded words."""
    count = tokens.shape[1]
    mask = torch.full((1, count, count), _HIDDEN, device=tokens.device, dtype=tokens.dtype).triu(1)
    if words is None:
        return mask
    padded = functional.pad((1 - words.to(tokens)) * _HIDDEN, (0, _BESIDE))
    return mask + padded[:, None]
