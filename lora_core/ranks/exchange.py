"""Values as bytes on their way between ranks: JSON and tensors in the format of safetensors, nothing that is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from ..trees import described, restored

_MOST = 2**28  # bytes of one message; longer ones go in pieces


def packed(value: Any) -> Tensor:
    """Return a value of `lora_core.trees` as (bytes,) uint8 on the CPU. Raises TypeError for another kind."""
    tensors: list[Tensor] = []
    told = json.dumps(described(value, tensors, _whole)).encode()
    named = {str(number): tensor for number, tensor in enumerate(tensors)}
    return _bytes(save(named | {"value": _bytes(told)}))


def unpacked(data: Tensor) -> Any:
    """Return the value, its tensors on the CPU."""
    named = load(data.numpy().tobytes())
    told = json.loads(named.pop("value").numpy().tobytes())
    return restored(told, [named[str(number)] for number in range(len(named))])


def spread(own: Tensor) -> list[Tensor]:
    """Return the (bytes,) of every rank by rank, of any lengths. All ranks of torch's group call it together."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(own)]))
    return list(_each(own, [int(length) for length in lengths]))


def _each(own: Tensor, lengths: list[int]) -> Iterator[Tensor]:
    for rank, length in enumerate(lengths):
        data = own if rank == dist.get_rank() else torch.empty(length, dtype=torch.uint8)
        for piece in data.split(_MOST):
            dist.broadcast(piece, rank)
        yield data


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
