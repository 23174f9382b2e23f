"""Change LoRA Format names the layers of a file anew without its model, and ComfyUI's loader and peers read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import relative_error, run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.families.signs import takes
from lora_loom.lora_core.files import formats, guard
from lora_loom.lora_core.kinds import LoHa, LoKr
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.merging.renaming import AUTO, told
from lora_loom.nodes.bridge.merging.save import STYLES
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.bridge.model.published import PUBLISHED, Published, bare
from lora_loom.nodes.change_format import ChangeFormat
from safetensors.torch import save_file

SMALL = 6_000_000  # numbers in a weight; larger ones take long to compare
NAMES = [f"{index} {row.config_class}" for index, row in enumerate(PUBLISHED)]


def row_of(family: str, nth: int = 0) -> Published:
    return [row for row in PUBLISHED if row.family == family][nth]


def made(row: Published, count: int = 8, text: bool = False) -> tuple[Adapter, Any]:
    """A LoRA of some matrices of the network, of blocks at the beginning and at the end, and its table of names."""
    model, clip = bare(row)
    table = names_of(model, clip if text else None)
    generator = torch.Generator().manual_seed(0)
    in_network = [n for n in table.shapes if n.startswith("diffusion_model.") and ".0." in n and _fits(table, n)]
    wanted = in_network[:: max(1, len(in_network) // count)][:count]
    wanted += [name for name in table.shapes if name.startswith("text_encoders.clip") and ".0." in name and _fits(table, name)]
    return Adapter({name: _low_rank(table.shapes[name], generator) for name in wanted}), table


def _fits(table: Any, name: str) -> bool:
    shape = table.shapes[name]
    return len(shape) == 2 and shape.numel() <= SMALL and not table.unnamed("kohya", [name])


def _low_rank(shape: torch.Size, generator: torch.Generator) -> LowRank:
    factors = (torch.randn(*size, generator=generator).bfloat16() for size in ((4, shape[1]), (shape[0], 4)))
    return LowRank(*factors, alpha=2.0)


def written(loras: Path, adapter: Adapter, table: Any, style: str, name: str = "old", **header: str) -> str:
    tensors = formats.encode(adapter, STYLES[style], table.file_names(STYLES[style], [*adapter.layers, *adapter.others]), torch.bfloat16)
    save_file(tensors, loras / f"{name}.safetensors", header or None)
    return f"{name}.safetensors"


def change(lora: str, format: str, **more: Any) -> tuple[str, str]:
    return run_node(ChangeFormat, lora=lora, format=format, name="%name%_%format%", **more)


@pytest.mark.parametrize("index", range(len(PUBLISHED)), ids=NAMES)
def test_a_file_of_every_family_is_told(index: int, loras: Path) -> None:
    row = PUBLISHED[index]
    adapter, table = made(row, count=40)
    file = formats.read(loras / written(loras, adapter, table, "kohya"))
    found = told(file, "old", row.family if row.family in ("Kandinsky 5",) else AUTO)
    assert takes(row.family, (found.table.family.name,)) and not found.lost
    assert found.resolved.adapter.layers.keys() == adapter.layers.keys()
