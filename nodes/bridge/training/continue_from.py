"""A run that goes on from a LoRA file: read, named after the connected models' weights, and laid beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from ....lora_core.adapter import TEXT_PREFIX, Adapter
from ....lora_core.files import mismatch, strays
from ....lora_core.files.fused import row_blocks
from ....lora_core.files.hashes import data_hash, file_hash
from ....lora_core.files.lineage import Parent
from ....lora_core.kinds import Correction, Difference, DoRA
from ....lora_core.kinds.placed import Placed
from ....lora_core.low_rank import LowRank
from ....lora_core.stack.chain import chain
from ....lora_core.stack.weighted import Weighted
from ....lora_core.training.start import Start
from ..host import takedown
from ..host.folders import NONE, lora_path
from ..host.lora_files import read_lora
from ..host.wires import Clip, Model
from ..model.names import names_of
from ..stack.apply_chain import apply_chain


def read_start(name: str, model: Model, clip: Clip, own_targets: bool, rank: int, alpha: float) -> Start | None:
    """Return the LoRA file of that name, any format. Raises ValueError for one that is not for this MODEL and CLIP, or
    that a takedown list names."""
    if not name or name == NONE:
        return None
    path = lora_path(name)
    table = names_of(model, clip)
    file = read_lora(path)
    resolved = table.resolve(file, path.name)
    verdict = takedown.checked(name, file, resolved.adapter)
    found = resolved.adapter.copied(torch.float32)
    vectors = [name for name, items in found.others.items() if all(map(_is_vector, items))]
    others = {name: items for name, items in found.others.items() if name not in vectors}
    doras = {name: _one_dora(items, table.shapes.get(name, ()), path.name, name) for name, items in others.items()}
    if both := doras.keys() & found.layers.keys():
        raise ValueError(
            f"{path.name} holds {min(both)} as plain LoRA and as DoRA; training can continue from only one of them; "
            "choose another file"
        )
    off = [name for name, layer in found.layers.items() if not layer.alpha]
    layers = {name: layer for name, layer in found.layers.items() if layer.alpha}
    layers |= {name: cast(LowRank, dora.update) for name, dora in doras.items()}
    if not layers:
        raise ValueError(
            f"{path.name} has no layers to continue from: {len(off)} are switched off in it (alpha 0); choose "
            "another file"
        )
    parent = Parent.of(path.stem, resolved.adapter.metadata, 1.0, 1.0, data_hash(path))
    notes = (
        *verdict.lines(path.stem),
        *_left_out(found.left_out, off, vectors),
        *filter(None, [mismatch.left_out(resolved.misfits)]),
    )
    return Start(
        parent, file_hash(path), layers, own_targets, rank=rank, alpha=alpha,
        unmatched=resolved.unmatched, doras=doras, notes=notes,
    )  # fmt: skip


def _is_vector(item: Correction) -> bool:
    return isinstance(item, Difference) and len(item.shape) == 1


def _left_out(tensors: Sequence[str], off: Sequence[str], vectors: Sequence[str]) -> tuple[str, ...]:
    """Return what of the file training does not go on from."""
    notes = [strays.left_out_note(tensors)] if tensors else []
    if off:
        notes.append(f"{len(off)} are switched off in the file (alpha 0) and left out, such as {off[0]}")
    if vectors:
        notes.append(
            f"{len(vectors)} biases and norms are left out, such as {vectors[0]}, because they are not trained"
        )
    return tuple(notes)


def spoken_with(model: Model, clip: Clip, start: Start | None) -> tuple[Clip, Adapter]:
    """For a run that does not train text encoders: the CLIP with the start's corrections of them, and these."""
    text = {name for name in (start.layers if start else ()) if name.startswith(TEXT_PREFIX)}
    if start is None or not text:
        return clip, Adapter({})
    plain = {name: start.layers[name] for name in text - start.doras.keys()}
    carried = Adapter(plain, others={name: (start.doras[name],) for name in text & start.doras.keys()})
    return apply_chain(model, clip, chain([Weighted(start.parent.name, carried, 1.0, 1.0)]))[1], carried


def _one_dora(items: Sequence[Correction], shape: tuple[int, ...], source: str, name: str) -> DoRA:
    """DoRA per row, of slices of a fused weight one for all of it. Raises ValueError for any other kind."""
    parts: list[tuple[Any, Placed | None]] = [
        (item.inner, item) if isinstance(item, Placed) else (item, None) for item in items
    ]
    other = next((dora for dora, _ in parts if not _is_row_dora(dora)), None)
    if other is not None or len({(dora.norm_of, dora.update.scaling) for dora, _ in parts}) > 1:
        what = "DoRA per column" if isinstance(other, DoRA) else getattr(other, "kind", "DoRA of several scalings")
        raise ValueError(
            f"{source} holds {what} weights ({name}); training can continue only from plain LoRA and DoRA per row: "
            "use Convert LoRA first"
        )
    if parts[0][1] is None:
        return replace(parts[0][0], update=replace(parts[0][0].update, kernel=tuple(shape[2:])))
    return _fused([(dora, place) for dora, place in parts if place is not None], shape[0])


def _is_row_dora(item: Correction) -> bool:
    return isinstance(item, DoRA) and item.axis == 0 and isinstance(item.update, LowRank)


def _fused(parts: Sequence[tuple[DoRA, Placed]], height: int) -> DoRA:
    """Rows that no part has get a magnitude that is not a number."""
    updates, magnitude = [], torch.full((height,), torch.nan)
    for dora, place in parts:
        reorder = place.reorder or (lambda rows: rows)
        update = cast(LowRank, dora.update)
        update = replace(update, lora_B=reorder(update.lora_B))
        updates.append((place.start, update))
        magnitude[place.start : place.start + place.length] = reorder(dora.magnitude)
    return DoRA(row_blocks(updates, height), magnitude, 0, parts[0][0].norm_of)
