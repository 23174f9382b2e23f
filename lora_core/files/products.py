"""LoHa and LoKr as files have them: piece by piece, as LyCORIS writes and ComfyUI reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..adapter import Adapter
from ..kinds import Correction, LoHa, LoKr
from . import spelling
from .written import FileLayer, Style

_KINDS = (LoHa, LoKr)


def found(adapter: Adapter, style: Style) -> Mapping[str, LoHa | LoKr]:
    """Return the layers that are one LoHa or LoKr each. Raises ValueError where `style` cannot hold them."""
    single = {name: items[0] for name, items in adapter.others.items() if len(items) == 1}
    held = {name: each for name, each in single.items() if isinstance(each, _KINDS) and name not in adapter.layers}
    if held and style == "peft":
        kinds = " and ".join(sorted({change.kind for change in held.values()}))
        raise ValueError(
            f"{len(held)} layers are {kinds}, for example {next(iter(held))}, which the diffusers format cannot "
            "contain; save in the 'comfyui' or 'kohya' format, or convert the file with Convert LoRA first"
        )
    return held


def tensors(held: Mapping[str, Correction], names: Mapping[str, Sequence[FileLayer]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the pieces under their keys in a file. Raises ValueError for a slice that cannot be cut out exactly."""
    for name, change in held.items():
        for target in names.get(name, (FileLayer(name),)):
            pieces, alpha = _slice(change, target).parts()
            yield from ((f"{target.name}.{part}", values) for part, values in pieces.items())
            if alpha is not None:
                yield target.name + spelling.ALPHA, torch.tensor(alpha, dtype=torch.float32)


def _slice(change: Correction, target: FileLayer) -> Correction:
    part = change if target.rows is None else change.rows(*target.rows)
    if part is None or target.reorder is not None:
        raise ValueError(
            f"the {change.kind} of {target.name} cannot be cut where this format splits or turns the layer; save in "
            "the 'comfyui' format, or convert the file with Convert LoRA first"
        )
    return part
