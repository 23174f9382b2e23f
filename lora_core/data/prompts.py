"""Prompts with a concept's trigger word, and the same without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .captions import preserved_captions, with_trigger


def lines(text: str) -> tuple[str, ...]:
    """Return one prompt per line that is not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def without_trigger(prompt: str, trigger: str, word: str = "") -> str:
    """Return the prompt with the class word in the trigger's place, or with nothing there; led by the class word where
    the trigger would have been put in front."""
    if not trigger:
        return prompt
    (replaced,) = preserved_captions(with_trigger(prompt, trigger), trigger, [word])
    return ", ".join(part for part in (" ".join(part.split()) for part in replaced.split(",")) if part)


def pairs(prompts: Iterable[str], triggers: Sequence[str], word: str = "") -> list[tuple[str, ...]]:
    """Return each prompt in two kinds, with and without the trigger it holds or else the first; in one kind when there
    is no trigger."""
    if not triggers:
        return [(prompt,) for prompt in prompts]
    held = {prompt: next((t for t in triggers if with_trigger(prompt, t) == prompt), triggers[0]) for prompt in prompts}
    return [(with_trigger(prompt, t), without_trigger(prompt, t, word)) for prompt, t in held.items()]
