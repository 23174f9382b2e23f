"""Tells what a LoRA does before it is repaired and after: to its concept, and to what has nothing to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..drawing.measure import Cell, Line, Table
from ..percent import whole_percent
from ..stored import as_dict, stored
from .part_strengths import PartStrengths

_FEW = 0.005  # of a figure, below which two are the same


@stored("loss told leak")
@dataclass(frozen=True)
class Effect:
    """Holds the loss on pictures of the concept, or how far answers to prompts with the trigger are from the base
    model's, whichever was looked at, and how far those to neutral prompts are; root mean square at almost noise."""

    loss: float | None
    told: float | None
    leak: float

    @property
    def finite(self) -> bool:
        return all(isfinite(value) for value in (self.loss, self.told, self.leak) if value is not None)

    @property
    def ratio(self) -> float:
        """Return the change of neutral prompts over that of prompts with the trigger."""
        return self.leak / self.told if self.told else 0.0


@dataclass(frozen=True)
class Effects:
    """Holds the base model's loss, what the LoRA does before, where that is known, and after, and the strengths of its
    parts."""

    base_loss: float | None
    before: Effect | None
    after: Effect
    parts: PartStrengths | None = None
    in_output: bool = False

    def sentences(self) -> list[str]:
        """Return what was seen, each after a word and a colon."""
        return list(filter(None, (self._concept(), self._leak(), self.parts_sentence())))

    def _concept(self) -> str:
        after, base = self.after, self.base_loss
        if after.loss is not None and base is not None:
            nearer = "nearer" if after.loss < base else "no nearer"
            return f"Concept: {nearer} to its pictures than the base model, loss {after.loss:.4f} against {base:.4f}."
        if not after.told:
            return "Trigger: prompts with it are not changed; check how it is written."
        return f"Leakage: neutral prompts change by {whole_percent(after.ratio)} of what prompts with the trigger do."

    def _leak(self) -> str:
        if self.before is None:
            return ""
        if not self.before.finite:
            return "Before and after: the model's answers were no numbers before the repair."
        told = [f"neutral prompts change {_beside(self.after.leak, self.before.leak)}"]
        if self.before.loss is not None and self.after.loss is not None:
            told.append(f"the loss on the concept is {self.after.loss:.4f}, where it was {self.before.loss:.4f}")
        elif self.before.told and self.after.told:
            told.append(f"prompts with the trigger {_beside(self.after.told, self.before.told)}")
        return f"Before and after: {', and '.join(told)}."

    def parts_sentence(self) -> str:
        """Return which strengths of blocks to use, or that there are none; empty where they were not looked for."""
        parts = self.parts
        if parts is None or not parts.without:
            return ""
        if not parts.factors:
            return "Blocks: none can be turned down, as too much of the concept would be lost for what else it spares."
        where = "in the repaired LoRA" if self.in_output else "in Load LoRA Stack"
        return (
            f"Blocks: {parts.text()} {where} keeps {whole_percent(parts.concept)} of the concept and leaves "
            f"{whole_percent(parts.leak)} of what else it changes."
        )

    def tables(self) -> tuple[Table, ...]:
        rows = [("before", self.before), ("after", self.after)]
        columns = ("loss on the concept", "change with the trigger", "change of neutral prompts")
        lines = [Line(name, _cells(effect)) for name, effect in rows if effect is not None]
        if self.base_loss is not None:
            lines.insert(0, Line("base model", (Cell(f"{self.base_loss:.4f}"), None, None)))
        made = [Table("plain", "What it does, before and after", "LoRA", columns, tuple(lines), folded=True)]
        if self.parts is not None and self.parts.without:
            shares = [(each.part, each.concept, each.leak) for each in self.parts.without]
            made.append(_shares(shares))
        return tuple(made)

    def figures(self) -> dict[str, Any]:
        """Return everything measured, for a machine to read; what is no number is None."""
        found = {
            "base_loss": self.base_loss,
            "before": as_dict(self.before) if self.before is not None and self.before.finite else None,
            "after": as_dict(self.after) if self.after.finite else None,
        }
        if self.parts is None:
            return found
        without = [{"part": each.part, "concept": each.concept, "leak": each.leak} for each in self.parts.without]
        kept = {"concept": self.parts.concept, "leak": self.parts.leak}
        return {**found, "without": without, "blocks": self.parts.text(), "with_blocks": kept}


def _shares(rows: Sequence[tuple[str, float, float]]) -> Table:
    lines = tuple(Line(part, (Cell(whole_percent(concept)), Cell(whole_percent(leak)))) for part, concept, leak in rows)
    return Table("plain", "Left without a part", "blocks", ("concept", "what else changes"), lines, folded=True)


def _cells(effect: Effect) -> tuple[Cell | None, ...]:
    values = (effect.loss, effect.told, effect.leak)
    return tuple(None if value is None else Cell(f"{value:.4f}") for value in values)


def _beside(after: float, before: float) -> str:
    if not before or abs(after / before - 1) < _FEW:
        return "as before"
    return f"by {whole_percent(after / before)} of what they did"
