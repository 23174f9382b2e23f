"""Words what LoRA Report suggests: the strength to use a LoRA at, and which part of its blocks to leave out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..drawing.measure import Cell, Curve, Line, Table
from ..percent import whole_percent
from ..training.strengths import StrengthCurve, StrengthPoint

_KEPT, _SPARED = 0.95, 0.1  # of the concept, and of what else changes, so that a part is worth leaving out
_BETWEEN = 0.75  # the strength that is told of where none is suggested


@dataclass(frozen=True)
class Without:
    """Says what is left at strength 1 without a part, by the text that names its blocks, as shares of what there is
    with it."""

    part: str
    concept: float
    leak: float


@dataclass(frozen=True)
class Suggestion:
    """Holds the curve of a LoRA, and what is left without each part of its blocks. `seen` tells that the concept was
    looked for in pictures; without, the change of prompts with the trigger stands for it, of which nobody knows how
    much is wanted."""

    curve: StrengthCurve
    parts: tuple[Without, ...] = ()
    seen: bool = True

    @property
    def suggested(self) -> StrengthPoint | None:
        return self.curve.suggested() if self.seen else None

    @property
    def hint(self) -> str:
        """Return the sentence for the header; empty where nothing is suggested."""
        return self.curve.sentence() if self.suggested else ""

    def strength_sentence(self) -> str:
        """Return the strength to use, or why none is suggested."""
        if self.suggested:
            return f"{self.hint}."
        if self.seen:
            return "No strength is suggested: at 1 the LoRA is no nearer to the pictures of the data set."
        unseen = "No strength is suggested without pictures of the concept; connect them as dataset."
        if not self.curve.points:
            return unseen
        point = next(each for each in self.curve.points if each.strength == _BETWEEN)
        return (
            f"{unseen} At {point.strength:g}, prompts with the trigger change by {whole_percent(point.concept)} of "
            f"what they do at 1, neutral ones by {whole_percent(point.leak)}."
        )

    def parts_sentence(self) -> str:
        """Return the part to leave out, or that there is none; empty where parts were not looked at."""
        if not self.parts:
            return ""
        best, what = self.best_part(), "what it learned" if self.seen else "its change with the trigger"
        left = f"{whole_percent(best.concept)} of {what} and {whole_percent(best.leak)} of what else it changes"
        if self.worth(best):
            return f"In Load LoRA Stack, blocks {best.part}=0 leaves {left}."
        return f"No part of its blocks can be left out: even without {best.part}, there is {left}."

    def advice(self) -> str:
        """Return what a person should do that the chart does not say: as little as there is room for on a node."""
        told = [] if self.curve.points else [self.strength_sentence()]
        return " ".join(told + [self.parts_sentence()] * any(map(self.worth, self.parts)))

    def best_part(self) -> Without:
        """Return the part without which the least is lost for what is spared, one that is worth it if there is any."""
        return max(self.parts, key=lambda each: (self.worth(each), min(each.concept, 1.0) - each.leak))

    def worth(self, part: Without) -> bool:
        """Return whether leaving the part out loses little and spares something."""
        return part.concept >= _KEPT and part.leak <= 1 - _SPARED

    def report(self) -> str:
        """Return the sentences, and the figures as lines."""
        said = [" ".join(filter(None, (self.strength_sentence(), self.parts_sentence())))]
        what = "concept" if self.seen else "change with the trigger"
        if self.curve.points:
            said.append(f"At each strength, of what there is at 1 ({what}, what else changes; {self._looked_at()}):")
            said += [
                f"  {p.strength:g}: {whole_percent(p.concept)}, {whole_percent(p.leak)}" for p in self.curve.points
            ]
        if self.parts:
            said.append(f"Without a part of its blocks, of what there is with it ({what}, what else changes):")
            said += [f"  {p.part}=0: {whole_percent(p.concept)}, {whole_percent(p.leak)}" for p in self.parts]
        return "\n".join(said)

    def _looked_at(self) -> str:
        pictures = f"pictures: {self.curve.pictures}, " if self.seen else ""
        return f"{pictures}neutral captions: {self.curve.captions}"

    def chart(self) -> Curve | None:
        """Return the concept by strength for the front end, under what is suggested; each point tells of both."""
        if not self.curve.points:
            return None
        points = tuple((p.strength, max(p.concept, 0.0)) for p in self.curve.points)
        told = tuple(
            f"Strength {p.strength:g}: concept {whole_percent(p.concept)}, what else changes {whole_percent(p.leak)}"
            for p in self.curve.points
        )
        found = self.suggested
        mark = (found.strength, found.concept) if found else None
        title = self.hint or "Change with the trigger by strength; connect dataset for a suggestion"
        return Curve(title, "strength", "concept", points, told, mark)

    def tables(self) -> tuple[Table, ...]:
        """Return the figures as tables of shares: by strength, and without each part."""
        columns = ("concept" if self.seen else "change with the trigger", "what else changes")
        strengths = [(f"{p.strength:g}", p.concept, p.leak) for p in self.curve.points]
        parts = [(f"{p.part}=0", p.concept, p.leak) for p in self.parts]
        titled = (("At each strength", "strength", strengths), ("Without a part of its blocks", "blocks", parts))
        return tuple(
            Table("plain", title, corner, columns, tuple(_line(*row) for row in rows), folded=True)
            for title, corner, rows in titled
            if rows
        )

    def figures(self) -> dict[str, Any]:
        """Return everything measured, for a machine to read."""
        found, best = self.suggested, self.best_part() if self.parts else None
        return {
            "by": "pictures" if self.seen else "change",
            "suggested": found and asdict(found),
            "hint": self.hint,
            "exaggerated": self.curve.exaggerated,
            "points": [asdict(point) for point in self.curve.points],
            "parts": [asdict(part) for part in self.parts],
            "blocks": f"{best.part}=0" if best and self.worth(best) else "",
        }


def _line(name: str, concept: float, leak: float) -> Line:
    return Line(name, (Cell(whole_percent(concept)), Cell(whole_percent(leak))))
