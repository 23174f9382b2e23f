"""Captions of different lengths in one forward: padded to one length, and no attention looks at the padding.

Exact, in value and gradient, for networks in which text tokens meet each other in nothing but attention. Which do, and
on which side they take padding, is `captions` of the family's row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any, cast

import comfy.conds
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_base import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from ....lora_core.training.steps import brought

Conditions = dict[str, comfy.conds.CONDRegular]
TEXT = "c_crossattn"
_REFERENCES = "ref_latents"
_OF_TEXT = (TEXT, "num_tokens", "t5xxl_ids", "t5xxl_weights")


def groups(conditions: list[Conditions], how: str, base_model: BaseModel, shape: torch.Size) -> list[list[int]]:
    """Indices of the conditions that can share a forward, for latents of `shape`: all of them where `how`, the family's
    `captions`, has a way, and no reference picture lengthens the sequence; else those of equal sizes."""
    rest = [{name: cond for name, cond in condition.items() if name not in _OF_TEXT} for condition in conditions]
    plain = all(_REFERENCES not in condition for condition in conditions)
    if how and plain and _alike(rest) and not _fills_pictures(base_model, shape):
        return [list(range(len(conditions)))]
    by_size: dict[tuple, list[int]] = {}
    for index, condition in enumerate(conditions):
        by_size.setdefault(_size(condition, _step(base_model)), []).append(index)
    return list(by_size.values())


@dataclass(frozen=True)
class Joined:
    """The conditions of one forward.

    `seen`: (batch, places), false where no attention may look; None: nothing to hide. `blank`: (batch, places), true
    where the network's own padding token belongs. `pictures`: how many tokens of a sequence can be the picture's.
    """

    conditions: list[Conditions]
    seen: Tensor | None = None
    blank: Tensor | None = None
    pictures: frozenset[int] = frozenset()
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def attention(
        self, _chosen: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *args: Any,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Return an override of ComfyUI's attention for `seen`. Text is all of the keys, or their beginning."""
        seen = cast(Tensor, self.seen)
        more = (k.shape[-2] if kwargs.get("skip_reshape") else k.shape[1]) - seen.shape[1]
        is_text = more == 0 or (more in self.pictures and more + seen.shape[1] not in self.pictures)
        if len(k) == len(seen) and is_text:
            mask = self._mask(more)
        return attention_pytorch(q, k, v, heads, mask, *args, **kwargs)

    def _mask(self, more: int) -> Tensor:
        """`seen` for keys that go on with `more` places, made once for all attentions of the forward."""
        if more not in self._masks:
            self._masks[more] = functional.pad(cast(Tensor, self.seen), (0, more), value=True)[:, None, None]
        return self._masks[more]

    @contextmanager
    def filled(self, network: nn.Module) -> Iterator[None]:
        """Z-Image fills captions up to a multiple of 32 with a learned token: put it where it is due."""
        blank, own = self.blank, cast(Any, network)
        if blank is None:
            yield
            return

        def fill(_module: nn.Module, _args: tuple, tokens: Tensor) -> Tensor:
            return torch.where(blank[..., None], own.cap_pad_token.to(tokens), tokens)

        hook = own.cap_embedder.register_forward_hook(fill)
        try:
            yield
        finally:
            hook.remove()


def join(
    conditions: list[Conditions], how: str, base_model: BaseModel, shape: torch.Size, device: torch.device
) -> Joined:
    """Return a group of `groups`, with texts of one length: with padding, not repeated as ComfyUI does for some
    families.

    Texts stay where ComfyUI left them, often in RAM; the masks are made on the `device` of the forward.
    """
    if _alike(conditions):
        return Joined(conditions)
    if how == "adapter":
        conditions = _adapted(conditions, base_model, device)
    step, pictures = _step(base_model), _picture_lengths(shape, _step(base_model))
    texts = [condition[TEXT].cond for condition in conditions]
    lengths = [text.shape[1] for text in texts]
    whole = [ceil(length / step) * step for length in lengths]
    places = _places(max(whole), step, pictures) if len(set(whole)) > 1 else max(whole)
    starts = [places - size if how == "left" else 0 for size in whole]
    seen = [range(start, start + size) for start, size in zip(starts, whole, strict=True)]
    blank = [range(start + length, own.stop) for start, length, own in zip(starts, lengths, seen, strict=True)]
    texts = [_between(text, start, places) for text, start in zip(texts, starts, strict=True)]
    return Joined(
        [_with_text(condition, text) for condition, text in zip(conditions, texts, strict=True)],
        _within(seen, places, device) if min(whole) < places else None,
        _within(blank, places, device) if any(blank) else None,
        pictures,
    )


def _within(spans: list[range], places: int, device: torch.device) -> Tensor:
    """(batch, places) on the device: whether a place lies in that row's span."""
    return torch.tensor([[place in span for place in range(places)] for span in spans], device=device)


def _alike(conditions: list[Conditions]) -> bool:
    """Whether they concatenate as they are."""
    first, *others = conditions
    return all(first.keys() == other.keys() and all(_same(first[n], other[n]) for n in first) for other in others)


def _same(a: comfy.conds.CONDRegular, b: comfy.conds.CONDRegular) -> bool:
    if isinstance(a, comfy.conds.CONDCrossAttn):
        return a.cond.shape == b.cond.shape
    return a.can_concat(b)


def _size(condition: Conditions, step: int) -> tuple:
    """Equal for conditions that `join` can join. With a step, texts may differ up to the next multiple of it."""
    sizes: dict[str, Any] = {name: _shapes(cond.cond) for name, cond in condition.items()}
    if step > 1 and TEXT in sizes:
        batch, length, width = sizes[TEXT]
        sizes[TEXT] = (batch, ceil(length / step) * step, width)
    return tuple(sizes.items())


def _shapes(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_shapes, value))
    return tuple(value.shape) if torch.is_tensor(value) else 0


def _step(base_model: BaseModel) -> int:
    return getattr(base_model.diffusion_model, "pad_tokens_multiple", None) or 1


def _fills_pictures(base_model: BaseModel, shape: torch.Size) -> bool:
    """Whether Z-Image fills up the picture, too: with tokens that have a place of their own, whatever the caption's."""
    step = _step(base_model)
    patch = cast(int, base_model.diffusion_model.patch_size) if step > 1 else 1
    return step > 1 and ceil(shape[-2] / patch) * ceil(shape[-1] / patch) % step > 0


def _adapted(conditions: list[Conditions], base_model: BaseModel, device: torch.device) -> list[Conditions]:
    """Anima's network reads captions with an adapter of its own, which is part of what is trained: that done."""
    network: Any = base_model.diffusion_model
    dtype, read = base_model.get_dtype_inference(), (TEXT, "t5xxl_ids", "t5xxl_weights")
    copies = [comfy.samplers.cond_cat([condition]) for condition in conditions]
    tensors = brought([copy[name] for copy in copies for name in read], device)
    adapted = []
    for condition, text, ids, weights in zip(conditions, tensors[::3], tensors[1::3], tensors[2::3], strict=True):
        text = network.preprocess_text_embeds(text.to(dtype), ids, weights.to(dtype))
        rest = {name: cond for name, cond in condition.items() if name not in _OF_TEXT}
        adapted.append(rest | {TEXT: comfy.conds.CONDRegular(text)})
    return adapted


def _with_text(condition: Conditions, text: Tensor) -> Conditions:
    """Lumina 2 is told the number of tokens, and makes nothing of it."""
    told = {"num_tokens": comfy.conds.CONDConstant(text.shape[1])} if "num_tokens" in condition else {}
    return condition | told | {TEXT: comfy.conds.CONDRegular(text)}


def _between(text: Tensor, start: int, places: int) -> Tensor:
    return functional.pad(text, (0, 0, start, places - start - text.shape[1]))


def _picture_lengths(shape: torch.Size, step: int) -> frozenset[int]:
    """Return how many tokens latents (batch, channels, [frames,] height, width) can be, at any patch size."""
    *frames, height, width = shape[2:]
    plain = {prod(frames) * ceil(height / 2**level) * ceil(width / 2**level) for level in range(8)}
    return frozenset(plain | {ceil(count / step) * step for count in plain})


def _places(least: int, step: int, pictures: frozenset[int]) -> int:
    """The first length, in steps, with which no sequence with text is as long as one without."""
    places = least
    while places in pictures or any(places + count in pictures for count in pictures):
        places += step
    return places
