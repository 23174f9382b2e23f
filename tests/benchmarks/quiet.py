"""Quiet directions: how many eigenpairs are enough, and what a step of them costs on wide layers.

`loud` is the mean square of what neutral inputs give through a correction trained in quiet directions, over that of a
loud one of equal norm. C has eigenvalues that fall as a power law, or so with a few directions a thousand times as
strong. `pairs` are exact ones with the mean of the rest, `sketch` those of a streamed sketch, `rest free` exact ones
alone; P of them is `off` by that share of its norm. The network has blocks of q, k and v on one input, proj, up and
down, without attention, which would only add to what is the same for both; `FLOP` and `launches` are of a whole step.
`one-off` is what is done before the first step, in plain steps without checkpointing: neutral forwards whose inputs are
sketched, and what is worked out from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from _cost import flops, launches_and_stalls
from _measure import Spread, Variant, alternate, arguments, begin, growing_table, plain, table
from lora_loom.lora_core.quiet.directions import Directions, Quieting
from lora_loom.lora_core.quiet.inputs import rows_of
from lora_loom.lora_core.quiet.sizes import MOST
from lora_loom.lora_core.quiet.sketch import Sketch
from lora_loom.lora_core.training.config import TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.trainer import make_optimizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

MU, RANK, WIDTH = 0.003, 16, 1280
FORWARDS, ROWS = 288, 512  # of single pictures before a run, and rows of each input that are taken of one
COUNTS = (16, 32, 64, 128, 256, 512)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.q(x) + self.k(x) + self.v(x))
        return x + self.down(F.gelu(self.up(x)))


def spectra(width: int) -> dict[str, Tensor]:
    """Eigenvalues, falling, with a mean of 1."""
    places = torch.arange(1, width + 1, dtype=torch.float64)
    found = {f"power {power:g}": places**-power for power in (0.5, 1.0, 1.5, 2.0)}
    heavy = torch.cat([found["power 1"][:8] * 1000, found["power 1"][8:]])
    return {name: values / values.mean() for name, values in {**found, "power 1, heavy top": heavy}.items()}


def loudness(P: Tensor, values: Tensor) -> float:  # noqa: N803
    return float((values[:, None] * P.square()).sum() / P.square().sum())


def pairs_of(values: Tensor, count: int, free: bool = False) -> Quieting:
    found = Directions.of(torch.eye(len(values))[:count], values[:count], float(values.sum()))
    own = found.quieting(MU)
    scale = own.scale * (1 + found.rest / (MU * found.tau)) ** 0.5  # of what P leaves as it is
    return Quieting(own.vectors, own.gains + own.scale - scale, scale) if free else own


def accuracy(name: str, values: Tensor, counts: tuple[int, ...]) -> None:
    ways, rows = (1 + values / MU) ** -0.5, torch.diag((values * len(values)).sqrt()).float()
    exact = torch.diag(ways / ways.square().mean().sqrt())
    lines = [["all", f"{loudness(exact, values):.4f}", "0", "", "", ""]]
    for count in counts:
        sketch = Sketch(len(values), count)
        sketch.add(rows)
        made = pairs_of(values, count), sketch.directions().quieting(MU), pairs_of(values, count, free=True)
        found = [own.dense().double() for own in made]
        loud = [f"{loudness(P, values):.4f}" for P in found]
        off = [f"{float((P - exact).norm() / exact.norm()):.3f}" for P in found]
        lines.append([str(count), loud[0], off[0], loud[1], off[1], loud[2]])
    title = f"{len(values)} inputs, {name}"
    table(title, ("pairs", "loud", "off", "loud, sketch", "off, sketch", "loud, rest free"), lines)


def quieted(layers: Mapping[str, nn.Module]) -> dict[str, Quieting]:
    """Return the P of layers, one for each input."""
    found: dict[str, Quieting] = {}
    for name, layer in layers.items():
        width, shared = layer.weight.shape[1], name.replace(".k", ".q").replace(".v", ".q")
        if shared not in found:
            vectors = torch.linalg.qr(torch.randn(width, MOST))[0].T
            values = torch.arange(1, MOST + 1) ** -1.0
            found[shared] = Directions.of(vectors, values, 2 * float(values.sum())).quieting(MU)
        found[name] = found[shared]
    return found


def stepping(width: int, blocks: int, tokens: int, quiet: bool) -> Variant:
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(width) for _ in range(blocks))).requires_grad_(False)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    own = quieted(layers) if quiet else None
    factors = Factors(layers, RANK, RANK, torch.Generator().manual_seed(0), quiet=own)
    optimizer, x = make_optimizer(factors, TrainConfig()), torch.randn(1, tokens, width)

    def step() -> None:
        with attached(factors.branches):
            net(x).square().mean().backward()
        factors.carry_back()
        optimizer.step()
        factors.flat.grad.zero_()

    return lambda: nullcontext(step)


def cost(width: int, blocks: int, tokens: int, rounds: int) -> list[str]:
    variants = {name: stepping(width, blocks, tokens, name == "quiet") for name in ("plain", "quiet")}
    counts = {}
    for name, variant in variants.items():
        with variant() as step:
            counts[name] = flops(step), launches_and_stalls(step, torch.device("cpu"))[0]
    times = alternate(variants, rounds, patience=300)
    more, launched = counts["quiet"][0] / counts["plain"][0] - 1, [counts[name][1] for name in ("plain", "quiet")]
    measured = times.milliseconds("plain"), times.ratio("quiet", "plain")
    return [*map(str, (width, blocks, tokens)), f"{more:+.2%}", " -> ".join(map(str, launched)), *map(str, measured)]


def one_off(width: int, blocks: int, tokens: int, rounds: int) -> list[str]:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(Block(width) for _ in range(blocks))).requires_grad_(False), torch.randn(1, tokens, width)
    layers = {
        name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear) and name[-1] not in "kv"
    }
    sketches = {name: Sketch(layer.in_features, MOST) for name, layer in layers.items()}
    draw = torch.Generator().manual_seed(0)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: sketches[name].add(rows_of(layer, args[0], ROWS, draw))
        )

    @torch.no_grad()
    def forward() -> None:
        net(x)

    def finish() -> None:
        for sketch in sketches.values():
            sketch.directions()

    steps = {"plain": stepping(width, blocks, tokens, False)}
    times = alternate({**steps, "neutral": plain(forward), "finish": plain(finish)}, rounds, patience=300)
    step, neutral, last = (times.seconds[name] for name in ("plain", "neutral", "finish"))
    found = Spread.of([(FORWARDS * neutral[index] + last[index]) / step[index] for index in step])
    return [*map(str, (width, blocks, tokens)), *(str(times.milliseconds(name)) for name in times.seconds), str(found)]


def main() -> None:
    options = begin(arguments(__doc__))
    for name, values in spectra(WIDTH // 4 if options.quick else WIDTH).items():
        accuracy(name, values, tuple(count for count in COUNTS if count < len(values)))
    cases = [(WIDTH, 2, 1024), (WIDTH, 2, 4096), (3072, 1, 1024), (3072, 1, 4096)]
    rows = (cost(*case, options.rounds) for case in (cases[:1] if options.quick else cases))
    header = ("width", "blocks", "tokens", "FLOP", "launches", "plain ms", "time quiet / plain")
    growing_table("a step", header, rows, (5, 6, 6, 6, 12, 20, 20))
    rows = (one_off(*case, options.rounds) for case in (cases[:1] if options.quick else cases[::2]))
    header = ("width", "blocks", "tokens", "plain ms", "neutral forward ms", "worked out, ms", "one-off, plain steps")
    growing_table("before the first step", header, rows, (5, 6, 6, 20, 20, 20, 20))


if __name__ == "__main__":
    main()
