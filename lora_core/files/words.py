"""The words that call a LoRA up, as its header tells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .nested import table_of, value_of

_MOST_TOPS = 3  # tags that share the first place; of more, none is the trigger


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Those that the header names, else those that it suggests."""
    return named_words(metadata) or suggested_words(metadata)


def named_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """`modelspec.trigger_phrase` or trained words."""
    keys = ("modelspec.trigger_phrase", "trained_words", "ss_trained_words", "ss_trigger_words")
    return next(filter(None, (unique(listed(metadata.get(key, ""))) for key in keys)), ())


def suggested_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the tags of `ss_tag_frequency` that every caption of a folder has."""
    return unique(_tops(table_of(metadata.get("ss_tag_frequency", ""))))


def unique(words: Iterable[str]) -> tuple[str, ...]:
    """Without doubles, whatever the case, in the order of their first."""
    found: dict[str, str] = {}
    for word in words:
        if word.strip():
            found.setdefault(word.strip().casefold(), word.strip())
    return tuple(found.values())


def listed(text: str) -> list[str]:
    """Words of a JSON list or of a text with commas."""
    read = value_of(text) if text.lstrip().startswith("[") else None
    if isinstance(read, list):
        return [word for each in read if isinstance(each, str) for word in each.split(",")]
    return text.split(",")


def _tops(folders: Mapping[str, Any]) -> list[str]:
    """The most frequent tags of each folder, of {folder: {tag: count}}."""
    words: list[str] = []
    for tags in folders.values():
        counts = {tag: n for tag, n in tags.items() if isinstance(n, (int, float))} if isinstance(tags, dict) else {}
        most = max(counts.values(), default=0)
        tops = [tag for tag, count in counts.items() if count == most]
        words += tops if len(tops) <= _MOST_TOPS else []
    return words
