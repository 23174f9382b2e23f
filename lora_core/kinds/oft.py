"""OFT and BOFT: the rows of a weight turned by orthogonal matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..stored import stored
from .correction import Correction, Shapes, like, norm


@stored("blocks constraint", tag="OFT")
@dataclass(frozen=True, eq=False)
class OFT(Correction):
    """`W' = R^T W`, R block-diagonal and orthogonal (Qiu et al. 2023, arXiv:2306.07280).

    `blocks` (number, size, size): `Q = blocks - blocks^T`, `R = (I + Q) (I - Q)^-1` (Cayley). `constraint`, when it is
    above 0, is the largest Frobenius norm of all Q. ComfyUI squares the strength, and so does this: at -1 an OFT does
    what it does at 1. It has no use for a `rescale` either.
    """

    blocks: Tensor
    constraint: float = 0.0

    kind = "OFT"
    depends_on_weight = True
    TAKES_DORA = False
    PARTS = ("oft_blocks", "rescale")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.blocks.shape[-3] * self.blocks.shape[-1],)

    def fits(self, weight: tuple[int, ...]) -> bool:
        return weight[0] == self.shape[0]

    def difference(self, weight: Tensor) -> Tensor:
        blocks = rearrange(weight, "(k n) ... -> k n (...)", n=self.blocks.shape[-1])
        turned = torch.einsum("knm,kni->kmi", self._rotation(weight), blocks)
        return turned.reshape(weight.shape) - weight

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        return weight + strength**2 * self.difference(weight)

    def _rotation(self, weight: Tensor) -> Tensor:
        blocks = like(self.blocks, weight)
        skew = blocks - blocks.mT
        if (norm := float(skew.norm()) + 1e-8) > self.constraint > 0:
            skew = skew * (self.constraint / norm)
        identity = torch.eye(blocks.shape[-1], dtype=weight.dtype, device=weight.device)
        return torch.linalg.solve(identity - skew, identity + skew, left=False)

    def reach(self) -> tuple[float, float]:
        """A rotation alone comes to 2 at the most; this goes on, to tell the wildest."""
        return 0.0, 2 * norm(self.blocks - self.blocks.mT) / self.shape[0] ** 0.5

    @classmethod
    def fault(cls, parts: Shapes) -> str:
        blocks, rescale = parts.get("oft_blocks"), parts.get("rescale")
        if blocks is None:
            return "oft_blocks is missing"
        if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2]:
            return f"oft_blocks has shape {list(blocks)}, where (number, size, size) belongs, of BOFT one more in front"
        rows = blocks[-3] * blocks[-1]
        if len(blocks) == 4 and (blocks[-1] % 2 or blocks[0] > 32 or rows % (2 ** blocks[0] * (blocks[-1] // 2))):
            return f"{blocks[0]} butterfly stages of blocks of {blocks[-1]} do not divide {rows} rows"
        if rescale is not None and (rescale[0], prod(rescale)) != (rows, rows):
            return f"rescale has shape {list(rescale)}, where one number for each of {rows} rows belongs"
        return ""

    @classmethod
    def alpha_means(cls, parts: Iterable[str]) -> Literal["limit"]:
        return "limit"

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor], alpha: float | None) -> OFT:
        blocks, rescale = parts["oft_blocks"], parts.get("rescale")
        if blocks.ndim == 3:
            return OFT(blocks, alpha or 0.0)
        return BOFT(blocks, alpha or 0.0, None if rescale is None else rescale.flatten())


@stored("blocks constraint rescale", tag="BOFT")
@dataclass(frozen=True, eq=False)
class BOFT(OFT):
    """The same with R a product of `blocks` (stages, number, size, size) in butterfly order, each stage turning rows
    twice as far apart (Liu et al. 2023, arXiv:2311.06243), and each row then times `rescale` (rows).

    Strength s bends every stage to `s R + (1 - s) I`, and then adds s times the change, as ComfyUI does.
    """

    rescale: Tensor | None = None

    kind = "BOFT"
    PARTS = ()

    def difference(self, weight: Tensor) -> Tensor:
        return self._turned(weight, 1.0) - weight

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        return weight + strength * (self._turned(weight, strength) - weight)

    def reach(self) -> tuple[float, float]:
        return 0.0, super().reach()[1] + (0.0 if self.rescale is None else float(self.rescale.abs().max()))

    def _turned(self, weight: Tensor, strength: float) -> Tensor:
        rotations, size = self._rotation(weight), self.blocks.shape[-1]
        identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
        rows = weight.flatten(1)
        for stage, rotation in enumerate(strength * rotations + (1 - strength) * identity):
            far = {"two": 2, "group": 2**stage, "half": size // 2}  # the two rows of a pair: group * half rows apart
            pairs = rearrange(rows, "(k two group half) i -> (k group) (half two) i", **far)
            rows = rearrange(rotation @ pairs, "(k group) (half two) i -> (k two group half) i", **far)
        if self.rescale is not None:
            rows = rows * like(self.rescale, weight)[:, None]
        return rows.reshape(weight.shape)
