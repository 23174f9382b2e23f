"""Neutral prompts of a run: on what its base is asked what it does anyhow, and how much of a data set that covers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from .captions import plain, trigger_pattern
from .neutral_prompts import shipped

MOST_PROMPTS = 48
_WORDS_IN_ONE, _MOST_OF_WORDS = 3, 8  # of the captions: words of a prompt, and prompts
_WORD = re.compile(r"[^\W\d_][\w'-]*")
_SMALL = frozenset("a an and are as at by for from in is it its no of on or the their to with".split())
EMPTY, CLASS, OWN, CAPTIONS = "the empty prompt", "class words", "your own", "words of the captions"


@dataclass(frozen=True)
class Neutral:
    """Holds neutral prompts in the order in which they count, how many there are of each subject, and what was left
    out, in words. `words` of the captions were looked for, and `covered` of them are in a prompt."""

    prompts: tuple[str, ...]
    subjects: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...] = ()
    words: int = 0
    covered: int = 0

    @property
    def empty(self) -> bool:
        """Return whether nothing is left that a base would be asked of its own accord, or a person has asked."""
        return not {subject for subject, _ in self.subjects} - {EMPTY, CAPTIONS}

    def coverage(self) -> str:
        """Return what the prompts are of and how much of the captions they cover, in words."""
        named = ", ".join(subject for subject, _ in self.subjects if subject != EMPTY)
        share = f"; {self.covered / self.words:.0%} of the captions' words covered" if self.words else ""
        return f"{len(self.prompts)} neutral prompts ({named}){share}"


def neutral(
    kind: str, triggers: Iterable[str], class_words: Sequence[str] = (), captions: Iterable[str] = (),
    own: Iterable[str] = (), most: int = MOST_PROMPTS,
) -> Neutral:  # fmt: skip
    """Return the empty prompt, a person's `own`, class words, the captions' commonest words that the shipped prompts of
    this kind of base lack, and those, at most so many in all; at least half of them are shipped ones.

    What holds a trigger or comes again is left out. Raises KeyError for a kind that there is not.
    """
    patterns = [trigger_pattern(trigger) for trigger in triggers if trigger]
    wanted, usual = words_of(captions, patterns), [prompt for _, prompt in islice(shipped(kind), most)]
    known = set(_words(" ".join(usual)))
    beside = [word for word, _ in wanted.most_common() if word not in known]
    first = [(EMPTY, ""), *((OWN, text) for text in own), *((CLASS, word) for word in class_words)]
    taken, left_out = _taken([*first, *_in_prompts(beside)], patterns, most - most // 2)
    rest, further = _taken([*taken, *shipped(kind)], patterns, most)
    prompts = tuple(prompt for _, prompt in rest)
    there = set(_words(" ".join(prompts)))
    return Neutral(
        prompts, tuple(Counter(subject for subject, _ in rest).items()),
        tuple(_said(left_out + further)), len(wanted), sum(word in there for word in wanted),
    )  # fmt: skip


def words_of(captions: Iterable[str], triggers: Collection[re.Pattern[str]] = ()) -> Counter[str]:
    """Count the words of captions, small ones and triggers left out, in lower case."""
    counted: Counter[str] = Counter()
    for caption in captions:
        text = plain(caption)
        for pattern in triggers:
            text = pattern.sub(" ", text)
        counted.update(_words(text))
    return counted


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _SMALL and len(word) > 1]


def _in_prompts(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for start in range(0, len(words[: _WORDS_IN_ONE * _MOST_OF_WORDS]), _WORDS_IN_ONE):
        yield CAPTIONS, ", ".join(words[start : start + _WORDS_IN_ONE])


def _taken(
    offered: Iterable[tuple[str, str]], triggers: Collection[re.Pattern[str]], most: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """The first so many that hold no trigger and did not come before, and why others before them were left out."""
    taken: dict[str, tuple[str, str]] = {}
    left_out = []
    for subject, prompt in offered:
        text = " ".join(prompt.split())
        if any(pattern.search(text) for pattern in triggers):
            left_out.append("the trigger is in")
        elif text.casefold() in taken:
            left_out.append("listed twice") if subject in (OWN, CLASS) else None
        elif len(taken) < most:
            taken[text.casefold()] = subject, text
        elif subject in (OWN, CLASS):
            left_out.append("one too many")
    return list(taken.values()), left_out


def _said(reasons: Iterable[str]) -> Iterator[str]:
    counted = Counter(reasons)
    ends = {"the trigger is in": "with the trigger", "listed twice": "listed twice"}
    ends["one too many"] = f"beyond half of {MOST_PROMPTS}"
    for reason, end in ends.items():
        if count := counted[reason]:
            yield f"{count} neutral prompt{'s' * (count > 1)} {end} {'were' if count > 1 else 'was'} left out"
