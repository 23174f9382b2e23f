"""Interference of k LoRAs: all figures from their factors, against dense matrices of the same layers.

`ours` is what LoRA Interference measures without attention's cross terms in each head, `ours, attention` with them,
`stack` the two lines of Load LoRA Stack.
`dense` multiplies every correction out and takes cosines alone, which is the least that a dense method can do.
"""

from __future__ import annotations

import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, plain, table
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.analysis.cross_terms import Attention
from lora_loom.lora_core.analysis.figures import Interference
from lora_loom.lora_core.analysis.interference import measure
from lora_loom.lora_core.analysis.layer_sum import FigureSettings
from lora_loom.lora_core.analysis.parts import attentions
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.weighted import Weighted
from torch import Tensor

WIDTH, COUNT, RANK = 3072, 4, 16
HEADS = 24
OURS, CROSSED, STACK, DENSE = "ours", "ours, attention", "stack", "dense cosines"


def flux(double: int, single: int) -> dict[str, tuple[int, int]]:
    """Layers of FLUX.1 with so many blocks; 19 and 38 are the whole model's."""
    shapes: dict[str, tuple[int, int]] = {}
    for i in range(double):
        for stream in ("img", "txt"):
            shapes |= {
                f"double_blocks.{i}.{stream}_attn.qkv": (3 * WIDTH, WIDTH),
                f"double_blocks.{i}.{stream}_attn.proj": (WIDTH, WIDTH),
                f"double_blocks.{i}.{stream}_mlp.0": (4 * WIDTH, WIDTH),
                f"double_blocks.{i}.{stream}_mlp.2": (WIDTH, 4 * WIDTH),
                f"double_blocks.{i}.{stream}_mod.lin": (6 * WIDTH, WIDTH),
            }
    for i in range(single):
        shapes |= {
            f"single_blocks.{i}.linear1": (7 * WIDTH, WIDTH), f"single_blocks.{i}.linear2": (WIDTH, 5 * WIDTH),
            f"single_blocks.{i}.modulation.lin": (3 * WIDTH, WIDTH),
        }  # fmt: skip
    return {f"diffusion_model.{name}": shape for name, shape in shapes.items()}


def random_stack(shapes: dict[str, tuple[int, int]]) -> list[Weighted]:
    """fp16 factors, as files have."""
    generator, stack = torch.Generator().manual_seed(0), []
    for index in range(COUNT):
        layers = {
            name: LowRank(
                torch.randn(RANK, columns, generator=generator).half(),
                torch.randn(rows, RANK, generator=generator).half(), RANK / 2,
            )
            for name, (rows, columns) in shapes.items()
        }  # fmt: skip
        stack.append(Weighted(f"lora {index}", Adapter(layers), 1.0, 1.0))
    return stack


def dense_inner(stack: list[Weighted]) -> Tensor:
    total = torch.zeros(COUNT, COUNT, dtype=torch.float64)
    for name in stack[0].adapter.layers:
        flat = torch.stack([part.adapter.layers[name].to(torch.float32).delta_weight().flatten() for part in stack])
        total += (flat @ flat.T).double()
    return total


def compare(title: str, stack: list[Weighted], rounds: int, dense: bool) -> None:
    shapes = {name: layer.shape[:2] for name, layer in stack[0].adapter.layers.items()}
    heads = Attention(dict.fromkeys(attentions(shapes), HEADS))
    variants: dict[str, Variant] = {
        OURS: plain(lambda: measure(stack)), CROSSED: plain(lambda: measure(stack, heads)),
        STACK: plain(lambda: measure(stack, work=FigureSettings(brief=True))),
    }  # fmt: skip
    variants |= {DENSE: plain(lambda: dense_inner(stack))} if dense else {}
    exact, facts = torch.from_numpy(measure(stack).total.inner), {}
    for name, variant in variants.items():
        with variant() as step:
            found, held = peak(step)
        inner = torch.from_numpy(found.total.inner) if isinstance(found, Interference) else found
        facts[name] = (mebibytes(held), f"{float((inner - exact).norm() / exact.norm()):.1e}")
    times = alternate(variants, rounds)
    rows = [(n, times.milliseconds(n), times.rounds(n), times.ratio(n, OURS), *facts[n]) for n in variants]
    table(f"{title}: {COUNT} LoRAs of rank {RANK}", ("", "ms", "rounds", "time / ours", "MiB", "error"), rows)


def main() -> None:
    options = begin(arguments(__doc__))
    attention = {name: shape for name, shape in flux(1, 0).items() if "img_attn" in name}
    compare("an attention of FLUX.1", random_stack(attention), options.rounds, dense=True)
    if not options.quick:
        compare("FLUX.1, 304 layers", random_stack(flux(19, 38)), min(options.rounds, 3), dense=False)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
