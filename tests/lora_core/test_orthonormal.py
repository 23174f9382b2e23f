"""Decompositions are made where they can be: on the CPU, but for CUDA."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.analysis.base_norms import norms
from lora_loom.lora_core.orthonormal import orthonormal_columns
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Decomposed(TorchDispatchMode):
    """On which devices matrices were decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.on: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if any(word in str(operator) for word in ("linalg_qr", "linalg_svd", "linalg_eigh")):
            self.on.append(args[0].device.type)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "at"), [("cpu", "cpu"), ("cuda", "cuda"), ("mps", "cpu"), ("xpu", "cpu")])
def test_columns_are_made_orthonormal_where_there_is_a_decomposition(device: str, at: str) -> None:
    with FakeTensorMode(), Decomposed() as seen:
        basis = orthonormal_columns(torch.empty(64, 4, device=device))
    assert seen.on == [at]
    assert basis.device.type == device and basis.shape == (64, 4)


def test_columns_are_orthonormal() -> None:
    block = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    basis = orthonormal_columns(block)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4))
    torch.testing.assert_close(basis @ (basis.T @ block), block)


def test_norms_of_a_base_model_ask_the_cpu(monkeypatch) -> None:
    """Whatever decomposes is handed what `cpu` gave back."""
    came, whole = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: came.append(whole(tensor).clone()) or came[-1])
    for name in ("qr", "matrix_norm"):
        work = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda x, *rest, _work=work: came.pop() is x and _work(x, *rest))
    frobenius, spectral = norms(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert (frobenius, spectral) == (pytest.approx(14**0.5), pytest.approx(3.0, rel=1e-3))
    assert not came
