"""Defines what every kind of correction of one weight can do, whatever its formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

USUAL = 0.02  # root mean square of most networks' weights
Shapes = Mapping[str, tuple[int, ...]]
_Kind = TypeVar("_Kind", bound="Correction")


class Correction:
    """A frozen dataclass of tensors that says how one weight changes. A plain LoRA is a `LowRank` instead.

    `kind` is what reports call it. `depends_on_weight` tells that the change is not a fixed matrix, so that the order
    in which several are applied matters. `PARTS` are the pieces a file holds, by their suffix; `TAKES_DORA` tells
    that a file may scale them as DoRA does, `HAS_SCALE` that there is a `scale`, which the change is a multiple of.
    """

    kind: ClassVar[str]
    depends_on_weight: ClassVar[bool] = False
    PARTS: ClassVar[tuple[str, ...]] = ()
    TAKES_DORA: ClassVar[bool] = True
    HAS_SCALE: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape as the factors tell it, (out, in[, *kernel]); a kernel may be folded into `in`."""
        raise NotImplementedError

    @property
    def new_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the changed weight where it is another one, else None."""
        return None

    def fits(self, weight: tuple[int, ...]) -> bool:
        """Return whether a weight of that shape can be changed by this."""
        return self.shape[0] == weight[0] and prod(self.shape) == prod(weight)

    def difference(self, weight: Tensor) -> Tensor:
        """Return what strength 1 adds to `weight`, shaped like it. Sums are done in `weight`'s type, fp32 or fp64."""
        raise NotImplementedError

    def apply_to(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the changed weight in its own dtype, computed in fp32 or wider; `weight` itself stays as it is."""
        wide = widened(weight)
        return self._changed(wide, strength).to(weight.dtype)

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        return torch.add(weight, self.difference(weight), alpha=strength)

    def scaled(self: _Kind, factor: float) -> _Kind:
        """So many times the change, of kinds that have a scale."""
        kind: Any = self  # a dataclass with a `scale`, which not all have
        return replace(kind, scale=kind.scale * factor)

    def reach(self) -> tuple[float, float]:
        """(f, r): strength 1 adds to a weight W about `f + r * norm(W)` at the most, by the norms of the tensors."""
        return abs(getattr(self, "scale", 1.0)) * prod(map(norm, self.tensors())), 0.0

    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors())

    def to(self: _Kind, *args: Any, **kwargs: Any) -> _Kind:
        """As `Tensor.to`, on every tensor."""
        return mapped(self, lambda tensor: tensor.to(*args, **kwargs))

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order that `with_tensors` takes them."""
        found: list[Tensor] = []
        mapped(self, lambda tensor: found.append(tensor) or tensor)
        return found

    def with_tensors(self: _Kind, tensors: Iterable[Tensor]) -> _Kind:
        supply = iter(tensors)
        return mapped(self, lambda _: next(supply))

    @classmethod
    def fault(cls, parts: Shapes) -> str:
        """Return what is wrong with a file's pieces of these shapes, or "": judged before any tensor is read."""
        raise NotImplementedError

    @classmethod
    def alpha_means(cls, parts: Iterable[str]) -> Literal["scale", "limit", "nothing"]:
        """Tell what `alpha` is to these pieces: alpha / rank scales the change, or it limits a rotation, or neither."""
        return "scale"

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor], alpha: float | None) -> Correction:
        """From a file's pieces; `alpha` is None when the file has none, or it means nothing."""
        raise NotImplementedError

    def parts(self) -> tuple[dict[str, Tensor], float | None]:
        """Return the pieces that `from_parts` makes it of; none of a kind that is not written to files."""
        return {}, None

    def rows(self: _Kind, start: int, length: int) -> _Kind | None:
        """Return the correction of those rows of the weight, exactly; None where the kind cannot be cut there."""
        return None


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed, through tuples and nested dataclasses."""
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: mapped(getattr(value, field.name), change) for field in fields(value)})


def widened(tensor: Tensor) -> Tensor:
    """fp64 as it is, everything else in fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def norm(tensor: Tensor) -> float:
    """Frobenius norm, summed in fp32."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.promote_types(tensor.dtype, torch.float32)))


def like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a factor on the weight's device and in its dtype."""
    return tensor.to(weight.device, weight.dtype)


def tucker_shape(a: Tensor, b: Tensor, core: Tensor) -> tuple[int, ...]:
    """Return the shape of the weight that factors (rank, out), (rank, in) make around a core (rank, rank, *kernel)."""
    return (a.shape[1], b.shape[1], *core.shape[2:])


def tucker_fault(a: tuple[int, ...], b: tuple[int, ...], core: tuple[int, ...]) -> str:
    """Return what is wrong with factors of these shapes, or ""."""
    if len(core) < 3 or (core[0], core[1]) != (a[0], b[0]):
        return f"ranks disagree: {list(a)} and {list(b)} around {list(core)}"
    return ""
