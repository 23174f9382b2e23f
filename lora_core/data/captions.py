"""Captions: the trigger in them, the words that stand in for it, and other orders of their tags."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import torch

_WEIGHT = re.compile(r"\([^()]*:\s*[\d.]+\s*\)|\(\(")


def literal(text: str) -> str:
    """The prompt that is read as this very text: ComfyUI takes parentheses for weights unless they are escaped, and an
    escaped one means the same here."""
    return re.sub(r"\\?([()])", r"\\\1", text)


def plain(text: str) -> str:
    """Return the text without the escapes of `literal`."""
    return re.sub(r"\\([()])", r"\1", text)


def has_bare(text: str) -> bool:
    """Return whether ComfyUI would read parentheses in it as weights."""
    return bool(re.search(r"(?<!\\)[()]", text))


def has_weights(text: str) -> bool:
    """Return whether it is written as prompts are, with `(word:1.2)` or doubled parentheses."""
    return bool(_WEIGHT.search(text))


def clean_trigger(text: str) -> str:
    """As it is looked for in captions: without what a paste leaves at its ends, on one line."""
    return " ".join(text.split()).strip(" ,\u3001\uff0c\u200b\u2060\ufeff")


def trigger_pattern(trigger: str) -> re.Pattern[str]:
    """Return the trigger as a whole word, in any case, its parentheses escaped or not."""
    found = "".join(rf"\\?\{each}" if each in "()" else re.escape(each) for each in plain(trigger))
    return re.compile(rf"(?<!\w){found}(?!\w)", re.IGNORECASE)


def with_trigger(caption: str | None, trigger: str) -> str:
    """The caption, led by the trigger unless it already holds it as a word of its own, in any case."""
    if not trigger or (caption and trigger_pattern(trigger).search(caption)):
        return caption or ""
    return f"{trigger}, {caption}" if caption else trigger


def preserved_captions(caption: str, trigger: str, words: Sequence[str]) -> list[str]:
    """Return the caption once for each word, with the word in the trigger's place."""
    if not trigger:
        return [caption for _ in words]
    return [trigger_pattern(trigger).sub(lambda _, word=word: word, caption) for word in words]


def tags(caption: str) -> list[str]:
    return [tag for part in caption.split(",") if (tag := part.strip())]


def shuffled(caption: str, keep: int, count: int) -> tuple[str, ...]:
    """The caption and up to `count - 1` other orders of its tags; the first `keep` tags stay where they are.

    The orders depend on the caption alone. There are fewer when it has not as many.
    """
    found, whole = {tuple(tags(caption)): caption}, tags(caption)
    kept, rest = whole[:keep], whole[keep:]
    most = min(count, math.factorial(min(len(rest), 12)))
    draw = torch.Generator().manual_seed(int(hashlib.sha256(caption.encode()).hexdigest()[:15], 16))
    for _ in range(20 * count):
        if len(found) >= most:
            break
        order = (*kept, *(rest[i] for i in torch.randperm(len(rest), generator=draw).tolist()))
        found.setdefault(order, ", ".join(order))
    return tuple(found.values())
