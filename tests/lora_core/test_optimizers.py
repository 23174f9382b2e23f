"""Every optimiser beside its reference implementation, on the same gradients from the same start."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lion_pytorch
import prodigyopt
import pytest
import schedulefree
import torch
from harness import help_pages
from lora_loom.lora_core.training import optimizers
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig
from lora_loom.lora_core.training.optimizers import adamw8bit
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from transformers.optimization import Adafactor

SHAPES = [(4, 30), (20, 4), (3, 7), (50, 3)]
STEPS = 200
BITSANDBYTES = Path(__file__).with_name("bitsandbytes_adamw8bit.safetensors")


class Problem:
    """Noisy least squares on a few matrices that are views of one flat buffer; the second and fourth start at 0."""

    def __init__(self, seed: int = 0, size: float = 1.0, dtype: torch.dtype = torch.float32):
        self.draw, self.size = torch.Generator().manual_seed(seed), size
        self.flat = torch.zeros(sum(math.prod(shape) for shape in SHAPES), dtype=dtype)
        self.flat.grad = torch.zeros_like(self.flat)
        self.matrices = [part.view(shape) for part, shape in zip(self._split(self.flat), SHAPES, strict=True)]
        for matrix, grad in zip(self.matrices, self._split(self.flat.grad), strict=True):
            matrix.grad = grad.view(matrix.shape)
        for matrix in self.matrices[::2]:
            matrix.copy_(torch.randn(matrix.shape, generator=self.draw) * 0.3)
        self.goal = torch.randn(self.flat.shape, generator=self.draw)
        self.scale = torch.logspace(-2, 0, len(self.flat))

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([math.prod(shape) for shape in SHAPES])

    def parts(self, peak: float) -> list[tuple[Tensor, list[Tensor], float]]:
        return [(self.flat, self.matrices, peak)]

    def differentiate(self) -> None:
        noise = torch.randn(self.flat.shape, generator=self.draw)
        self.flat.grad.copy_((self.flat - self.goal + noise) * self.scale * self.size)


def ours(config: OptimizerConfig, rate: Callable[[int], float], steps: int = STEPS) -> tuple[Problem, Optimizer]:
    problem = Problem(dtype=torch.float64)
    optimizer = optimizers.make(config, problem.parts(rate(0)))
    advance(problem, optimizer, rate, steps)
    return problem, optimizer


def theirs(make: Callable[[Problem], Optimizer], rate: Callable[[int], float], steps: int = STEPS) -> Problem:
    problem = Problem(dtype=torch.float64)
    advance(problem, make(problem), rate, steps)
    return problem


def advance(problem: Problem, optimizer: Optimizer, rate: Callable[[int], float], steps: int) -> None:
    for step in range(steps):
        problem.differentiate()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()


def falling(peak: float) -> Callable[[int], float]:
    return lambda step: peak * (1 - step / STEPS)


def warm(peak: float) -> Callable[[int], float]:
    return lambda step: peak * min((step + 1) / 20, 1)


def same(found: Problem, wanted: Problem, most: float = 1e-8) -> None:
    """Equal to fp64 rounding, relative to the way both have come; fp32 would hide a wrong term in its own rounding."""
    way = (wanted.flat - Problem(dtype=torch.float64).flat).abs().max()
    assert way > 0.01
    assert float((found.flat - wanted.flat).abs().max() / way) < most


CASES: dict[str, tuple[dict[str, Any], float, Callable[[Problem], Optimizer]]] = {
    "adamw": (
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
        1e-2,
        lambda p: torch.optim.AdamW([p.flat], betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, foreach=False),
    ),
    "adamw, its own numbers": ({}, 1e-2, lambda p: torch.optim.AdamW([p.flat], weight_decay=0.1, foreach=False)),
    "lion": (
        {"beta1": 0.8, "beta2": 0.95},
        1e-2,
        lambda p: lion_pytorch.Lion([p.flat], betas=(0.8, 0.95), weight_decay=0.1),
    ),
    "lion, its own numbers": ({}, 1e-2, lambda p: lion_pytorch.Lion([p.flat], weight_decay=0.1)),
    "prodigy": (
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
        0.7,
        lambda p: prodigyopt.Prodigy(
            [p.flat], betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, use_bias_correction=True, safeguard_warmup=True
        ),
    ),
    "prodigy, its own numbers": (
        {},
        1.0,
        lambda p: prodigyopt.Prodigy([p.flat], weight_decay=0.1, use_bias_correction=True, safeguard_warmup=True),
    ),
    "adafactor": (
        {},
        1e-2,
        lambda p: Adafactor(p.matrices, lr=1.0, weight_decay=0.1, scale_parameter=False, relative_step=False),
    ),
    "muon": (
        {"beta1": 0.9},
        1e-2,
        lambda p: torch.optim.Muon(p.matrices, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ),
}


ELSEWHERE = {"schedule_free_adamw", "adamw8bit"}  # whose references are in tests of their own below


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_has_a_reference(name):
    """The implementation of its authors, or another's."""
    assert name in {case.partition(",")[0] for case in CASES} | ELSEWHERE, f"nothing that {name} is compared with"


@pytest.mark.parametrize("schedule", [falling, warm])
@pytest.mark.parametrize("case", CASES)
def test_it_goes_the_way_of_its_reference(case, schedule):
    numbers, peak, reference = CASES[case]
    config = OptimizerConfig(case.partition(",")[0], weight_decay=0.1, **numbers)
    most = 2e-3 if case == "muon" else 1e-8  # torch sums products of fewer than 400 terms in another order in a batch
    same(ours(config, schedule(peak))[0], theirs(reference, schedule(peak)), most)


def test_muon_takes_the_steps_of_torch_with_matrices_side_by_side():
    """At the sizes of LoRA's factors, where its iteration in bf16 gives the same bytes."""
    shapes, draw = [(8, 320), (640, 8), (8, 320), (16, 768), (768, 16), (320, 8), (640, 8)], torch.Generator()
    flat = torch.randn(sum(math.prod(shape) for shape in shapes), generator=draw.manual_seed(0)) * 0.1
    flat.grad = torch.zeros_like(flat)
    pieces = zip(shapes, *(each.split([math.prod(s) for s in shapes]) for each in (flat, flat.grad)), strict=True)
    matrices = []
    for shape, part, grad in pieces:
        matrices.append(part.view(shape))
        matrices[-1].grad = grad.view(shape)
    alone = [matrix.clone() for matrix in matrices]
    together = optimizers.make(OptimizerConfig("muon", weight_decay=0.1), [(flat, matrices, 1e-2)])
    reference = torch.optim.Muon(alone, 1e-2, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        flat.grad.copy_(torch.randn(flat.shape, generator=draw))
        for matrix, own in zip(alone, matrices, strict=True):
            matrix.grad = own.grad.clone()
        together.step()
        reference.step()
    for matrix, own in zip(alone, matrices, strict=True):
        assert float((matrix - own).abs().max() / matrix.abs().max()) < 1e-6


@pytest.mark.parametrize("numbers", [{}, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}])
@pytest.mark.parametrize("warmup", [0, 20])
def test_schedule_free_and_its_average_are_those_of_its_authors(numbers, warmup):
    config = OptimizerConfig("schedule_free_adamw", "constant", weight_decay=0.1, **numbers)
    problem, optimizer = ours(config, warm(1e-2) if warmup else lambda _: 1e-2)
    reference = Problem(dtype=torch.float64)
    betas, eps = (numbers.get("beta1", 0.9), numbers.get("beta2", 0.999)), numbers.get("eps", 1e-8)
    them = schedulefree.AdamWScheduleFree(
        [reference.flat], 1e-2, betas=betas, eps=eps, weight_decay=0.1, warmup_steps=warmup
    )
    them.train()
    advance(reference, them, lambda _: 1e-2, STEPS)
    same(problem, reference)
    kept = problem.flat.clone()
    (average,) = optimizer.averages()
    them.eval()
    assert torch.equal(problem.flat, kept) and not torch.allclose(average, kept, atol=1e-3)
    torch.testing.assert_close(average, reference.flat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_states_that_were_kept_for_each_matrix_go_on(name):
    """As torch's own optimisers left them in runs of earlier releases: one tensor each, and on."""
    problem, optimizer = ours(OptimizerConfig(name), falling(1e-2), 5)
    whole, _ = ours(OptimizerConfig(name), falling(1e-2), 8)
    kept = [{key: value.clone() for key, value in optimizer.state[matrix].items()} for matrix in problem.matrices]
    fresh = optimizers.make(OptimizerConfig(name), problem.parts(1e-2))
    for matrix, state in zip(problem.matrices, kept, strict=True):
        fresh.state[matrix].update(state)
    advance(problem, fresh, lambda step: falling(1e-2)(step + 5), 3)
    assert torch.equal(problem.flat, whole.flat)


def test_prodigy_estimates_each_part_for_itself():
    """The gradients of one part do not reach the other: the text encoder's rate is its own."""
    both, alone = Problem(), Problem()
    other = Problem(seed=9, size=100.0)
    pair = optimizers.make(OptimizerConfig("prodigy"), [*both.parts(1.0), *other.parts(0.5)])
    single = optimizers.make(OptimizerConfig("prodigy"), alone.parts(1.0))
    for _ in range(STEPS):
        for problem in (both, alone, other):
            problem.differentiate()
        pair.step()
        single.step()
    assert torch.equal(both.flat, alone.flat)
    assert [group["peak"] for group in pair.param_groups] == [1.0, 0.5]
    assert pair.state[other.flat]["d"] != pair.state[both.flat]["d"] > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_muon_is_orthogonal_and_as_large_as_one_of_adamw(shape):
    """Liu et al. 2025: 0.2 sqrt(longer side) U V^T; five Newton-Schulz steps bring singular values near 1."""
    matrix = torch.zeros(shape)
    matrix.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-4
    optimizers.make(OptimizerConfig("muon", weight_decay=0.0), [(matrix, [matrix], 1e-2)]).step()
    assert torch.cosine_similarity(matrix.flatten(), -matrix.grad.flatten(), dim=0) > 0.5
    values = torch.linalg.svdvals(matrix) / (1e-2 * 0.2 * math.sqrt(max(shape)))
    assert 0.6 < float(values.min()) and float(values.max()) < 1.3


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tiny_and_huge_gradients_make_finite_steps(name, size):
    """The first gradient of every A is exactly 0, and gradients of large networks are tiny."""
    problem = Problem(size=size)
    schedule = "constant" if OPTIMIZERS[name].averages else "cosine"
    optimizer = optimizers.make(OptimizerConfig(name, schedule), problem.parts(1e-3))
    start = problem.flat.clone()
    optimizer.step()
    assert torch.allclose(problem.flat, start, rtol=1e-4)
    advance(problem, optimizer, lambda _: 1e-3, 20)
    assert problem.flat.isfinite().all() and float((problem.flat - start).abs().max()) < 0.2


def test_the_eight_bit_codes_are_those_of_dettmers():
    """Dynamic tree quantisation: 0, 1 and midpoints of even shares of each power of ten (figures of bitsandbytes)."""
    signed, unsigned = adamw8bit.codebook(True), adamw8bit.codebook(False)
    for codes in (signed, unsigned):
        assert len(set(codes.tolist())) == 256 and torch.equal(codes, codes.sort().values) and codes[-1] == 1
    expected = [-0.9929687, -0.9789063], [-5.5e-7, 0.0, 5.5e-7, 3.25e-6], [0.0, 3.25e-7, 7.75e-7, 2.125e-6, 4.375e-6]
    for found, wanted in zip((signed[:2], signed[126:130], unsigned[:5]), expected, strict=True):
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_keep_the_nearest_code_of_every_block(signed):
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 256, generator=draw) * torch.logspace(-6, 0, 256) * torch.tensor([[1.0], [1e-9], [0.0]])
    values = values if signed else values.square()
    codes, scale = adamw8bit.quantize(values, signed)
    assert codes.dtype == torch.uint8 and torch.equal(scale, values.abs().amax(1))
    found, book = adamw8bit.dequantize(codes, scale, signed), adamw8bit.codebook(signed)
    book = book if signed else book[1:]
    nearest = (values[:, :, None].double() - book.double() * scale[:, None, None].double()).abs().amin(2)
    torch.testing.assert_close((found - values).abs().double(), nearest, rtol=1e-3, atol=1e-15)
    assert not found[2].any() and (signed or bool((found[:2] > 0).all()))


def eight_bit_problem(optimizer: Callable[[Tensor], Optimizer], steps: int = 60) -> Tensor:
    """600 values, two blocks and a part, whose gradients differ by three powers of ten."""
    values = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 0.1
    stepping = optimizer(values)
    for step in range(steps):
        noise = torch.randn(600, generator=torch.Generator().manual_seed(step))
        values.grad = noise * torch.logspace(-3, 0, 600) + values * 0.3
        stepping.step()
    return values


def test_eight_bit_adamw_ends_where_bitsandbytes_does():
    """The file holds `values` of bitsandbytes 0.50.2, AdamW8bit(lr=1e-2, weight_decay=0.01, min_8bit_size=1), here."""
    wanted = load_file(BITSANDBYTES)["values"]
    config = OptimizerConfig("adamw8bit")
    found = eight_bit_problem(lambda values: optimizers.make(config, [(values, [], 1e-2)]))
    exact = eight_bit_problem(lambda values: torch.optim.AdamW([values], 1e-2, weight_decay=0.01))
    way = (exact - eight_bit_problem(lambda values: torch.optim.SGD([values], 0.0))).norm()
    off, rounding = float((found - wanted).norm() / way), float((wanted - exact).norm() / way)
    assert off < 0.005 < rounding < 0.03


def test_eight_bit_adamw_trains_a_network_as_well_as_adamw():
    losses = {}
    for name in ("adamw", "adamw8bit"):
        draw = torch.Generator().manual_seed(0)
        x, y = torch.randn(64, 8, generator=draw), torch.randn(64, 4, generator=draw)
        flat = torch.randn(8 * 40 + 40 * 4, generator=draw) * 0.2
        optimizer = optimizers.make(OptimizerConfig(name), [(flat, [], 3e-3)])
        for _ in range(300):
            leaf = flat.detach().requires_grad_()
            loss = (torch.tanh(x @ leaf[:320].view(8, 40)) @ leaf[320:].view(40, 4) - y).square().mean()
            (flat.grad,) = torch.autograd.grad(loss, leaf)
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["adamw"] < 0.2 and losses["adamw8bit"] < 1.05 * losses["adamw"]


def test_chunks_change_nothing(monkeypatch):
    whole = eight_bit_problem(lambda values: optimizers.make(OptimizerConfig("adamw8bit"), [(values, [], 1e-2)]))
    monkeypatch.setattr(adamw8bit, "_BLOCKS_AT_ONCE", 1)
    parts = eight_bit_problem(lambda values: optimizers.make(OptimizerConfig("adamw8bit"), [(values, [], 1e-2)]))
    assert torch.equal(whole, parts)


BYTES = {
    "adamw": 8, "adamw8bit": 2.03125, "lion": 4, "prodigy": 16, "schedule_free_adamw": 8, "muon": 4,
    "adafactor": (16 + 1024 + 4096 + 16) * 4 / (16 * 1024 + 4096 * 16),  # a row and a column per matrix
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bytes_of_state_per_parameter(name):
    """As the help page tells them, too."""
    assert name in BYTES, f"nothing says how many bytes of state {name} keeps"
    a, b = torch.zeros(16, 1024), torch.zeros(4096, 16)
    flat = torch.cat([a.flatten(), b.flatten()])
    schedule = "constant" if OPTIMIZERS[name].averages else "cosine"
    optimizer = optimizers.make(OptimizerConfig(name, schedule), [(flat, [a, b], 1e-3)])
    for tensor in (flat, a, b):
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if value.ndim]
    assert sum(value.numel() * value.element_size() for value in state) / len(flat) == BYTES[name]
    told = help_pages.table("LoraLoom_Optimizer", "Which optimiser")[name][1]
    assert told == (f"{BYTES[name]:.0f} bytes" if BYTES[name] > 1 else "almost none")


@pytest.mark.parametrize("name", ["adamw"])
def test_adamw_is_the_fused_kernel_where_there_is_one(name):
    optimizer = optimizers.make(OptimizerConfig(name), Problem().parts(1e-3))
    assert optimizer.param_groups[0]["fused"] is True
    elsewhere = torch.zeros(3, device="meta")
    assert optimizers.make(OptimizerConfig(name), [(elsewhere, [], 1e-3)]).param_groups[0]["fused"] is False
