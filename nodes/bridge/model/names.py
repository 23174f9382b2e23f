"""ComfyUI's names for weights: which layer of a loaded model each name in a LoRA file means, and back.

The spellings are ComfyUI's own key maps, so a name means here what it means to every other loader. A layer of our own
is called after the weight it corrects: `diffusion_model.<path>` or `text_encoders.<path>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import comfy.lora
import torch
from torch import nn

from ....lora_core.adapter import TEXT_PREFIX, Adapter
from ....lora_core.families import diffusers_names
from ....lora_core.families.loose_names import LooseNames, is_text, numbered_slices
from ....lora_core.families.signs import guess, is_sure, takes
from ....lora_core.families.table import Family, for_config_class
from ....lora_core.files import mismatch
from ....lora_core.files.fused import whole
from ....lora_core.files.mismatch import Misfit, misfit_of
from ....lora_core.files.written import FileLayer
from ....lora_core.kinds import Correction, placed
from ....lora_core.low_rank import LowRank
from ....lora_core.training.targets import weight_shape
from ..host.wires import Clip, Model
from .written_names import preferred, speaks


def family_of(model: Model) -> Family:
    """Return the table row of a MODEL, in the spelling of its size."""
    row = for_config_class(type(model.model.model_config).__name__)
    if not row.sizes:
        return row
    layers = dict(model.model.diffusion_model.named_modules())
    return row.sized(lambda name: getattr(layers.get(name), "out_features", 0))


class Target(NamedTuple):
    """A layer, the rows of its weight that a file name covers (None: all), and a reordering of those rows, if any:
    ComfyUI has one, which swaps the halves and so undoes itself."""

    layer: str
    rows: tuple[int, int] | None = None
    reorder: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Resolved:
    """An adapter in the model's own names, with the file's names that the model does not have, and the layers that have
    another shape in it: neither is in the adapter."""

    adapter: Adapter
    unmatched: tuple[str, ...]
    misfits: tuple[Misfit, ...] = ()


class NameTable:
    """All names that mean a weight of this MODEL and, when given, this CLIP. Use `names_of`, which makes it once."""

    def __init__(self, model: Model, clip: Clip | None = None):
        self._resolved: WeakKeyDictionary[Adapter, Resolved] = WeakKeyDictionary()
        self.family = family_of(model)
        self.config_class = type(model.model.model_config).__name__
        self.shapes = _shapes(model.model, "diffusion_model.", "")
        self.parameters = _parameters(model.model, "diffusion_model.", "")
        self.targets = {
            name: _target(value, "") for name, value in comfy.lora.model_lora_keys_unet(model.model, {}).items()
        }
        if clip is not None:
            text = clip.cond_stage_model
            self.shapes |= _shapes(text, "", TEXT_PREFIX)
            self.parameters |= _parameters(text, "", TEXT_PREFIX)
            self.targets |= {
                name: _target(value, TEXT_PREFIX) for name, value in comfy.lora.model_lora_keys_clip(text, {}).items()
            }
        self.written = tuple(self.targets)  # the names that ComfyUI's loaders know
        self.targets |= {
            name.replace(".processor.to_", ".to_"): t for name, t in self.targets.items() if ".processor.to_" in name
        }
        self.targets |= {f"{name}.0": t for name, t in self.targets.items() if name.endswith(".to_out")}
        self.targets |= {name: self._fitted(t) for name, t in self.targets.items() if t.rows}
        self.targets |= self._names_of_diffusers(self.config_class)
        self.has_text = clip is not None

    def resolve(self, adapter: Adapter, source: str) -> Resolved:
        """Name the adapter's layers after the model's weights; slices of a fused weight become one layer.

        A layer that the model lacks, or has in another shape, is left out and named. Raises ValueError when nothing is
        left, when the layers are those of another family or size of model, or when two names mean one weight. The same
        adapter gives the same layers again.
        """
        if adapter not in self._resolved:
            self._resolved[adapter] = self._resolve(adapter, source)
        return self._resolved[adapter]

    def _resolve(self, adapter: Adapter, source: str) -> Resolved:
        found: dict[str, dict[tuple[int, int] | None, LowRank]] = {}
        others: dict[str, dict[tuple[int, int] | None, tuple[Correction, ...]]] = {}
        places, misfits = self._places(adapter), []
        for name, change in (*adapter.layers.items(), *adapter.others.items()):
            if (target := places.get(name)) is None or (shape := self._shape_of(target.layer)) is None:
                continue
            wanted = (target.rows[1] if target.rows else shape[0], *shape[1:])
            if misfit := misfit_of(name, change, target.layer, wanted):
                misfits.append(misfit)
                continue
            if target.rows in found.get(target.layer, ()) or target.rows in others.get(target.layer, ()):
                raise ValueError(
                    f"{source} is not valid: {name} and another key both change {target.layer}; choose another file"
                )
            if isinstance(change, LowRank):
                found.setdefault(target.layer, {})[target.rows] = _fitted(change, target, shape)
            else:
                items = tuple(placed(item, target.rows, shape[0], target.reorder) for item in change)
                others.setdefault(target.layer, {})[target.rows] = items
        unmatched = tuple(name for name in (*adapter.layers, *adapter.others) if name not in places)
        if unmatched or misfits or not places:
            self._check(adapter, source, unmatched, misfits, [*found, *others])
        layers = {layer: whole(parts, self.shapes[layer][0]) for layer, parts in found.items()}
        chained = {layer: tuple(item for items in parts.values() for item in items) for layer, parts in others.items()}
        return Resolved(replace(adapter, layers=layers, others=chained), unmatched, tuple(misfits))

    def _check(
        self, adapter: Adapter, source: str, unmatched: tuple[str, ...], misfits: list[Misfit], fitting: list[str]
    ) -> None:
        """Raises ValueError when the file is for another family or size of model, or nothing of it is left."""
        names, family = [*adapter.layers, *adapter.others], self.family.name
        families, told = _guess(adapter, {}), _guess(adapter)
        in_network = [misfit for misfit in misfits if not misfit.is_text]
        if in_network:
            fitting = [layer for layer in fitting if not layer.startswith(TEXT_PREFIX)]
        there = set(names).difference(unmatched)
        strange = sum(not is_text(name) and name.removesuffix(".bias") not in there for name in unmatched)
        foreign = not takes(family, families)
        other = not is_sure(family, told) and mismatch.is_another_model(in_network, len(fitting), strange)
        if misfits and (foreign or other or mismatch.is_another_size(in_network or misfits, len(fitting))):
            raise ValueError(mismatch.another_size(source, misfits, len(fitting), family, told))
        if foreign or fitting and other:
            raise ValueError(mismatch.another_family(source, names, len(fitting), family, told))
        if not fitting and all(map(is_text, names)):
            raise ValueError(mismatch.text_alone(source, names, self.has_text))
        if not fitting:
            known = next((layer for layer in self.shapes if ".0." in layer), next(iter(self.shapes)))
            raise ValueError(mismatch.unknown_names(source, unmatched, family, told, known))

    def file_names(self, style: str, layers: list[str]) -> dict[str, list[FileLayer]]:
        """Return the names under which a file of that style holds each layer. Raises ValueError when the style has
        none."""
        if style == "native":
            return {layer: [FileLayer(layer, None)] for layer in layers}
        spelled = self._spelled(style, layers)
        if missing := [layer for layer in layers if not spelled.get(layer)]:
            kind = "diffusers" if style == "peft" else style
            raise ValueError(
                f"{self.family.name} has no {kind} name for {len(missing)} of {len(layers)} layers, "
                f"for example {missing[0]}; save in the 'comfyui' format"
            )
        numbered = any(name.startswith("lora_te2_") for name in self.targets)
        return {layer: preferred(style, layer, spelled[layer], numbered) for layer in layers}

    def is_read_here_alone(self, style: str) -> bool:
        """Whether ComfyUI's own loaders know no name of a file of that style."""
        return style == "peft" and bool(diffusers_names.part_of(self.config_class))

    def unnamed(self, style: str, layers: Sequence[str]) -> list[str]:
        """The layers that a file of that style cannot hold."""
        spelled = self._spelled(style, layers)
        return [layer for layer in layers if not spelled.get(layer)]

    def _spelled(self, style: str, layers: Sequence[str]) -> dict[str, list[FileLayer]]:
        """Every name that means a layer in the style, in any number for each."""
        spelled: dict[str, list[FileLayer]] = {}
        for name in self.written:
            target = self.targets[name]
            if speaks(style, name) and not re.search(self.family.foreign, name):
                spelled.setdefault(target.layer, []).append(FileLayer(name, target.rows, target.reorder))
        if style == "peft":
            spelled |= self._own_names(layers)
        for layer in (layer for layer in layers if layer.endswith(".bias")):
            beside = spelled.get(layer.removesuffix(".bias"), ())
            spelled[layer] = [file._replace(name=f"{file.name}.bias") for file in beside]
        return spelled

    def _own_names(self, layers: Sequence[str]) -> dict[str, list[FileLayer]]:
        """Return the names for layers of a network that diffusers knows by ComfyUI's own names; none for a layer that
        it passes over."""
        inside = [layer for layer in layers if layer.startswith("diffusion_model.")]
        known = {
            layer: diffusers_names.own_name(self.config_class, layer.removeprefix("diffusion_model."))
            for layer in inside
        }
        return {layer: [FileLayer(name)] if name else [] for layer, name in known.items() if name is not None}

    def _names_of_diffusers(self, config_class: str) -> dict[str, Target]:
        """Where ComfyUI has none, or not all."""
        inside = [layer for layer in self.shapes if layer.startswith("diffusion_model.")]
        names = {
            name: Target(layer)
            for layer in inside
            for name in diffusers_names.names_of_part(config_class, layer.removeprefix("diffusion_model."))
        }
        rules = diffusers_names.rules_for(config_class)
        for layer in inside if rules else ():
            name = "transformer." + diffusers_names.renamed(layer.removeprefix("diffusion_model."), rules)
            if name.endswith(".qkv"):
                slices = zip("qkv", _thirds(self.shapes[layer]), strict=True)
                names |= {f"{name[:-3]}to_{part}": Target(layer, rows) for part, rows in slices}
            else:
                names[name] = Target(layer)
        return names

    def _places(self, adapter: Adapter) -> dict[str, Target]:
        """Where the file's layers belong in the model: by the names that are known, and what is left by likeness."""
        names = (*adapter.layers, *adapter.others)
        places = {name: target for name in names if (target := _target_of(name, self.targets))}
        missing = {name for name in names if name not in places}
        if missing and not self.has_text:
            missing -= self._loose.of_text(names)
        if missing:
            families = _guess(adapter, {})
            if takes(self.family.name, families):
                vouched = self.family.name in families
                alike = self._loose.places({name.removesuffix(".bias") for name in missing}, vouched)
                places |= {name: target for name in missing if (target := _target_of(name, alike))}
        return {name: target for name, target in places.items() if self._shape_of(target.layer) is not None}

    @cached_property
    def _loose(self) -> LooseNames[Target]:
        network = {name: t for name, t in self.targets.items() if not t.layer.startswith(TEXT_PREFIX)}
        slices = numbered_slices((t.layer, t.rows) for t in network.values() if t.rows and not t.reorder)
        network |= {name: Target(*place) for name, place in slices.items()}
        text = [layer for layer in self.shapes if layer.startswith(TEXT_PREFIX)]
        return LooseNames(network, {layer.removeprefix(TEXT_PREFIX): Target(layer) for layer in text})

    def _shape_of(self, name: str) -> torch.Size | None:
        return self.shapes.get(name, self.parameters.get(name))

    def _fitted(self, target: Target) -> Target:
        """ComfyUI's maps take q, k and v of a fused weight for equally high; with grouped queries they are not."""
        shape = self.shapes.get(target.layer)
        if shape is None or target.rows is None or not target.layer.endswith(".qkv") or shape[0] >= 3 * shape[1]:
            return target
        return target._replace(rows=_thirds(shape)[target.rows[0] // shape[1]])


_TABLES: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, NameTable]] = WeakKeyDictionary()


def names_of(model: Model, clip: Clip | None = None) -> NameTable:
    """Return the table of a MODEL and CLIP, the same for all that share their networks."""
    text = clip.cond_stage_model if clip is not None else model.model
    tables = _TABLES.setdefault(model.model, WeakKeyDictionary())
    if text not in tables:
        tables[text] = NameTable(model, clip)
    return tables[text]


def _guess(adapter: Adapter, metadata: Mapping[str, str] | None = None) -> tuple[str, ...]:
    shapes = {name: tuple(low_rank.shape) for name, low_rank in adapter.layers.items()}
    shapes |= {name: items[0].shape for name, items in adapter.others.items()}
    return guess(shapes, adapter.metadata if metadata is None else metadata)


def _shapes(network: nn.Module, inside: str, prefix: str) -> dict[str, torch.Size]:
    """Logical shapes, where the state dict has those of the bytes that quantised weights are stored in."""
    return {
        prefix + path: torch.Size(weight_shape(layer))
        for path, layer in network.named_modules(remove_duplicate=False)
        if path.startswith(inside) and torch.is_tensor(getattr(layer, "weight", None))
    }


def _parameters(network: nn.Module, inside: str, prefix: str) -> dict[str, torch.Size]:
    """Shapes of everything that is no layer's weight: biases, and what models hold outside of layers."""
    return {
        prefix + name: value.shape
        for name, value in network.named_parameters(remove_duplicate=False)
        if name.startswith(inside) and not name.endswith(".weight")
    }


def _target_of(name: str, targets: Mapping[str, Target]) -> Target | None:
    """A bias goes by the name of its layer, or by one of its own."""
    if (target := targets.get(name)) or not name.endswith(".bias"):
        return target
    weight = targets.get(name.removesuffix(".bias"))
    return weight and weight._replace(layer=f"{weight.layer}.bias")


def _fitted(change: LowRank, target: Target, shape: torch.Size) -> LowRank:
    if target.reorder:
        change = replace(change, lora_B=target.reorder(change.lora_B))
    return change if change.kernel == shape[2:] else replace(change, kernel=tuple(shape[2:]))


def _thirds(shape: torch.Size) -> tuple[tuple[int, int], ...]:
    """(start, length) of q, k and v in a fused weight, whose queries are as wide as its input."""
    height, width = shape
    lower = (height - width) // 2
    return (0, width), (width, lower), (width + lower, lower)


def _target(value: Any, prefix: str) -> Target:
    if isinstance(value, str):
        return Target(prefix + value.removesuffix(".weight"))
    parts: tuple[Any, ...] = (*value, None, None)
    key, offset, reorder = parts[:3]
    rows = (offset[1], offset[2]) if offset is not None and offset[0] == 0 else None
    return Target(prefix + key.removesuffix(".weight"), rows, reorder)
