"""A network of equal blocks is tried as one of them: the same peak and work as all of them, counted one by one."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import pytest
import torch
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.meter import Meter
from lora_loom.lora_core.training.repeats import BlockPass, Repeats
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CPU, WIDTH = torch.device("cpu"), 64


class Block(nn.Module):
    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.inner, self.times, self._runs = nn.Linear(WIDTH, WIDTH), times, 0
        self.requires_grad_(False)

    def forward(self, x: Tensor, told: dict) -> Tensor:
        self._runs += 1
        for _ in range(self.times):
            x = x + functional.gelu(self.inner(x))
        return x


class Same(Block):
    def forward(self, x: Tensor, told: dict) -> Tensor:
        super().forward(x, told)
        return x


class InPlace(Block):
    def forward(self, x: Tensor, told: dict) -> Tensor:
        return super().forward(x.add_(1), told)


class Nest(Block):
    """A block of blocks."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor, told: dict) -> Tensor:
        y = functional.gelu(self.inner(x))
        for block in self.blocks:
            y = block(y, told)
        return x + y


def again(forward):
    return lambda *args: checkpoint(forward, *args, use_reentrant=False)


def counted(
    blocks: list[Block], repeated: bool, recomputed: bool, grads: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Meter, Repeats, list[int]]:
    """Count a step through the blocks: its meter, what was found, and how often each one really ran, those inside it
    included."""
    meter = Meter(CPU)
    blocks = [block.to(dtype) for block in blocks]
    layers = {
        str(i): layer for i, layer in enumerate(each for b in blocks for each in b.modules() if type(each) is nn.Linear)
    }
    factors = Factors(layers, 4, 4.0, torch.Generator().manual_seed(0))
    repeats = Repeats(meter, factors.branches, factors.twins)
    inside = [each for block in blocks if isinstance(block, Nest) for each in block.blocks[:-1]]
    with ExitStack() as undo:
        undo.enter_context(attached(factors.branches))
        for block in blocks if recomputed else ():
            block.forward = again(block.forward)
            undo.callback(vars(block).pop, "forward", None)
        ways = {block: BlockPass(kind=kind) for kind, own in enumerate((blocks, inside)) for block in own}
        undo.enter_context(repeats.over(ways) if repeated else nullcontext())
        undo.enter_context(torch.set_grad_enabled(grads))
        x = torch.randn(512, WIDTH, dtype=dtype)
        undo.enter_context(meter)
        for index, block in enumerate(blocks):
            x = block(x, {"cond_or_uncond": [0], "block": index})
        if grads:
            x.square().mean().backward()
    return meter, repeats, [sum(each._runs for each in block.modules() if isinstance(each, Block)) for block in blocks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recomputed", [True, False])
@pytest.mark.parametrize("kind", [Block, Nest])
def test_equal_blocks_count_as_one_by_one(kind: type[Block], recomputed: bool, dtype: torch.dtype) -> None:
    """In bf16 the first one makes what all share."""
    each, _, all_runs = counted([kind() for _ in range(6)], False, recomputed, dtype=dtype)
    once, repeats, runs = counted([kind() for _ in range(6)], True, recomputed, dtype=dtype)
    assert (once.peak, once.held, once.work) == (each.peak, each.held, each.work)
    assert None not in repeats.costs.values() and sum(runs) < sum(all_runs)
    assert all(runs[:2]) and not any(runs[2:]), "the first, whose input does not learn, and one of the others"


@pytest.mark.parametrize("change", ["attribute", "width", "hook"])
def test_a_block_that_differs_is_measured_by_itself(change: str) -> None:
    blocks = [Block() for _ in range(4)]
    odd = blocks[2]
    if change == "attribute":
        odd.times = 3
    elif change == "width":
        odd.inner.weight = nn.Parameter(odd.inner.weight.detach().T.contiguous().T, requires_grad=False)
    else:
        odd.inner.register_forward_pre_hook(lambda *_: None)
    runs = counted(blocks, True, True)[2]
    assert runs[2] and not runs[3]


@pytest.mark.parametrize("kind", [Same, InPlace])
def test_a_block_that_gives_back_or_changes_its_input_is_run(kind: type[Block]) -> None:
    """InPlace, where nothing copies its input."""
    runs = counted([Block(), kind(), kind()], True, False)[2]
    assert all(runs)


def test_what_cannot_be_looked_into_is_run() -> None:
    blocks, meter = [Block() for _ in range(3)], Meter(CPU)
    factors = Factors({str(i): block.inner for i, block in enumerate(blocks)}, 4, 4.0, torch.Generator().manual_seed(0))
    repeats = Repeats(meter, factors.branches, factors.twins)
    with attached(factors.branches), repeats.over({block: BlockPass() for block in blocks}), meter:
        x = torch.randn(8, WIDTH)
        for block in blocks:
            x = block(x, {"hidden": object()})
        x.sum().backward()
    assert not repeats.costs and [block._runs for block in blocks] == [1, 1, 1]


def test_nothing_is_left_on_the_blocks() -> None:
    block = Block()
    counted([block], True, False, grads=False)
    assert "forward" not in vars(block) and not block.inner._forward_hooks
