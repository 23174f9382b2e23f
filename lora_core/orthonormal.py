"""Decompositions of a few columns, on whichever device can make them."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal_columns(block: Tensor) -> Tensor:
    """Q of the QR decomposition of a tall matrix, on the matrix's device.

    Worked out on the CPU but for CUDA: Apple's and Intel's GPUs have no such decomposition, or a slow one.
    """
    return torch.linalg.qr(block if block.is_cuda else block.cpu())[0].to(block.device)
