"""Lists every tensor of a safetensors file: what it is in a LoRA, its size and its norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import bundled, guard, layers, reader, strays
from .conversions import converted
from .faults import UnsafeFileError
from .layers import LayerKeys, TensorInfo

COLUMNS = ("name", "shape", "type", "bytes", "norm", "layer", "part")
_LEFT_OUT = "left out: "
_AT_ONCE = 2**20  # numbers


@dataclass(frozen=True)
class ListedTensor:
    """`norm` is the Frobenius norm of the stored numbers, summed in fp64; `layer` the name of the layer as the file
    spells it, empty for a tensor that is in none, of which `part` says what it is, and that it is left out."""

    name: str
    info: TensorInfo
    norm: float
    layer: str
    part: str

    def cells(self) -> tuple[str, ...]:
        """Return it as texts, in the order of COLUMNS. A file with tabs or line breaks in names is not read."""
        shape = " x ".join(map(str, self.info.shape)) or "one number"
        size = str(self.info.end - self.info.start)
        return self.name, shape, self.info.dtype, size, f"{self.norm:.6g}", self.layer, self.part


@dataclass(frozen=True)
class Listing:
    """`fault` is why nothing of the file is used as a LoRA, "" for a sound one."""

    tensors: Sequence[ListedTensor]
    fault: str = ""

    def summary(self) -> str:
        """`24 tensors in 12 layers, 9,216 bytes, 1 left out`, with the fault of the file, if it has one."""
        count, used = len(self.tensors), {each.layer for each in self.tensors if each.layer}
        size = sum(each.info.end - each.info.start for each in self.tensors)
        left = sum(each.part.startswith(_LEFT_OUT) for each in self.tensors)
        told = f"{_counted(count, 'tensor')} in {_counted(len(used), 'layer')}, {size:,} bytes"
        return told + (f", {left} left out" if left else "") + (f"; {self.fault}" if self.fault else "")

    def text(self) -> str:
        """Return it as a table of columns between tabs, the summary above it on a line that begins with #."""
        rows = ["\t".join(each.cells()) for each in self.tensors]
        return "\n".join([f"# {self.summary()}", "\t".join(COLUMNS), *rows])


def listing(path: Path, found: guard.Contents, tick: Callable[[], None] = lambda: None) -> Listing:
    """Return what the file holds, in its own order. Only norms read the tensors, one after the other from the mapped
    file; `tick` is called before each. Raises UnreadableFileError when the file cannot be opened."""
    names, read, fault = _layers(path.name, found.tensors)
    places = {key: (layer, part) for layer, keys in read.items() for part, key in keys.keys.items()}
    header = guard.Header(path, found.metadata, found.tensors, read, found.data_start, found.size)
    tensors = reader.tensors_of(header, reader.contents(header))
    listed = []
    for name, info in found.tensors.items():
        tick()
        layer, part = places.get(names.get(name, name)) or ("", _beside(name, tensors))
        listed.append(ListedTensor(name, info, norm(tensors[name]), layer, part))
    return Listing(listed, fault)


def _beside(name: str, tensors: Mapping[str, Tensor]) -> str:
    return strays.kind(name) if bundled.taken(tensors, (name,))[0] else _LEFT_OUT + strays.kind(name)


def norm(tensor: Tensor) -> float:
    """Return the Frobenius norm of a tensor of any type, summed in fp64, a little at a time."""
    pieces = tensor.flatten().split(_AT_ONCE)
    return float(torch.stack([torch.linalg.vector_norm(piece.double()) for piece in pieces]).norm())


def _layers(source: str, tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, str], dict[str, LayerKeys], str]:
    """The names by which layers are looked up, the layers under these, and why there are none."""
    try:
        described = converted(source, tensors, lambda numbers: TensorInfo("I64", (len(numbers),)))
        found = layers.check_layers(source, described)
    except UnsafeFileError as error:
        return {}, {}, str(error)
    names = dict(zip(tensors, described, strict=False))  # what is made of no tensor comes last
    used = {key for layer in found.values() for key in layer.keys.values()}
    left = (name for name in described if name not in used)
    fault = strays.pieces(source, left, found)
    return (names, {}, fault) if fault else (names, found, "")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
