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
from lora_loom.nodes.bridge.merging.published import PUBLISHED, Published, bare
from lora_loom.nodes.bridge.merging.renaming import AUTO, told
from lora_loom.nodes.bridge.merging.save import STYLES
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.change_format import ChangeFormat
from safetensors.torch import save_file

SMALL = 10_000_000  # numbers in a weight; larger ones take long to compare
NAMES = [f"{index} {row.family}" for index, row in enumerate(PUBLISHED)]


def row_of(family: str, nth: int = 0) -> Published:
    return [row for row in PUBLISHED if row.family == family][nth]


def made(row: Published, count: int = 8, text: bool = False, largest: int = SMALL) -> tuple[Adapter, Any]:
    """A LoRA of some matrices of the network, of blocks at the beginning and at the end, and its table of names."""
    model, clip = bare(row)
    table = names_of(model, clip if text else None)
    generator = torch.Generator().manual_seed(0)
    small = [name for name in table.shapes if ".0." in name and _fits(table, name, largest)]
    in_network = [name for name in small if name.startswith("diffusion_model.")]
    wanted = in_network[:: max(1, len(in_network) // count)][:count]
    wanted += [name for name in small if name.startswith("text_encoders.clip")]
    return Adapter({name: _low_rank(table.shapes[name], generator) for name in wanted}), table


def _fits(table: Any, name: str, largest: int) -> bool:
    shape = table.shapes[name]
    return len(shape) == 2 and shape.numel() <= largest and not table.unnamed("kohya", [name])


def _low_rank(shape: torch.Size, generator: torch.Generator) -> LowRank:
    factors = (torch.randn(*size, generator=generator).bfloat16() for size in ((4, shape[1]), (shape[0], 4)))
    return LowRank(*factors, alpha=2.0)


def written(loras: Path, adapter: Adapter, table: Any, style: str, name: str = "old", **header: str) -> str:
    names = table.file_names(STYLES[style], [*adapter.layers, *adapter.others])
    tensors = formats.encode(adapter, STYLES[style], names, torch.bfloat16)
    save_file(tensors, loras / f"{name}.safetensors", header or None)
    return f"{name}.safetensors"


def change(lora: str, format: str, **more: Any) -> tuple[str, str]:
    return run_node(ChangeFormat, lora=lora, format=format, name="%name%_%format%", **more)


@pytest.mark.parametrize("index", range(len(PUBLISHED)), ids=NAMES)
def test_a_file_of_every_family_is_told(index: int, loras: Path) -> None:
    row = PUBLISHED[index]
    adapter, table = made(row, count=40, largest=2**30)
    file = formats.read(loras / written(loras, adapter, table, "kohya"))
    found = told(file, "old", row.family if row.family in ("Kandinsky 5", "Kandinsky 2.2 prior") else AUTO)
    assert takes(row.family, (found.family,)) and not found.lost
    assert found.resolved.adapter.layers.keys() == adapter.layers.keys()


@pytest.mark.parametrize(
    ("family", "nth", "style", "text", "says"),
    [
        ("FLUX.1 dev", 0, "kohya", True, ""), ("FLUX.1 dev", 0, "diffusers", False, "flux1"),
        ("FLUX.2", 1, "comfyui", False, "flux_2_klein_4b"), ("SDXL", 0, "kohya", True, ""),
        ("SDXL", 0, "diffusers", False, ""), ("Z-Image", 0, "diffusers", False, ""),
    ],
)  # fmt: skip
def test_every_format_becomes_every_other(
    family: str, nth: int, style: str, text: bool, says: str, loras: Path
) -> None:  # fmt: skip
    """What is read back from each new file is the LoRA: bf16 to fp32, in which folded strengths are exact."""
    adapter, table = made(row_of(family, nth), 4, text)
    header = {"modelspec.title": "Ink", "ss_network_dim": "4", "note": "kept", "ss_base_model_version": says}
    old = written(loras, adapter, table, style, **header)
    for other in STYLES:
        name, report = change(old, other, dtype="fp32")
        back = table.resolve(formats.read(loras / name), name)
        assert not back.unmatched and back.adapter.layers.keys() == adapter.layers.keys()
        for layer, wanted in adapter.layers.items():
            found = back.adapter.layers[layer].to(torch.float64).delta_weight()
            assert relative_error(found, wanted.to(torch.float64).delta_weight()) < 1e-6, (other, layer)
        assert "0 unmatched" in report and f"for {family}" in report
        header = guard.inspect(loras / name).metadata
        assert (header["modelspec.title"], header["ss_network_dim"], header["note"]) == ("Ink", "4", "kept")
        assert '"method": "rename"' in header["lora_loom.merge"] and '"name": "old"' in header["lora_loom.parents"]


def few(family: str = "Wan 2.1", nth: int = 1, count: int = 3) -> tuple[Adapter, Any]:
    return made(row_of(family, nth), count)


def test_a_file_keeps_its_type_and_every_bit_of_it(loras: Path) -> None:
    adapter, table = few()
    name, report = change(written(loras, adapter, table, "kohya"), "comfyui")
    found = formats.read(loras / name)
    assert ", comfyui, bf16" in report
    for layer, low_rank in adapter.layers.items():
        assert torch.equal(found.layers[layer].lora_A, low_rank.lora_A) and found.layers[layer].alpha == low_rank.alpha


def test_loha_and_lokr_keep_every_bit(loras: Path) -> None:
    adapter, table = few()
    first, second, *_ = adapter.layers
    (rows, columns), (height, width) = table.shapes[first], table.shapes[second]
    half = (torch.randn(size).bfloat16() for size in ((rows, 3), (3, columns)) * 2)
    whole = torch.randn(4, 2).bfloat16(), torch.randn(height // 4, width // 2).bfloat16()
    others = {first: (LoHa(*half, scale=0.5),), second: (LoKr(whole[:1], whole[1:]),)}
    name, report = change(written(loras, replace(adapter, layers={}, others=others), table, "kohya"), "comfyui")
    found = formats.read(loras / name)
    assert found.others.keys() == others.keys() and "(1 LoHa, 1 LoKr)" in report and "2 layers applied" in report
    for layer, (wanted,) in others.items():
        (one,) = found.others[layer]
        assert all(map(torch.equal, one.tensors(), wanted.tensors())) and one.scale == wanted.scale
    with pytest.raises(ValueError, match="2 layers are LoHa and LoKr, .* which the diffusers format cannot contain"):
        change(name, "diffusers")


def test_what_cannot_be_told_is_said_in_one_sentence(loras: Path) -> None:
    adapter, table = few("FLUX.1 dev", 0, 4)
    unsure = written(loras, adapter, table, "diffusers", "unsure")
    with pytest.raises(ValueError, match="may be for FLUX.1 dev, .*FLUX.2.*, which call their layers differently"):
        change(unsure, "comfyui")
    assert change(unsure, "comfyui", family="FLUX.1 dev")[0] == "unsure_comfyui.safetensors"
    parts = {"down": (2, 7), "up": (7, 2)}
    odd = {f"lora_unet_my_own.lora_{part}.weight": torch.ones(*size) for part, size in parts.items()}
    save_file(odd, loras / "odd.safetensors")
    with pytest.raises(ValueError, match="odd.safetensors fits no model whose size is known, so its layers"):
        change("odd.safetensors", "comfyui")
    more = formats.encode(adapter, "kohya", table.file_names("kohya", [*adapter.layers]))
    save_file(more | odd, loras / "more.safetensors")
    with pytest.raises(ValueError, match="more.safetensors: 1 layers are not in FLUX.1 dev, for example lora_unet_my"):
        change("more.safetensors", "comfyui", family="FLUX.1 dev")
