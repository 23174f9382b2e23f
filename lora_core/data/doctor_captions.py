"""Examines captions: their length, broken characters, tags and triggers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .captions import tags, trigger_pattern

CLIP_TOKENS = 75
_JUNK = re.compile(
    "\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]|\u00ef\u00bf\u00bd|&(?:amp|quot|#\\d+);"
)


def tokens(caption: str) -> int:
    """About how many tokens CLIP makes of it: 1.3 per word, and one per mark."""
    return round(1.3 * len(re.findall(r"\w+", caption))) + len(re.findall(r"[^\w\s]", caption))


def has_junk(caption: str) -> bool:
    """Text that was read in another encoding than it was written in, or left as HTML."""
    return bool(_JUNK.search(caption))


def trigger_inside(caption: str, trigger: str) -> str:
    """Return the first longer word that contains the trigger; empty when there is none."""
    if not trigger:
        return ""
    name = re.escape(trigger)
    found = re.search(rf"\w+{name}\w*|{name}\w+", trigger_pattern(trigger).sub(" ", caption), re.IGNORECASE)
    return found[0] if found else ""


def repeated_tags(caption: str) -> list[str]:
    return [tag for tag, count in Counter(tag.lower() for tag in tags(caption)).items() if count > 1]


def tag_counts(captions: Sequence[str], triggers: Sequence[str]) -> Counter[str]:
    """In how many captions each tag is, the triggers left out."""
    skipped = {trigger.lower() for trigger in triggers}
    return Counter(tag for caption in captions for tag in {t.lower() for t in tags(caption)} - skipped)


def are_tags(captions: Sequence[str]) -> bool:
    """Return whether they are lists of short tags rather than sentences."""
    lists = [tags(caption) for caption in captions]
    found = [tag for each in lists for tag in each]
    return len(found) >= 4 * len(lists) and sum(len(tag.split()) for tag in found) <= 3 * len(found)
