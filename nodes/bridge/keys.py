"""ComfyUI's names for weights: which layer of a loaded model each name in a LoRA file means, and back.

The spellings are ComfyUI's own key maps, so a name means here what it means to every other loader. A layer of our own
is called after the weight it corrects: `diffusion_model.<path>` or `text_encoders.<path>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import comfy.lora
import torch
from torch import nn

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.families import Family, for_config_class
from ...lora_core.files import diffusers_names
from ...lora_core.files.formats import FileLayer
from ...lora_core.guess import guess, named, takes
from ...lora_core.kinds import Correction, placed
from ...lora_core.low_rank import LowRank
from ...lora_core.training.targets import weight_shape


def family_of(model) -> Family:
    """The table row of a MODEL, in the spelling of its size."""
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
    """An adapter in the model's own names, with the file's names that the model does not have."""

    adapter: Adapter
    unmatched: tuple[str, ...]


class NameTable:
    """All names that mean a weight of this MODEL and, when given, this CLIP. Use `names_of`, which makes it once."""

    def __init__(self, model, clip=None):
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

        Raises ValueError when nothing matches, when the layers are those of another family, when a layer does not fit
        its weight, or when two names mean one weight. The same adapter gives the same layers again.
        """
        if adapter not in self._resolved:
            self._resolved[adapter] = self._resolve(adapter, source)
        return self._resolved[adapter]

    def _resolve(self, adapter: Adapter, source: str) -> Resolved:
        found: dict[str, dict[tuple[int, int] | None, LowRank]] = {}
        others: dict[str, dict[tuple[int, int] | None, tuple[Correction, ...]]] = {}
        unmatched = []
        for name, change in (*adapter.layers.items(), *adapter.others.items()):
            target = self._target_of(name)
            if target is None or (shape := self._shape_of(target.layer)) is None:
                unmatched.append(name)
                continue
            if target.rows in found.get(target.layer, ()) or target.rows in others.get(target.layer, ()):
                raise ValueError(
                    f"{source}: {name} and another key both correct {target.layer}; the file holds it twice"
                )
            if isinstance(change, LowRank):
                parts = found.setdefault(target.layer, {})
                parts[target.rows] = self._fitting(name, change, target, shape, source, adapter)
            else:
                for item in change:
                    self._check_fit(name, item, target, shape, source, adapter)
                items = tuple(placed(item, target.rows, shape[0], target.reorder) for item in change)
                others.setdefault(target.layer, {})[target.rows] = items
        if not (found or others) or (unmatched and not takes(self.family.name, _guess(adapter, {}))):
            raise ValueError(self._stranger(adapter, source, len(found) + len(others)))
        layers = {layer: _whole(parts, self.shapes[layer][0]) for layer, parts in found.items()}
        chained = {layer: tuple(item for items in parts.values() for item in items) for layer, parts in others.items()}
        return Resolved(replace(adapter, layers=layers, others=chained), tuple(unmatched))

    def file_names(self, style: str, layers: list[str]) -> dict[str, list[FileLayer]]:
        """The names under which a file of that style holds each layer. Raises ValueError when the style has none."""
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
        return {layer: _preferred(style, layer, spelled[layer], numbered) for layer in layers}

    def unnamed(self, style: str, layers: Sequence[str]) -> list[str]:
        """The layers that a file of that style cannot hold."""
        spelled = self._spelled(style, layers)
        return [layer for layer in layers if not spelled.get(layer)]

    def _spelled(self, style: str, layers: Sequence[str]) -> dict[str, list[FileLayer]]:
        """Every name that means a layer in the style, in any number for each."""
        spelled: dict[str, list[FileLayer]] = {}
        for name in self.written:
            target = self.targets[name]
            if _speaks(style, name) and not re.search(self.family.foreign, name):
                spelled.setdefault(target.layer, []).append(FileLayer(name, target.rows, target.reorder))
        if style == "peft":
            spelled |= self._own_names(layers)
        for layer in (layer for layer in layers if layer.endswith(".bias")):
            beside = spelled.get(layer.removesuffix(".bias"), ())
            spelled[layer] = [file._replace(name=f"{file.name}.bias") for file in beside]
        return spelled

    def _own_names(self, layers: Sequence[str]) -> dict[str, list[FileLayer]]:
        """Of a network that diffusers knows by ComfyUI's own names; none for a layer that it passes over."""
        inside = [layer for layer in layers if layer.startswith("diffusion_model.")]
        known = {
            layer: diffusers_names.has_own_name(self.config_class, layer.removeprefix("diffusion_model."))
            for layer in inside
        }
        return {layer: [FileLayer(layer)] if known[layer] else [] for layer in inside if known[layer] is not None}

    def _names_of_diffusers(self, config_class: str) -> dict[str, Target]:
        """Where ComfyUI has none, or not all."""
        names: dict[str, Target] = {}
        rules = diffusers_names.rules_for(config_class)
        for layer in (layer for layer in self.shapes if rules and layer.startswith("diffusion_model.")):
            name = "transformer." + diffusers_names.renamed(layer.removeprefix("diffusion_model."), rules)
            if name.endswith(".qkv"):
                slices = zip("qkv", _thirds(self.shapes[layer]), strict=True)
                names |= {f"{name[:-3]}to_{part}": Target(layer, rows) for part, rows in slices}
            else:
                names[name] = Target(layer)
        return names

    def _target_of(self, name: str) -> Target | None:
        """A bias goes by the name of its layer, or by one of its own."""
        if (target := self.targets.get(name)) or not name.endswith(".bias"):
            return target
        weight = self.targets.get(name.removesuffix(".bias"))
        return weight and weight._replace(layer=f"{weight.layer}.bias")

    def _shape_of(self, name: str) -> torch.Size | None:
        return self.shapes.get(name, self.parameters.get(name))

    def _fitted(self, target: Target) -> Target:
        """ComfyUI's maps take q, k and v of a fused weight for equally high; with grouped queries they are not."""
        shape = self.shapes.get(target.layer)
        if shape is None or not target.layer.endswith(".qkv") or shape[0] >= 3 * shape[1]:
            return target
        return target._replace(rows=_thirds(shape)[target.rows[0] // shape[1]])

    def _fitting(
        self, name: str, low_rank: LowRank, target: Target, shape: torch.Size, source: str, adapter: Adapter
    ) -> LowRank:
        rows = target.rows[1] if target.rows else shape[0]
        if low_rank.lora_B.shape[0] != rows or low_rank.lora_A.shape[1] != shape[1:].numel():
            raise ValueError(self._misfit(name, low_rank.shape, target.layer, (rows, *shape[1:]), source, adapter))
        if target.reorder:
            low_rank = replace(low_rank, lora_B=target.reorder(low_rank.lora_B))
        return low_rank if low_rank.kernel == shape[2:] else replace(low_rank, kernel=tuple(shape[2:]))

    def _check_fit(
        self, name: str, item: Correction, target: Target, shape: torch.Size, source: str, adapter: Adapter
    ) -> None:
        wanted = (target.rows[1] if target.rows else shape[0], *shape[1:])
        if not item.fits(wanted):
            raise ValueError(self._misfit(f"{name} ({item.kind})", item.shape, target.layer, wanted, source, adapter))

    def _misfit(self, name: str, held: tuple, layer: str, wanted: tuple, source: str, adapter: Adapter) -> str:
        return (
            f"{source}: {name} corrects a weight of shape {held}, but {layer} of this {self.family.name} model is "
            f"{wanted}; the file was made for {self._made_for(adapter)}"
        )

    def _stranger(self, adapter: Adapter, source: str, matching: int) -> str:
        names = [*adapter.layers, *adapter.others]
        if not self.has_text and any(name.startswith(("lora_te", "text_encoder")) for name in names):
            return f"{source} changes only the text encoder; connect CLIP"
        return (
            f"{source} is a LoRA for {named(_guess(adapter))} and matches {matching or 'none'} of this "
            f"{self.family.name} model's layers (its first key is {names[0]}); use a LoRA made for {self.family.name}"
        )

    def _made_for(self, adapter: Adapter) -> str:
        families = _guess(adapter)
        if self.family.name in families:
            return f"another size of {self.family.name}" if len(families) == 1 else named(families)
        return named(families) if families else "another model"


_TABLES: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, NameTable]] = WeakKeyDictionary()


def names_of(model, clip=None) -> NameTable:
    """The table of a MODEL and CLIP, the same for all that share their networks."""
    text = clip.cond_stage_model if clip is not None else model.model
    tables = _TABLES.setdefault(model.model, WeakKeyDictionary())
    if text not in tables:
        tables[text] = NameTable(model, clip)
    return tables[text]


def _guess(adapter: Adapter, metadata: Mapping[str, str] | None = None) -> tuple[str, ...]:
    shapes = {name: tuple(low_rank.shape) for name, low_rank in adapter.layers.items()}
    shapes |= {name: items[0].shape for name, items in adapter.others.items()}
    return guess(shapes, adapter.metadata if metadata is None else metadata)


def _shapes(model, inside: str, prefix: str) -> dict[str, torch.Size]:
    """Logical shapes, where the state dict has those of the bytes that quantised weights are stored in."""
    return {
        prefix + path: torch.Size(weight_shape(layer))
        for path, layer in model.named_modules(remove_duplicate=False)
        if path.startswith(inside) and torch.is_tensor(getattr(layer, "weight", None))
    }


def _parameters(model, inside: str, prefix: str) -> dict[str, torch.Size]:
    """Shapes of everything that is no layer's weight: biases, and what models hold outside of layers."""
    return {
        prefix + name: value.shape
        for name, value in model.named_parameters(remove_duplicate=False)
        if name.startswith(inside) and not name.endswith(".weight")
    }


def _thirds(shape: torch.Size) -> tuple[tuple[int, int], ...]:
    """(start, length) of q, k and v in a fused weight, whose queries are as wide as its input."""
    height, width = shape
    lower = (height - width) // 2
    return (0, width), (width, lower), (width + lower, lower)


def _target(value, prefix: str) -> Target:
    if isinstance(value, str):
        return Target(prefix + value.removesuffix(".weight"))
    key, offset, reorder = (*value, None, None)[:3]
    rows = (offset[1], offset[2]) if offset is not None and offset[0] == 0 else None
    return Target(prefix + key.removesuffix(".weight"), rows, reorder)


def _whole(parts: Mapping[tuple[int, int] | None, LowRank], height: int) -> LowRank:
    if parts.keys() == {None}:
        return parts[None]
    return joined([(rows[0] if rows else 0, part) for rows, part in parts.items()], height)


def joined(parts: Sequence[tuple[int, LowRank]], height: int) -> LowRank:
    """One correction of a weight of `height` rows, of those of slices that start at a row, at their common scaling if
    they have one. Slices of one pair, as formats that split fused weights write them, share A and get their rank back.
    """
    first = parts[0][1]
    if any(part.scaling != first.scaling for _, part in parts):
        parts = [(start, LowRank.concat([part])) for start, part in parts]
        first = parts[0][1]
    apart = sum(len(part.lora_B) for _, part in parts) <= height
    shared = apart and all(_same(part.lora_A, first.lora_A) for _, part in parts[1:])
    lora_A = first.lora_A if shared else torch.cat([part.lora_A for _, part in parts])
    lora_B = torch.zeros(height, len(lora_A), dtype=lora_A.dtype, device=lora_A.device)
    column = 0
    for start, part in parts:
        lora_B[start : start + len(part.lora_B), column : column + part.rank] = part.lora_B
        column += 0 if shared else part.rank
    return LowRank(lora_A, lora_B, first.scaling * len(lora_A), first.kernel)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """As bytes, which takes half the time of comparing numbers of 16 bits."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _speaks(style: str, name: str) -> bool:
    if style == "kohya":
        return name.startswith(("lora_unet_", "lora_te")) and not name.startswith("lora_te_model")
    return name.startswith(("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3."))


def _preferred(style: str, layer: str, names: list[FileLayer], numbered: bool) -> list[FileLayer]:
    """One way to write a layer: diffusers' names over ComfyUI's own, slices only where there is no whole. kohya calls
    text encoders te1, te2 and so on when they are `numbered`, and the only one te."""
    whole = [name for name in names if name.rows is None]
    if not whole:
        unique = {name.rows: name for name in names}
        return [unique[rows] for rows in sorted(unique)]
    own = "lora_unet_" + layer.removeprefix("diffusion_model.").replace(".", "_")
    return [max(whole, key=lambda file: (*_rank_of(style, file.name, own, numbered), file.name))]


def _rank_of(style: str, name: str, own: str, numbered: bool) -> tuple[bool, ...]:
    if style == "kohya":
        return (name != own, name.startswith("lora_te_") != numbered)
    return (name.endswith(".to_out.0"),)
