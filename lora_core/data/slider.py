"""Describes a slider: prompts for more and for less of something, and what they are about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..stored import stored

HOLE = "{}"  # where more and less stand in a neutral prompt


class Texts(NamedTuple):
    """A neutral prompt, and the same with more and with less of what the slider is to move."""

    neutral: str
    more: str
    less: str


@stored("prompts guidance", tag="Slider")
@dataclass(frozen=True)
class LearnSlider:
    """To move pictures of each neutral prompt from less to more, `guidance` times as far at strength 1 as the base's
    own answers lie apart; `prompts` are (neutral, more, less)."""

    name: ClassVar[str] = "slider prompts"
    prompts: tuple[tuple[str, str, str], ...]
    guidance: float

    @property
    def neutral(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(own[0] for own in self.prompts))

    def texts(self, neutral: str) -> Iterator[Texts]:
        """Yield those of a neutral prompt."""
        yield from (Texts(*own) for own in self.prompts if own[0] == neutral)

    def report(self) -> str:
        """Return what is compared, in lines of plain text."""
        drawn = ", ".join(f"'{each}'" for each in self.neutral) if any(self.neutral) else "an empty prompt"
        lines = [f"a slider at guidance {self.guidance:g}, on what the base model drew of {drawn}"]
        return "\n".join(lines + [f"  {more}  <->  {less}" for _, more, less in self.prompts])


def slider_of(neutral: Sequence[str], more: Sequence[str], less: Sequence[str], guidance: float) -> LearnSlider:
    """Return the slider of prompts, a line each: every pair of more and less with every neutral prompt, or alone where
    there is none. Raises ValueError for lines that make no pairs."""
    pairs = pairs_of(more, less)
    found = (_texts(line, more, less) for line in neutral or ("",) for more, less in pairs)
    return LearnSlider(tuple((own.neutral, own.more, own.less) for own in found), guidance)


def _texts(line: str, more: str, less: str) -> Texts:
    """Put both in the hole of the line, or behind it."""
    if HOLE in line:
        neutral, more, less = (" ".join(line.replace(HOLE, each).split()) for each in ("", more, less))
        return Texts(neutral, more, less)
    return Texts(line, f"{line}, {more}", f"{line}, {less}") if line else Texts("", more, less)


def pairs_of(more: Sequence[str], less: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (more, less) of lines that stand side by side; a single line stands for all of the other side. Raises
    ValueError for none, another count or lines that are the same."""
    if not more or not less:
        side = "less" if more else "more"
        cure = "" if more or less else ", or connect more_pictures and less_pictures"
        raise ValueError(f"{side} has no prompt; write what pictures with {side} of it show, one per line{cure}")
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
