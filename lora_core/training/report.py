"""Writes what a run tells at its end, as plain text with markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from ..percent import percent
from .bleeding import Bleeding
from .judgement import Verdict
from .record import BANDS, LossExcess, Record, excess, means, summed
from .strengths import StrengthCurve

_ROWS = 12  # of the table of pictures, at each end
_GUIDED = (
    "The guided answer is what a few sampling steps with guidance make of a held-out picture that is almost noise; its "
    "error shows what is drawn, which the loss alone does not. The best step is that of the lowest sum of both changes."
)
_ODD = 3.0  # how many spreads away from the others a picture stands out


@dataclass(frozen=True)
class Story:
    """All that the report and the charts are made of.

    `names` are the pictures' by index, `drawn` the noise level u and the picture of each validation draw, `layers` the
    layers that changed most, `cost` seconds of validation and of the whole session, `strength` what there is at which.
    `concepts` are the triggers of the pictures by index, and `bleeding` how well they are kept apart.
    """

    record: Record
    verdict: Verdict
    losses: Sequence[float]
    steps: int
    names: Sequence[str]
    drawn: Sequence[tuple[float, int]] = ()
    held_out: bool = False
    layers: Sequence[tuple[str, float]] = ()
    cost: tuple[float, float] = (0.0, 0.0)
    notes: Sequence[str] = ()
    strength: StrengthCurve | None = None
    concepts: Sequence[str] = ()
    bleeding: Bleeding | None = None

    @property
    def what(self) -> str:
        """Say what validation looks at."""
        return "held-out pictures" if self.held_out else "training pictures (these cannot show overfitting)"

    def pictures(self) -> list[tuple[int, LossExcess]]:
        """Return every picture by index with its loss against the others' at the same noise, the hardest first."""
        usual = means(self.record.bands())
        rows = [(int(index), excess(cells, usual)) for index, cells in self.record.images.items()]
        return sorted(rows, key=lambda row: -row[1].share)

    def odd(self) -> set[int]:
        """Return pictures whose loss is surely far from the others'."""
        rows = self.pictures()
        if len(rows) < 4:
            return set()
        middle = median(each.share for _, each in rows)
        spread = median(abs(each.share - middle) for _, each in rows) / 0.6745
        return {i for i, e in rows if abs(e.share - middle) > _ODD * max(spread, e.error, 1e-9)}

    def validation_bands(self, losses: Sequence[float]) -> list[float | None]:
        """Mean loss of the draws by band."""
        parts: list[list[float]] = [[] for _ in range(BANDS)]
        for (u, _), loss in zip(self.drawn, losses, strict=True):
            parts[min(int(u * BANDS), BANDS - 1)].append(loss)
        return [sum(part) / len(part) if part else None for part in parts]


def report(story: Story) -> str:
    """Return the judgement first, then what it rests on."""
    bleeding = [story.bleeding.report()] if story.bleeding else []
    parts = [
        [_sentence(story), *story.notes], _validation(story), _concepts(story), bleeding, _strength(story),
        _bands(story), _norms(story), _pictures(story),
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts if part)


def _sentence(story: Story) -> str:
    text = story.verdict.sentence
    return text[0].upper() + text[1:] + "."


def _validation(story: Story) -> list[str]:
    record = story.record
    if not record.points:
        return []
    base = sum(record.base) / len(record.base)
    lines = [f"Validation: {len(record.base)} samples with fixed noise, from {story.what}.", ""]
    answers = record.answers()
    head = ["step", "loss", "change from the base model"] + ["guided answer: error", "change"] * bool(answers)
    lines += [_row(head), _row(["---:"] * len(head))]
    lines.append(f"| 0 | {base:.4f} | |" + (f" {answers[0]:.4f} | |" if answers else ""))
    for point in record.points:
        mark = " (best)" if point.step == story.verdict.best else ""
        row = [f"{point.step}{mark}", *_changed(point.mean, base)]
        lines.append(_row(row + (_changed(answers[point.step], answers[0]) if answers else [])))
    if answers:
        lines += ["", _GUIDED]
    seconds, total = story.cost
    return [*lines, "", f"Validation took {seconds:.1f} s of {total:.1f} s ({100 * seconds / max(total, 1e-9):.0f} %)."]


def _concepts(story: Story) -> list[str]:
    """Return the validation of each concept, where there are several."""
    record = story.record
    names = [story.concepts[picture] for _, picture in story.drawn] if story.concepts else []
    if len(set(names)) < 2 or not record.points:
        return []
    head, lines = ["concept", "base model", "best", "change"], []
    for name in dict.fromkeys(names):
        own = [at for at, each in enumerate(names) if each == name]
        base, best = (mean(losses[at] for at in own) for losses in (record.base, record.best_point().losses))
        lines.append(_row([name or "without a trigger", f"{base:.4f}", *_changed(best, base)]))
    return ["Validation loss of each concept:", "", _row(head), _row(["---", *["---:"] * 3]), *lines]


def _strength(story: Story) -> list[str]:
    if story.strength is None or not story.strength.points:
        return []
    head = ["strength", "of the concept", "of what else changes"]
    rows = [[f"{p.strength:g}", f"{100 * p.concept:.0f} %", f"{100 * p.leak:.0f} %"] for p in story.strength.points]
    return ["At each strength, of what there is at 1:", "", *map(_row, (head, ["---:"] * len(head), *rows))]


def _changed(value: float, base: float) -> list[str]:
    return [f"{value:.4f}", f"{100 * (value / (base or 1.0) - 1):+.2f} %"]


def _bands(story: Story) -> list[str]:
    windows = story.record.windows
    if not windows:
        return []
    part = max(len(windows) // 4, 1)
    first, last = (means(summed(w.bands for w in each)) for each in (windows[:part], windows[-part:]))
    columns = [first, last]
    head = ["noise level", "training, first quarter", "training, last quarter"]
    if story.record.points:
        best = story.record.best_point()
        columns += [story.validation_bands(losses) for losses in (story.record.base, best.losses)]
        head += ["validation, base model", "validation, best"]
    lines = ["Loss by noise level (0 is a clean picture, 1 is pure noise):", "", _row(head), _row(["---:"] * len(head))]
    for i in range(BANDS):
        values = ["-" if column[i] is None else f"{column[i]:.4f}" for column in columns]
        lines.append(_row([f"{i / BANDS:.3g} to {(i + 1) / BANDS:.3g}", *values]))
    return lines


def _norms(story: Story) -> list[str]:
    if not story.record.windows:
        return []
    last = story.record.windows[-1]
    text = f", text encoders {last.text_norm:.3g}" if last.text_norm else ""
    peak = max(window.grad_peak for window in story.record.windows)
    lines = [f"Gradient norm at the end: {last.grad_norm:.3g}{text}; largest: {peak:.3g}."]
    for name, size in zip(("model", "text encoders"), last.sizes, strict=False):
        lines.append(f"Size of the LoRA: {percent(size)} of the weights of the {name}.")
    if story.layers:
        lines.append("Changed most: " + ", ".join(f"{name} {percent(share)}" for name, share in story.layers) + ".")
    if last.preservation:
        lines.append(f"Preservation loss at the end: {last.preservation:.4g}.")
    return lines


def _pictures(story: Story) -> list[str]:
    rows, odd = story.pictures(), story.odd()
    if not rows:
        return []
    shown = rows if len(rows) <= 2 * _ROWS else [*rows[:_ROWS], None, *rows[-_ROWS:]]
    lines = ["Training loss of each picture, compared with the other pictures at the same noise level:", ""]
    lines += ["| picture | loss | times seen | |", "| --- | ---: | ---: | --- |"]
    for row in shown:
        if row is None:
            lines.append("| ... | | | |")
            continue
        index, each = row
        remark = "unusual: check the picture and its caption" if index in odd else ""
        lines.append(_row([story.names[index], f"{100 * each.share:+.0f} % +- {_percent(each)}", each.count, remark]))
    return lines


def _percent(each: LossExcess) -> str:
    return f"{100 * each.error:.0f} %" if each.count > 1 else "?"


def _row(values: Sequence[object]) -> str:
    return f"| {' | '.join(str(value) for value in values)} |"
