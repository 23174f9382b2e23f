"""What a slider is made of: prompts for more and for less of something, and what they are about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..stored import stored

HOLE = "{}"  # where the neutral prompt stands in a prompt


class Texts(NamedTuple):
    """A neutral prompt, and the same with more and with less of what the slider is to move."""

    neutral: str
    more: str
    less: str


@stored("pairs guidance", tag="Slider")
@dataclass(frozen=True)
class LearnSlider:
    """To move pictures from `less` to `more`, the pairs (more, less) of prompts, `guidance` times as far at strength 1
    as the base's own answers to them lie apart."""

    name: ClassVar[str] = "a slider"
    pairs: tuple[tuple[str, str], ...]
    guidance: float

    def texts(self, neutral: str) -> Iterator[Texts]:
        """Yield those of each pair, for a neutral prompt."""
        yield from (Texts(neutral, placed(more, neutral), placed(less, neutral)) for more, less in self.pairs)


def placed(prompt: str, neutral: str) -> str:
    """Return the prompt with the neutral one where `HOLE` stands in it, else behind that."""
    if HOLE in prompt:
        return prompt.replace(HOLE, neutral)
    return f"{neutral}, {prompt}" if neutral else prompt


def pairs_of(more: Sequence[str], less: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (more, less) of lines that stand side by side; a single line stands for all of the other side. Raises
    ValueError for none, another count or lines that are the same."""
    if not more or not less:
        side = "less" if more else "more"
        raise ValueError(f"{side} has no prompt; write what pictures with {side} of it show, one per line")
    count = max(len(more), len(less))
    if not {len(more), len(less)} <= {1, count}:
        raise ValueError(
            f"more has {len(more)} prompts and less has {len(less)}; write a line of less for each line of more, or a "
            "single one for all"
        )
    pairs = tuple(zip(_as_many(more, count), _as_many(less, count), strict=True))
    for own, other in pairs:
        if own == other:
            raise ValueError(f"more and less are both '{own}', which leaves nothing to move; change one of them")
    return pairs


def _as_many(lines: Sequence[str], count: int) -> Sequence[str]:
    return lines if len(lines) == count else [*lines] * count


def said(choice: LearnSlider, prompts: Sequence[str]) -> str:
    """Return what a slider is made of, in lines of plain text; `prompts` are its neutral ones."""
    lines = [f"a slider at guidance {choice.guidance:g}, on what the base model drew of {_listed(prompts)}"]
    lines += [f"  {own.more}  <->  {own.less}" for prompt in prompts for own in choice.texts(prompt)]
    return "\n".join(lines)


def _listed(prompts: Sequence[str]) -> str:
    return ", ".join(f"'{each}'" for each in prompts) if any(prompts) else "an empty prompt"
