"""Several low-rank corrections of one weight, written as one update: `W + sum_i (alpha_i / r_i) B_i A_i`.

The factors are put side by side, so a weight is read and written once however many there are, and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .low_rank import LowRank

_TILE = 2**22  # elements that are widened at a time; smaller tiles lose more to starting threads than they save


def concatenated(terms: Sequence[LowRank], dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return A (R, in) and B (out, R) of the sum, R being all ranks; the scaling is folded into B before that is
    rounded."""
    rank, rows, columns = sum(term.rank for term in terms), terms[0].lora_B.shape[0], terms[0].lora_A.shape[1]
    lora_A = torch.empty(rank, columns, dtype=dtype, device=device)
    lora_B = torch.empty(rows, rank, dtype=dtype, device=device)
    start = 0
    for term in terms:
        end = start + term.rank
        up = term.lora_B.to(device)
        lora_A[start:end] = term.lora_A.to(device)
        lora_B[:, start:end] = up.to(torch.promote_types(up.dtype, torch.float32)) * term.scaling
        start = end
    return lora_A, lora_B


def write_sum(base: Tensor, terms: Sequence[LowRank], out: Tensor) -> Tensor:
    """`out = base + the sum`, rounded once; returns `out`, which has the shape of `base` and may be it.

    bf16, and fp16 on a GPU, take the factors in that type and accumulate in fp32: the factors' own rounding is 2**-9
    of the correction, far below that of the weight. fp8, and fp16 on a CPU, are widened to fp32 tile by tile. The same
    arguments give the same bits. Raises ValueError when a correction does not fit.
    """
    for term in terms:
        if base.numel() != len(base) * term.lora_A.shape[1] or len(base) != term.lora_B.shape[0]:
            raise ValueError(f"a correction of shape {term.shape} does not fit a weight of shape {tuple(base.shape)}")
    if _accumulates(out):
        lora_A, lora_B = concatenated(terms, out.dtype, out.device)
        if out is not base:
            out.copy_(base)
        out.view(len(out), -1).addmm_(lora_B, lora_A)
        return out
    lora_A, lora_B = concatenated(terms, torch.float32, out.device)
    tile = max(1, _TILE // lora_A.shape[1])
    for start in range(0, len(base), tile):
        part = slice(start, start + tile)
        wide = base[part].to(out.device, torch.float32, copy=True).flatten(1)
        out[part] = wide.addmm_(lora_B[part], lora_A).view(out[part].shape)
    return out


def _accumulates(weight: Tensor) -> bool:
    """Whether a product is summed exactly enough in the weight's own type, where it lies."""
    if not weight.is_contiguous() or weight.dtype.itemsize == 1:
        return False
    if weight.device.type != "cpu":
        return weight.dtype != torch.float16 or not torch.backends.cuda.matmul.allow_fp16_accumulation
    native = weight.dtype in (torch.float32, torch.float64)
    return native or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
