"""The same picture with a LoRA, without each of its blocks, without the LoRA, and with the repaired one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ....lora_core.analysis import leakage
from ....lora_core.analysis.leakage import PictureChange
from ....lora_core.drawing.measure import Table, bars
from ....lora_core.drawing.sheet import SheetRow
from ..analysis.drawn_sets import Drawn, Prompts, drawn_by
from ..host.wires import Clip, Model, Vae
from ..model.sampling import Sampling
from ..stack.entries import Entry

LORA, BASE, REPAIRED = "LoRA", "base model", "repaired"
_IN_A_ROW = 6


@dataclass(frozen=True)
class BlockPictures:
    """Holds rows of pictures for a sheet, and the mean change from the whole LoRA's picture by what was drawn."""

    rows: list[SheetRow]
    changes: Mapping[str, PictureChange]
    missed: Sequence[str]

    def sentence(self) -> str:
        """Return which block is seen most when it is left out; empty where none was."""
        alone = {name: change.latent for name, change in self.changes.items() if name not in (BASE, REPAIRED)}
        if len(alone) < 2 or not any(alone.values()):
            return ""
        most, least = max(alone, key=alone.__getitem__), min(alone, key=alone.__getitem__)
        return f"Pictures: the change is largest {most} ({alone[most]:.2f}) and smallest {least} ({alone[least]:.2f})."

    def table(self) -> Table:
        figures = [(name, (c.latent, c.pixels, c.structure)) for name, c in self.changes.items()]
        columns = ("latent", "pixels", "structure")
        return replace(bars("Change of the picture", "drawn", columns, figures), folded=True)


def block_pictures(
    model: Model, clip: Clip, vae: Vae, entry: Entry, repaired: Entry | None, named: Mapping[str, Sequence[str]],
    asked: Prompts, sampling: Sampling,
) -> BlockPictures:  # fmt: skip
    """Draw with `entry`, without it, with the repaired one if there is one, and without the layers of each name.
    Raises ComfyUI's interrupt between steps."""
    sets: dict[str, list[Entry]] = {LORA: [entry], BASE: [], **({REPAIRED: [repaired]} if repaired else {})}
    sets |= {f"without {name}": [_without(entry, layers)] for name, layers in named.items()}
    drawn = drawn_by(model, clip, vae, sets, asked, sampling)
    found = {name: drawn.changes(LORA, name) for name in sets if name != LORA}
    means = {name: leakage.mean(each) for name, each in found.items()}
    return BlockPictures(list(_rows(drawn, found)), means, drawn.missed)


def _without(entry: Entry, layers: Sequence[str]) -> Entry:
    return replace(entry, factors={**entry.factors, **dict.fromkeys(layers, 0.0)})


def _rows(drawn: Drawn, changes: Mapping[str, Sequence[PictureChange]]) -> Iterator[SheetRow]:
    for number, (prompt, seed) in enumerate(drawn.rounds):
        labels = {LORA: LORA, **{name: f"{each[number].latent:.2f} {name}" for name, each in changes.items()}}
        names = list(labels)
        for at in range(0, len(names), _IN_A_ROW):
            own = names[at : at + _IN_A_ROW]
            pictures = [drawn.pictures[name][number] for name in own]
            yield SheetRow(f"{prompt}, seed {seed}" if not at else "", pictures, [labels[name] for name in own])
