"""Models that were distilled to few steps, which a LoRA should be used on but not trained on, told by their names."""

from __future__ import annotations

import re

_WORDS = (
    r"turbo|lightning|schnell|flash|lcm|dmd2?|causvid|lightx2v|self[-_ ]?forcing|distil(l|led)?(?=\d|[^a-z]|$)"
    r"|hyper[-_ ]?(sd|flux|xl|sdxl|chroma)|\d{1,2}[-_ ]?steps?|klein(?!.*base)"
)
_FEW_STEPS = re.compile(rf"(?<![a-z0-9])({_WORDS})(?![a-z])")
_UNDONE = re.compile(r"\b(de|un)[-_ ]?(turbo|distill)|[-_ ](de|un)[-_ ]?(turbo|distill)|open ?flux")


def few_step_mark(*names: str) -> str:
    """The part of a model's file or class name that says it was distilled to few steps; empty when there is none.

    There is none when a name says that the distillation was undone ("de-turbo", "undistilled").
    """
    texts = [_words(name) for name in names]
    if any(_UNDONE.search(text) for text in texts):
        return ""
    return next((found[1] for text in texts if (found := _FEW_STEPS.search(text))), "")


def _words(name: str) -> str:
    """The name of a file without folder and ending, in small letters, with a space where CamelCase has a capital."""
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", stem).lower()
