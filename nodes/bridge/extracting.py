"""The difference of two MODELs, read one weight at a time, as a LoRA."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import get_key_weight
from PIL import Image
from torch import Tensor, nn

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.files import metadata
from ...lora_core.files.lineage import Parent, losses
from ...lora_core.merging.chart import draw_merge
from ...lora_core.merging.extraction import Extracted, extract, whole_error
from ...lora_core.merging.merge import Merged
from ...lora_core.merging.pick import Pick
from .keys import NameTable
from .merging import Tick, error_lines, size_line
from .origin import file_name, files_of, known_hash
from .progress import Progress

_METHOD, _CPU = "extract", torch.device("cpu")


@dataclass(frozen=True)
class Weights:
    """The weights of a MODEL or CLIP as sampling would see them, patches and all. Nothing is kept, and nothing of the
    model is changed, loaded or patched. `prefix` is what our names have before its own."""

    patcher: Any
    name: str
    prefix: str = ""

    def check(self) -> None:
        """Raises ValueError when the model has changes that are not in its weights."""
        if kinds := ", ".join(self.patcher.injections):
            raise ValueError(
                f"{self.name} has changes beside its weights ({kinds}), which an extraction cannot see; "
                "set apply to weights in Load LoRA Stack"
            )

    def parameters(self) -> list[str]:
        names = [name for name, value in self.patcher.model.named_parameters() if value.is_floating_point()]
        return [name for name in names if self.prefix or name.startswith("diffusion_model.")]

    def same(self, other: Weights, key: str) -> bool:
        """Whether both have the very same tensor, and no patches."""
        plain = key not in self.patcher.patches and key not in other.patcher.patches
        return plain and self._stored(key)[0] is other._stored(key)[0]

    def read(self, key: str, device: torch.device, shape: tuple[int, ...] | None = None) -> Tensor:
        """In fp32; in fp64 where there are patches, which are small beside the weight, and the device has it."""
        stored, convert = self._stored(key)
        patches = self.patcher.patches.get(key)
        weight = comfy.model_management.cast_to_device(stored, device, None, copy=True)
        weight = convert(weight, inplace=True) if convert else weight
        if type(weight) not in (Tensor, nn.Parameter) or (shape is not None and weight.shape != shape):
            raise ValueError(
                f"{self.name} stores {key} as {type(weight).__name__} {tuple(weight.shape)}, which only its own loader "
                "can read; load the model with ComfyUI's"
            )
        weight = weight.to(torch.float64 if patches and device.type != "mps" else torch.float32)
        return comfy.lora.calculate_weight(patches, weight, key) if patches else weight

    def _stored(self, key: str) -> tuple[Tensor, Any]:
        """Without the patches that are in it now, and the layer's own way to read it."""
        weight, _, convert = get_key_weight(self.patcher.model, key)
        if key in self.patcher.backup:
            weight = self.patcher.backup[key].weight
        if key in self.patcher.hook_backup:
            weight = self.patcher.hook_backup[key][0]
        return weight, convert


Pair = tuple[Weights, Weights]


def extract_lora(
    model_a, model_b, clip_a, clip_b, rank: int, energy: float, pick: Pick, tick: Tick
) -> tuple[Adapter, str, Image.Image]:
    """The LoRA that makes `a` of `b`, a report and a picture. Raises ValueError when the two are not of one kind, when
    there is no difference, or when a change of `a` is not in its weights."""
    if (clip_a is None) != (clip_b is None):
        raise ValueError("connect clip_a and clip_b, or neither: their difference is what is extracted")
    table = NameTable(model_b, clip_b)
    _check_alike(NameTable(model_a, clip_a), table)
    layers = {name: shape for name, shape in table.shapes.items() if len(shape) > 1}
    pick.check(layers)
    pairs = _pairs(model_a, model_b, clip_a, clip_b)
    found: dict[str, Extracted] = {}
    for done, (name, shape) in enumerate(layers.items(), 1):
        if pick.takes(name) and (part := _extract(name, shape, pairs, rank, energy)):
            found[name] = part
        tick(done, len(layers))
    if not found:
        raise ValueError("model_a and model_b do not differ in the layers that were looked at")
    merged = Merged(
        {name: part.low_rank for name, part in found.items()}, {name: part.error for name, part in found.items()},
        whole_error(list(found.values())), spectra={name: part.sigma for name, part in found.items()},
    )  # fmt: skip
    report = "\n".join([size_line(merged), *error_lines(merged), *_out_of_reach(pairs, layers, found)])
    return _described(merged, model_a, model_b, rank, energy, table), report, draw_merge(merged, "difference")


def _check_alike(a: NameTable, b: NameTable) -> None:
    if a.family.name != b.family.name:
        raise ValueError(
            f"model_a is a {a.family.name} model and model_b a {b.family.name} model; use two of one family"
        )
    for name in a.shapes.keys() | b.shapes.keys():
        if a.shapes.get(name) != b.shapes.get(name):
            shapes = [tuple(shapes[name]) if name in shapes else "missing" for shapes in (a.shapes, b.shapes)]
            raise ValueError(f"{name} is {shapes[0]} in model_a and {shapes[1]} in model_b; use two of one size")


def _pairs(model_a, model_b, clip_a, clip_b) -> dict[str, Pair]:
    """By the prefix of our names."""
    pairs = {"diffusion_model.": (Weights(model_a, "model_a"), Weights(model_b, "model_b"))}
    if clip_a is not None:
        text = Weights(clip_a.patcher, "clip_a", TEXT_PREFIX), Weights(clip_b.patcher, "clip_b", TEXT_PREFIX)
        pairs[TEXT_PREFIX] = text
    for each in (weights for pair in pairs.values() for weights in pair):
        each.check()
    return pairs


def _extract(name: str, shape: tuple[int, ...], pairs: dict[str, Pair], rank: int, energy: float) -> Extracted | None:
    a, b = pairs[TEXT_PREFIX if name.startswith(TEXT_PREFIX) else "diffusion_model."]
    key, device = f"{name.removeprefix(a.prefix)}.weight", a.patcher.load_device
    if a.same(b, key):
        return None
    return extract(a.read(key, device, shape).sub_(b.read(key, device, shape)).float(), rank, energy, name)


def _out_of_reach(pairs: dict[str, Pair], layers: Iterable[str], found: dict[str, Extracted]) -> list[str]:
    """What differs and has no place in a LoRA, with its size beside what was extracted."""
    changes = {
        f"{a.prefix}{key}": float((a.read(key, _CPU) - b.read(key, _CPU)).double().norm())
        for a, b in pairs.values()
        for key in a.parameters()
        if f"{a.prefix}{key.removesuffix('.weight')}" not in layers and not a.same(b, key)
    }
    names = [name for name, change in changes.items() if change]
    if not names:
        return []
    share = sqrt(sum(change**2 for change in changes.values()) / sum(part.norm**2 for part in found.values()))
    return [
        f"{len(names)} biases and norms differ too and are not in the LoRA, for example {names[0]}; together they "
        f"differ by {share:.2g} of what the layers do"
    ]


def _described(merged: Merged, model_a, model_b, rank: int, energy: float, table: NameTable) -> Adapter:
    paths = [next(iter(files_of(model)), "") for model in (model_a, model_b)]
    tuned, base = map(file_name, paths)
    family, made = table.family, Adapter(merged.layers)
    facts = metadata.Facts(
        title=f"{tuned.rsplit('.', 1)[0] or 'model'} extracted"[:120],
        architecture=family.architecture, base_version=family.base_version, base_name=base,
        merged_from=(_checkpoint(paths[0]),) if tuned and tuned != base else (),
        made_by={"method": _METHOD, "rank": rank, "energy": energy, **losses(merged.error, merged.errors)},
    )  # fmt: skip
    return Adapter(made.layers, metadata.build(facts, made))


def _checkpoint(path: str) -> Parent:
    if not os.path.isfile(path):
        return Parent(file_name(path), "", 1.0)
    return Parent(file_name(path), known_hash(path, Progress(1)), 1.0, hash_of="file")
