"""The passport of a LoRA file: who signed it, what its contract says, what it was made of, what changed since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..drawing.measure import MOST_LINES, Cell, Line, Measure, Table
from ..files.lineage import made_of
from ..files.listing import Listing
from .contract import contract_of
from .keys import Met
from .signer import readable
from .statement import STATEMENT
from .verdict import Verdict

_DEEPEST, _MOST = 16, 200  # generations and files of a family tree
_TELLING = {  # what a person may make of a verdict
    "unsigned": "Anybody may have written what it says of itself.",
    "valid": "The weights and all that is said below are as they were signed.",
    "edited": "The weights are as they were signed; the texts below that have changed are somebody else's words.",
    "foreign": "Do not believe what it says of itself: its signature belongs to another file.",
    "forged": "Do not believe what it says of itself: its signature was made of something else.",
    "malformed": "Do not believe what it says of itself: what stands for a signature is none.",
}


@dataclass(frozen=True)
class Passport:
    """`digest` is the sha256 of the file's data section; `signers` are those of the verdict, as they are known here."""

    name: str
    metadata: Mapping[str, str]
    digest: str
    verdict: Verdict
    signers: Sequence[Met]

    def headline(self) -> str:
        who = f"{' and '.join(map(str, self.signers))}, " if self.verdict.is_signed else ""
        return f"{self.name}: {who}{self.verdict.sentence()}."

    def measure(self, held: Listing | None = None) -> Measure:
        """Return it as a page, with what the file holds folded, where that is given."""
        tables = [self._contract(), self._family(), self._signature(), self._changes()]
        tables += [_tensors(held)] if held else []
        return Measure(self.headline(), _TELLING[self.verdict.state], tuple(each for each in tables if each.lines))

    def text(self) -> str:
        """Return it as plain text, the same things in the same order."""
        page = self.measure()
        parts = [f"{page.verdict} {page.advice}"]
        for table in page.tables:
            rows = [f"  {each.name}: {', '.join(cell.text for cell in each.cells if cell)}" for each in table.lines]
            parts.append("\n".join([table.title, *rows]))
        return "\n\n".join(parts)

    def _contract(self) -> Table:
        found = contract_of(self.metadata)
        told = found.table() if found else {}
        told.pop("version", None)
        return _facts("Contract", "field", "what it says", [(_words(key), _said(value)) for key, value in told.items()])

    def _family(self) -> Table:
        rows = tuple(islice(_tree(made_of(self.metadata), 0), _MOST))
        return Table("plain", "Made of", "file", ("strength", "licence", "hash", "signed"), rows)

    def _signature(self) -> Table:
        found, rows = self.verdict.statement, [("data", self.digest)]
        if self.verdict.state == "malformed":
            rows.append(("signature", self.verdict.fault))
        for each in self.signers:
            since = f", known since {each.line.since}" if each.line and each.standing == "known" else ""
            rows.append(("key", f"{each.signer}{since}"))
        for each in found.predicate.get("replaces") or () if found and self.verdict.is_signed else ():
            rows.append(("replaces receipt", _said(each)))
        if found and self.verdict.is_signed:
            rows.append(("texts signed", str(len(found.predicate["header"]))))
        return _facts("Signature", "what", "is", rows)

    def _changes(self) -> Table:
        signed = self.verdict.statement.predicate["header"] if self.verdict.statement else {}
        how = {
            key: "added" if key not in signed else "changed" if key in self.metadata else "removed"
            for key in self.verdict.changed
        }
        return _facts(
            "Changed since it was signed", "text", "how", [(readable(key), told) for key, told in how.items()]
        )


def _tensors(held: Listing) -> Table:
    """As many of the first as a page takes."""
    shown, left = held.tensors[:MOST_LINES], len(held.tensors) - MOST_LINES
    rows = tuple(
        Line(name, (Cell(f"{shape} {kind}"), Cell(norm), Cell(part)))
        for name, shape, kind, _, norm, _, part in (each.cells() for each in shown)
    )
    note = f"{held.summary()}{f'; {left:,} more are in the output tensors' if left > 0 else ''}"
    return Table("plain", "Tensors", "name", ("shape and type", "norm", "part"), rows, note=note, folded=True)


def _facts(title: str, corner: str, column: str, rows: Sequence[tuple[str, str]]) -> Table:
    return Table("facts", title, corner, (column,), tuple(Line(name, (Cell(text, told=text),)) for name, text in rows))


def _tree(parents: Sequence[Any], depth: int) -> Iterator[Line]:
    """Yield a line for each file, those that it was made of below it."""
    for each in parents[:_MOST]:
        if not isinstance(each, dict):
            continue
        hashed, older = _said(each.get("sha256", ""))[:10], each.get("parents")
        signed = isinstance(each.get("signatures"), dict) and STATEMENT in each["signatures"]
        cells = (_said(each.get("strength", "")), _said(each.get("license", "")), hashed, "yes" if signed else "")
        name = "\u00a0\u00a0" * depth + ("\u2514 " if depth else "") + (_said(each.get("name", "")) or "?")
        yield Line(name, tuple(Cell(text, told=text) for text in cells))
        if isinstance(older, list) and depth < _DEEPEST:
            yield from _tree(older, depth + 1)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _said(value: Any) -> str:
    """A value of JSON on one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{_words(str(key))}: {_said(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    text = " ".join(str(value).split())
    return "".join(each for each in text if each.isprintable())
