"""A short fingerprint of what a LoRA does to its model: found again in merges, cuts and other formats of it.

Each layer's change of a weight is seen along `SIDE` random directions on either side, `U dW V^T`, which makes
`SIDE` x `SIDE` numbers, and those of all layers are added up (random projection, Johnson and Lindenstrauss 1984). This
is linear: the sketch of a sum of LoRAs is the sum of their sketches, and a strength scales it. It depends on delta_W
alone, not on how that is factorised or stored. The cosine of two sketches is that of the changes but for noise of about
`1 / SIDE`.

Directions are signs drawn from SHAKE-256 by the layer's name in ComfyUI and its shape, so that anybody can compute them
again. Layers of text encoders are not looked at: a LoRA is often used without them.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..adapter import TEXT_PREFIX, Adapter
from ..kinds import Correction, DoRA
from ..low_rank import LowRank

SIDE = 64
LENGTH = SIDE * SIDE
VERSION = "1"
THRESHOLD = 0.12
"""The similarity from which on one LoRA looks like it is made with another."""

WRITTEN = (LENGTH + 4 + 2) // 3 * 4  # characters in a list, after the version
_STEPS = 127  # of the largest number, either way


class Likeness(NamedTuple):
    """`similarity` is the cosine between two changes, 1 for the same at any strength; `strength` is how much of the
    listed one there is in the other."""

    similarity: float
    strength: float


def sketch(adapter: Adapter) -> Tensor:
    """Return LENGTH numbers in fp32, of an adapter whose layers have the names of a MODEL in ComfyUI; zeros when there
    is nothing in it that changes a matrix whatever the weight is."""
    with torch.inference_mode(False), torch.no_grad():
        total = torch.zeros(SIDE, SIDE)
        for name, change in _changes(adapter):
            total += _seen(name, change)
        return total.flatten()


def likeness(found: Tensor, listed: Tensor) -> Likeness:
    """Compare the sketch of a file with that of a listed LoRA, [LENGTH] each; zeros are like nothing."""
    product, own, theirs = float(found @ listed), float(found.norm()), float(listed.norm())
    return Likeness(product / (own * theirs), product / theirs**2) if own and theirs else Likeness(0.0, 0.0)


def to_text(found: Tensor) -> str:
    """Return a sketch as it stands in a list: the version, a colon, and in Base64 a little-endian fp32, the step, and
    LENGTH numbers of 8 bits that count steps."""
    step = float(found.abs().max()) / _STEPS
    counts = (found / step if step else found).round().to(torch.int8)
    return f"{VERSION}:{b64encode(np.float32(step).tobytes() + counts.numpy().tobytes()).decode()}"


def from_text(text: str) -> Tensor:
    """Return the sketch that stands in a list, [LENGTH] in fp32. Raises ValueError for a text that is none."""
    version, _, written = text.partition(":")
    if version != VERSION:
        raise ValueError(f"a sketch of version {version[:20]!r}, where {VERSION} is known")
    try:
        data = b64decode(written, validate=True)
    except Error as error:
        raise ValueError("a sketch that is not Base64") from error
    if len(data) != LENGTH + 4:
        raise ValueError(f"a sketch of {len(data)} bytes, where {LENGTH + 4} belong")
    step = float(np.frombuffer(data, "<f4", 1)[0])
    if not 0 <= step < float("inf"):
        raise ValueError(f"a sketch whose step is {step}")
    return torch.from_numpy(np.frombuffer(data, np.int8, offset=4).astype(np.float32)) * step


def _changes(adapter: Adapter) -> Iterator[tuple[str, LowRank | Correction]]:
    """Every matrix of the network that changes by a fixed amount; of DoRA the update that it scales."""
    others = ((name, item) for name, items in adapter.others.items() for item in items)
    for name, change in (*adapter.layers.items(), *others):
        change = change.update if isinstance(change, DoRA) else change
        fixed = isinstance(change, LowRank) or not change.depends_on_weight
        if fixed and len(change.shape) > 1 and not name.startswith(TEXT_PREFIX):
            yield name, change


def _seen(name: str, change: LowRank | Correction) -> Tensor:
    """Return `U dW V^T`, [SIDE, SIDE], scaled so that it is about as long as dW."""
    rows, columns = change.shape[0], prod(change.shape[1:])
    left, right = (_signs(f"{name}\n{rows}x{columns}\n{side}", size) for side, size in (("U", rows), ("V", columns)))
    if isinstance(change, LowRank):
        up, down = left @ change.lora_B.float(), right @ change.lora_A.float().T
        return up @ down.T * (change.scaling / SIDE)
    return left @ change.difference(torch.zeros(rows, columns)) @ right.T / SIDE


def _signs(seed: str, size: int) -> Tensor:
    """Return [SIDE, size] numbers that are 1 or -1: the bits of SHAKE-256, the highest of each byte first."""
    data = hashlib.shake_256(f"lora_loom.sketch {VERSION}\n{seed}".encode()).digest((SIDE * size + 7) // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=SIDE * size)
    return torch.from_numpy(bits.astype(np.float32)).mul_(2).sub_(1).view(SIDE, size)
