"""Figures of interference against dense fp64 matrices, and the laws of chance against random draws."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.analysis import base_norms, chance, findings
from lora_loom.lora_core.analysis.cross_terms import Attention
from lora_loom.lora_core.analysis.figures import Interference
from lora_loom.lora_core.analysis.heat_map import heat_map
from lora_loom.lora_core.analysis.interference import measure
from lora_loom.lora_core.analysis.layer_sum import FigureSettings
from lora_loom.lora_core.analysis.parts import WeightPart, attentions, parts_of
from lora_loom.lora_core.families.blocks import block_of
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.weighted import Weighted
from torch import Tensor

WIDTH, HEADS = 48, 4
FLUX = {
    f"diffusion_model.{path}": shape
    for i in range(2)
    for path, shape in {
        f"double_blocks.{i}.img_attn.qkv": (3 * WIDTH, WIDTH), f"double_blocks.{i}.txt_attn.qkv": (3 * WIDTH, WIDTH),
        f"double_blocks.{i}.img_attn.proj": (WIDTH, WIDTH), f"double_blocks.{i}.txt_attn.proj": (WIDTH, WIDTH),
        f"double_blocks.{i}.img_mlp.0": (4 * WIDTH, WIDTH),
        f"single_blocks.{i}.linear1": (7 * WIDTH, WIDTH), f"single_blocks.{i}.linear2": (WIDTH, 5 * WIDTH),
    }.items()
}  # fmt: skip
MIXED = {
    "diffusion_model.input_blocks.1.0.in_layers.2": (32, 24, 3, 3),
    "diffusion_model.input_blocks.1.1.proj_in": (40, 64),
    f"{TEXT_PREFIX}clip_l.transformer.text_model.encoder.layers.3.mlp.fc1": (96, 32), "diffusion_model.out.2": (16, 72),
}  # fmt: skip
_HOMES = ("double_blocks.0.attn", "double_blocks.1.attn", "single_blocks.0", "single_blocks.1")
HOMES = {f"diffusion_model.{home}": HEADS for home in _HOMES}


def drawn(
    shapes: dict[str, tuple[int, ...]], seed: int, rank: int = 4, alpha: float = 2.0, decay: float = -1.0
) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, (out, *inner) in shapes.items():
        spectrum = torch.logspace(0, decay, rank)
        down = torch.randn(rank, math.prod(inner), generator=generator)
        layers[name] = LowRank(down, torch.randn(out, rank, generator=generator) * spectrum, alpha, tuple(inner[1:]))
    return Adapter(layers)


def at(adapter: Adapter, strength: float = 1.0, text: float = 1.0, name: str = "lora") -> Weighted:
    return Weighted(name, adapter, strength, text)


def dense(part: Weighted, layer: str) -> Tensor:
    """(out, in), fp64; zeros where the LoRA has nothing."""
    found, shape = part.adapter.layers.get(layer), (FLUX | MIXED).get(layer, (0,))
    if found is None:
        return torch.zeros(shape, dtype=torch.float64).flatten(1)
    return part.strength_of(layer) * found.to(torch.float64).delta_weight().flatten(1)


def projector(rows: Tensor) -> Tensor:
    return torch.linalg.pinv(rows) @ rows


STACK = [
    at(drawn(FLUX | MIXED, 1)), at(drawn(FLUX | MIXED, 2, rank=7, alpha=1.0), -0.7, 0.4),
    at(drawn({k: v for k, v in (FLUX | MIXED).items() if "single" not in k}, 3, rank=1), 1.3),
]  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> Interference:
    return measure(STACK, Attention(HOMES))


# -- against dense matrices --------------------------------------------------------------------------------------------


def test_cosines_and_loudness(measured: Interference) -> None:
    for block in (*measured.blocks, measured.total):
        names = [n for n in FLUX | MIXED if block.name in ("all blocks", str(block_of(n)))]
        vectors = [torch.cat([dense(part, n).flatten() for n in names]) for part in STACK]
        wanted = torch.stack(vectors) @ torch.stack(vectors).T
        assert np.allclose(block.inner, wanted, rtol=1e-10, atol=1e-12 * float(wanted.max())), block.name
        assert block.loudness() == pytest.approx(float(sum(vectors).norm()), rel=1e-10)
        for i, j in measured.pairs:
            norms = vectors[i].norm() * vectors[j].norm()
            assert block.cos(i, j) == pytest.approx(float(vectors[i] @ vectors[j] / norms) if norms else 0.0, abs=1e-12)


def test_the_norms_of_each_layers_sum(measured: Interference) -> None:
    for name, (norm, top) in measured.layers.items():
        whole = sum(d for part in STACK if (d := dense(part, name)).numel())
        assert norm == pytest.approx(float(whole.norm()), rel=1e-10)
        assert top == pytest.approx(float(torch.linalg.matrix_norm(whole, 2)), rel=1e-8)


def test_shared_directions(measured: Interference) -> None:
    """Compare a layer without parts, and q, k and v, whose rows are counted apart while they read the same, with
    products of projectors."""
    block = next(b for b in measured.blocks if b.name == "double_blocks.1")
    for i, j in measured.pairs:
        written = read = spans = ends = 0.0
        for name in (n for n in FLUX if str(block_of(n)) == "double_blocks.1"):
            one, other = (STACK[k].adapter.layers[name].to(torch.float64) for k in (i, j))
            ranks = one.rank * other.rank
            read += float((projector(one.lora_A) * projector(other.lora_A)).sum())
            ends += ranks / one.lora_A.shape[1]
            for part in parts_of(name, (one.lora_B.shape[0], one.lora_A.shape[1])):
                rows = slice(part.rows[0], sum(part.rows))
                written += float((projector(one.lora_B[rows].T) * projector(other.lora_B[rows].T)).sum())
                spans += ranks / part.rows[1]
        assert block.write.held[i, j] == pytest.approx(written, rel=1e-8)
        assert block.read.held[i, j] == pytest.approx(read, rel=1e-8)
        assert block.write.times(i, j) == pytest.approx(written / spans, rel=1e-8)
        assert block.read.times(i, j) == pytest.approx(read / ends, rel=1e-8)


def products(i: int, j: int, layers: tuple[str, ...], kind: str) -> list[float]:
    """Norms of the pair's products in each head, from dense matrices; both orders, all streams."""
    width, totals = WIDTH // HEADS, [0.0] * HEADS
    for a, b, one, other in ((*order, x, y) for order in ((i, j), (j, i)) for x in layers for y in layers):
        left, right = (q_or_o(a, one, kind), k_or_v(b, other, kind))
        for head in range(HEADS):
            rows = slice(head * width, (head + 1) * width)
            totals[head] += float((left[rows].T @ right[rows]).square().sum())
    return [total**0.5 for total in totals]


def q_or_o(index: int, layer: str, kind: str) -> Tensor:
    """(heads x width, other side)"""
    first, last = ("linear1", "linear2") if "single" in layer else ("qkv", "proj")
    whole = dense(STACK[index], f"diffusion_model.{layer}.{first if kind == 'Q-K' else last}")
    return whole[:WIDTH] if kind == "Q-K" else whole[:, :WIDTH].T


def k_or_v(index: int, layer: str, kind: str) -> Tensor:
    whole = dense(STACK[index], f"diffusion_model.{layer}.{'linear1' if 'single' in layer else 'qkv'}")
    return whole[WIDTH : 2 * WIDTH] if kind == "Q-K" else whole[2 * WIDTH : 3 * WIDTH]


@pytest.mark.parametrize("kind", ["Q-K", "O-V"])
@pytest.mark.parametrize(("home", "layers"), [
    ("double_blocks.0.attn", ("double_blocks.0.img_attn", "double_blocks.0.txt_attn")),
    ("single_blocks.1", ("single_blocks.1",)),
])  # fmt: skip
def test_products_in_attention(measured: Interference, home: str, layers: tuple[str, ...], kind: str) -> None:
    mine = [head for head in measured.heads if head.attention == f"diffusion_model.{home}" and head.kind == kind]
    for pair in measured.pairs:
        heads, wanted = [head.norm for head in mine if head.pair == pair], products(*pair, layers, kind)
        assert heads == pytest.approx(wanted if heads else [], rel=1e-8)
        assert heads or not any(wanted)


def test_grouped_queries_and_separate_layers() -> None:
    """Six query heads share two of keys and values; q, k, v and o are layers of their own."""
    shapes = {
        f"diffusion_model.blocks.0.attn.{n}": s
        for n, s in {"wq": (48, 32), "wk": (16, 32), "wv": (16, 32), "wo": (32, 48)}.items()
    }
    stack = [at(drawn(shapes, seed)) for seed in (1, 2)]
    found = measure(stack, Attention({"diffusion_model.blocks.0.attn": 6}))
    q, k, v, o = ([dense(part, name) for part in stack] for name in shapes)
    for head in range(6):
        rows, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 3), 8 * (head // 3) + 8)
        logits = sum(float((q[a][rows].T @ k[b][shared]).square().sum()) for a, b in ((0, 1), (1, 0)))
        values = sum(float((o[a][:, rows] @ v[b][shared]).square().sum()) for a, b in ((0, 1), (1, 0)))
        norms = {h.kind: h.norm for h in found.heads if h.head == head}
        assert norms == {"Q-K": pytest.approx(logits**0.5, rel=1e-9), "O-V": pytest.approx(values**0.5, rel=1e-9)}


def test_the_base_models_own_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"qkv": torch.randn(48 + 16 + 16, 48, generator=generator), "o": torch.randn(20, 48, generator=generator)}
    q, k = WeightPart("qkv", (0, 48), (0, 48), "q"), WeightPart("qkv", (48, 16), (0, 48), "k")
    found = base_norms.head_norms(weights, [q], [k], 6)
    for head in range(6):
        one, other = weights["qkv"][8 * head : 8 * head + 8], weights["qkv"][48 + 8 * (head // 3) :][:8]
        assert found[head] == pytest.approx(float((one.T @ other).norm()), rel=1e-5)
    v, o = WeightPart("qkv", (64, 16), (0, 48), "v"), WeightPart("o", (0, 20), (0, 48), "o")
    found = base_norms.head_norms(weights, [o], [v], 6)
    assert found[5] == pytest.approx(float((weights["o"][:, 40:] @ weights["qkv"][72:80]).norm()), rel=1e-5)
    for weight in (weights["o"], torch.randn(300, 20, 3, 3, generator=generator), torch.ones(5, 1)):
        norm, top = base_norms.norms(weight)
        assert norm == pytest.approx(float(weight.norm()), rel=1e-5)
        exact = float(torch.linalg.matrix_norm(weight.flatten(1), 2))
        assert 0.97 * exact < top <= 1.0001 * exact


def test_brief_agrees_with_whole(measured: Interference) -> None:
    brief = measure(STACK, work=FigureSettings(brief=True))
    scale = np.sqrt(np.outer(np.diag(measured.total.inner), np.diag(measured.total.inner)))
    assert np.abs(brief.total.inner - measured.total.inner).max() < 1e-5 * scale.max()
    for i, j in measured.pairs:
        assert brief.total.z(i, j) == pytest.approx(measured.total.z(i, j), abs=0.01)


# -- the laws of chance ------------------------------------------------------------------------------------------------


def turned(generator: torch.Generator, count: int, d: int, rank: int) -> Tensor:
    """Random orthonormal frames (count, d, rank)."""
    q, r = torch.linalg.qr(torch.randn(count, d, rank, generator=generator, dtype=torch.float64))
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]


@pytest.mark.parametrize(("m", "n", "rank", "decay"), [
    (48, 80, 12, -1.0), (320, 768, 1, 0.0), (320, 80, 4, -2.0), (24, 24, 4, 0.0), (8, 40, 8, -1.0), (12, 4, 4, 0.0),
])  # fmt: skip
def test_the_spread_of_cosines_is_exact_and_the_tail_is_bounded(m: int, n: int, rank: int, decay: float) -> None:
    """std = 1 / sqrt(mn) for any rank and spectrum, down to tiny layers; what is heavier than normal is the tail."""
    generator, count = torch.Generator().manual_seed(m + n + rank), 6000
    spectrum = torch.logspace(0, decay, rank, dtype=torch.float64)
    cosines = []
    for _ in range(count // 500):
        u, v = (turned(generator, 500, d, rank) for d in (m, n))
        fixed_u, fixed_v = (turned(generator, 1, d, rank)[0] for d in (m, n))
        inner = ((fixed_u.T @ u) * (fixed_v.T @ v) * spectrum[:, None] * spectrum).sum((1, 2))
        cosines.append(inner / spectrum.square().sum())
    z = torch.cat(cosines) * (m * n) ** 0.5
    terms = float((spectrum.square().sum() / spectrum[0].square()) ** 2)
    assert float(z.mean()) == pytest.approx(0, abs=5 / count**0.5)
    kurtosis = float((z**4).mean())
    assert float(z.square().mean()) == pytest.approx(1, abs=5 * (kurtosis / count) ** 0.5)
    for level in (2.0, 3.0, 4.0, 5.0):
        assert float((z.abs() > level).double().mean()) <= chance.cosine_tail(level, terms) + 3 / count
    if rank == 1 and m > 100:
        assert (z.abs() > 5).any() and chance.cosine_floor(terms, 1) > 5, "a fixed 5 would be a false alarm"


@pytest.mark.parametrize(("d", "p", "q"), [(80, 12, 12), (160, 8, 1), (40, 4, 24), (12, 6, 6), (8, 8, 3)])
def test_shared_directions_by_chance(d: int, p: int, q: int) -> None:
    generator, count = torch.Generator().manual_seed(d + p), 4000
    fixed = turned(generator, 1, d, p)[0]
    held = torch.cat([(fixed.T @ turned(generator, 500, d, q)).square().sum((1, 2)) for _ in range(count // 500)])
    variance = chance.overlap_variance(p, q, d)
    assert float(held.mean()) == pytest.approx(p * q / d, abs=5 * (variance / count) ** 0.5 + 1e-9)
    assert float(held.var()) == pytest.approx(variance, rel=0.15, abs=1e-12)
    for ratio in (1.5, 2.0, 3.0):
        assert float((held > ratio * p * q / d).double().mean()) <= chance.excess_tail(ratio, p * q) + 3 / count


def test_floors_are_where_the_tail_ends_and_grow_with_the_comparisons() -> None:
    for terms in (1.0, 16.0, 250.0):
        floors = [chance.cosine_floor(terms, count) for count in (1, 100, 10_000)]
        assert floors == sorted(floors) and floors[0] < floors[2]
        assert chance.cosine_tail(floors[1], terms) * 100 == pytest.approx(chance.FALSE_ALARM, rel=1e-3)
    assert chance.cosine_floor(1.0, 1000) > 2 * chance.cosine_floor(256.0, 1000), "rank 1 has heavy tails"
    assert chance.cosine_floor(1e9, 1000) == pytest.approx(5.1, abs=0.2), "the normal law's, for many directions"


def marks(found: Interference) -> list[tuple[str, int, int, str]]:
    return list(_marks(found))


def _marks(found: Interference) -> Iterator[tuple[str, int, int, str]]:
    many = found.comparisons
    for block in (*found.blocks, found.total):
        for i, j in found.pairs:
            kinds = {"written": block.write, "read": block.read, **block.crossed}
            if block.found(i, j, many):
                yield block.name, i, j, "cosine"
            yield from ((block.name, i, j, kind) for kind, excess in kinds.items() if excess.found(i, j, many))


@pytest.mark.parametrize(("rank", "decay"), [(1, 0.0), (4, -1.0), (16, -2.0)])
def test_unrelated_loras_are_not_marked(rank: int, decay: float) -> None:
    """In no block, pair or figure of many stacks: tiny layers, rank 1, and ranks above what a layer can have."""
    shapes = FLUX | MIXED | {"diffusion_model.final.1.tiny": (4, 12)}
    for seed in range(4):
        stack = [at(drawn(shapes, 100 * seed + k, rank, decay=decay)) for k in range(3)]
        found = measure(stack, Attention(HOMES))
        assert marks(found) == []
        text = findings.report(found)
        assert text.count("No interference beyond chance") == 3 and "pull" not in text


def test_z_of_unrelated_loras_is_that_of_a_standard_normal_number() -> None:
    values = []
    for seed in range(12):
        found = measure([at(drawn(FLUX, 50 * seed + k)) for k in range(3)])
        values += [block.z(i, j) for block in found.blocks for i, j in found.pairs]
    assert np.std(values) == pytest.approx(1, abs=0.15) and abs(np.mean(values)) < 0.25


# -- pairs that are what they are --------------------------------------------------------------------------------------


ONE, OTHER = drawn(FLUX, 1, rank=6), drawn(FLUX, 2, rank=3)


def mixture(share: float) -> Adapter:
    """The share of ONE in a LoRA of the same norm that is unrelated otherwise."""
    layers = {}
    for name, other in drawn(FLUX, 9, rank=6).layers.items():
        rest = (1 - share**2) ** 0.5 * ONE.layers[name].norm() / other.norm()
        layers[name] = LowRank.concat([ONE.layers[name].scaled(share), other.scaled(rest)])
    return Adapter(layers)


def rescaled(layer: LowRank) -> LowRank:
    return replace(layer, lora_A=layer.lora_A / 8, alpha=8 * layer.alpha)


PAIRS: dict[str, tuple[Callable[[], Weighted], str, float]] = {
    "identical": (lambda: at(ONE), "Duplicates: A and B make the same change (cosine 1.0000)", 1.0),
    "identical at half": (lambda: at(ONE, 0.5), "Duplicates: A and B make the same change", 1.0),
    "rescaled": (lambda: at(ONE.map(rescaled)), "make the same change", 1.0),
    "opposite": (lambda: at(ONE, -1.0), "Opposites: A and B undo each other (cosine -1.0000)", -1.0),
    "near duplicate": (lambda: at(mixture(0.95)), "Strong overlap: A and B pull the same way", 0.95),
    "a third in common": (lambda: at(mixture(0.33)), "Strong overlap: A and B pull the same way", 0.33),
    "against": (lambda: at(mixture(0.33), -1.0), "Strong conflict: A and B pull against each other", -0.33),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_related_pairs(case: str) -> None:
    build, sentence, cosine = PAIRS[case]
    found = measure([at(ONE), build()])
    assert found.total.cos(0, 1) == pytest.approx(cosine, abs=0.03)
    assert found.total.found(0, 1, found.comparisons) and sentence in findings.report(found)


@pytest.mark.parametrize(
    ("factor", "side"), [("lora_A", "read the same directions"), ("lora_B", "write into the same directions")]
)
def test_a_shared_subspace_without_agreement(factor: str, side: str) -> None:
    """One factor in common, as LoRAs have that were trained with the same seed; the other says something else."""
    generator = torch.Generator().manual_seed(5)
    layers = {}
    for name, layer in ONE.layers.items():
        mix = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
        fresh = drawn(FLUX, 77, rank=6).layers[name]
        mixed = mix @ layer.lora_A if factor == "lora_A" else layer.lora_B @ mix
        layers[name] = replace(fresh, **{factor: mixed})
    found = measure([at(ONE), at(Adapter(layers))])
    one, other = (found.total.read, found.total.write) if factor == "lora_A" else (found.total.write, found.total.read)
    assert one.share(0, 1) == pytest.approx(1) and other.times(0, 1) == pytest.approx(1, abs=0.15)
    assert abs(found.total.cos(0, 1)) < 0.05
    assert re.search(rf"Shared directions: A and B {side}.* \(100% of them", findings.report(found))


def test_attention_is_found_where_nothing_else_is() -> None:
    """One LoRA's queries meet the other's keys: in the head's own directions, of which no cosine tells."""
    shapes = {f"diffusion_model.blocks.{i}.attn.to_{n}": (64, 64) for i in range(3) for n in "qk"}
    one, other = drawn(shapes, 1), drawn(shapes, 2)
    layers = dict(other.layers)
    for name in [name for name in layers if name.endswith("to_k")]:
        layers[name] = replace(layers[name], lora_B=one.layers[name.replace("to_k", "to_q")].lora_B)
    heads = Attention({f"diffusion_model.blocks.{i}.attn": 4 for i in range(3)})
    found, quiet = (measure([at(one), at(each)], heads) for each in (Adapter(layers), other))
    assert marks(quiet) == []
    assert {kind for *_, kind in marks(found)} == {"Q-K"}
    assert "of A and B, queries of one match keys of the other" in findings.report(found)
    parted = [
        at(Adapter({name: layer for name, layer in each.items() if name.endswith(end)}))
        for each, end in ((one.layers, "to_q"), (layers, "to_k"))
    ]
    report = findings.report(measure(parted, heads))
    assert "Attention: of A and B, queries" in report and "No interference" not in report, (
        "also when no layer is shared"
    )


def test_loras_that_do_not_meet() -> None:
    names = list(FLUX)
    one, other = drawn({n: FLUX[n] for n in names[:4]}, 1), drawn({n: FLUX[n] for n in names[7:]}, 2)
    found = measure([at(one), at(other)], Attention(HOMES))
    assert "No interference: A and B change different layers" in findings.report(found)
    assert heat_map(found).size[0] > 0


def test_parts_that_are_off_or_zero() -> None:
    silent = ONE.map(lambda layer: replace(layer, lora_B=torch.zeros_like(layer.lora_B)))
    found = measure([at(ONE), at(silent), at(OTHER, 0.0)])
    assert marks(found) == [] and found.total.norms()[1:] == [0.0, 0.0]
    report = findings.report(found)
    assert (
        "nan" not in report
        and "A and B: nothing to compare, because no plain LoRA weight of B changes anything." in report
    )
    assert "B and C: nothing to compare, because no plain LoRA weight of B and C" in report
    heat_map(found)
    with pytest.raises(ValueError, match="strength other than 0"):
        measure([at(ONE, 0.0)])


# -- strengths and sentences -------------------------------------------------------------------------------------------


def test_suggested_strengths_keep_the_sum_as_loud_as_the_loudest() -> None:
    stack = [at(ONE, 1.0), at(OTHER, 0.6), at(drawn(FLUX, 3), -0.8)]
    factor = findings.suggested(measure(stack))
    again = measure([replace(part, strength=part.strength * factor) for part in stack])
    assert again.total.loudness() == pytest.approx(max(measure(stack).total.norms()))
    assert findings.suggested(measure([at(ONE), at(ONE, -0.5)])) == 1.0, "quieter sums stay"
    assert findings.suggested(measure([at(ONE)])) == 1.0


def test_step_distillation_is_left_alone() -> None:
    stack = [at(ONE), at(OTHER), at(drawn(FLUX, 3), 5.0)]
    alone = findings.suggested(measure(stack[:2]))
    found = measure(stack)
    assert findings.suggested(found, {2}) == pytest.approx(alone) and findings.suggested(found) != pytest.approx(alone)
    assert findings.suggested(found, {0, 1, 2}) == 1.0
    assert "The strength of C is not changed: it is a turbo." in findings.report(found, fixed={2: "it is a turbo"})


def test_the_report_tells_of_the_base() -> None:
    found = measure([at(ONE), at(OTHER)])
    base = {name: (found.layers[name][0] / 0.02, found.layers[name][1] / 0.5) for name in FLUX}
    base["diffusion_model.single_blocks.1.linear2"] = (
        found.layers["diffusion_model.single_blocks.1.linear2"][0] / 0.2,
        1e9,
    )
    text = findings.report(found, base)
    assert "at most 20% (diffusion_model.single_blocks.1.linear2)" in text and "at most 50% of the weight's" in text
    assert "show a risk, not a fault" in text and "LoRA Leave-One-Out" in text and text.isascii()


def test_two_lines_for_a_stack() -> None:
    lines = findings.of_stack(
        [at(ONE, name="ink"), at(OTHER, name="dog"), at(ONE, 0.3, name="ink again"), at(ONE, 0.0)]
    )
    assert len(lines) == 2 and "as strong as the strongest one, B (dog)" in lines[0]
    assert "Strong overlap; of all pairs most in A (ink) and C (ink again), cosine +1" in lines[1]
    assert findings.of_stack([at(ONE)]) == [] and findings.of_stack([at(ONE), at(OTHER, 0.0, 0.0)]) == []
    huge = Adapter(
        {
            f"l.{i}": LowRank(torch.zeros(1, 1).expand(4000, 4000), torch.zeros(1, 1).expand(4000, 4000), 1.0)
            for i in range(2)
        }
    )
    (line,) = findings.of_stack([at(huge), at(huge)])
    assert "LoRA Interference" in line


def test_figures_are_json_and_complete(measured: Interference) -> None:
    found = json.loads(json.dumps(findings.figures(measured), allow_nan=False))
    assert found["pairs"].keys() == {"AB", "AC", "BC"} and len(found["heads"]) == len(measured.heads)
    assert found["pairs"]["AB"].keys() == {*(block.name for block in measured.blocks), "all blocks"}


def test_the_picture_is_lit_where_something_is_found() -> None:
    quiet, loud = (np.asarray(heat_map(measure([at(ONE), at(other)]))) for other in (OTHER, ONE))
    orange = (np.abs(loud.astype(int) - [230, 120, 20]).sum(2) < 6).sum()
    assert orange > 4 * 500 and (np.abs(quiet.astype(int) - [230, 120, 20]).sum(2) < 6).sum() < 20
    many = measure([at(drawn(dict(list(FLUX.items())[:3]), seed)) for seed in range(8)])
    assert heat_map(many).width < 2400


# -- names -------------------------------------------------------------------------------------------------------------


def test_blocks_are_those_of_the_strengths_by_block(measured: Interference) -> None:
    names = [block.name for block in measured.blocks]
    assert names == ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1", "IN1", "TEXT", "REST"]
    unet = drawn(
        {
            f"diffusion_model.{n}.x": (4, 4)
            for n in ("output_blocks.0", "input_blocks.10", "input_blocks.9", "middle_block.1")
        },
        1,
    )
    assert [block.name for block in measure([at(unet)]).blocks] == ["IN9", "IN10", "MID", "OUT0"]


def test_streams_are_one_attention() -> None:
    shapes = {"d.joint_blocks.0.x_block.attn.qkv": (96, 32), "d.joint_blocks.0.context_block.attn.qkv": (96, 32),
              "d.joint_blocks.0.x_block.attn2.qkv": (96, 32), "d.t.0.attn.add_q_proj": (32, 32),
              "d.t.0.attn.to_q": (32, 32), "d.t.0.ff.net.0": (8, 8)}  # fmt: skip
    found = attentions(shapes)
    assert {home: {role: len(parts) for role, parts in roles.items()} for home, roles in found.items()} == {
        "d.joint_blocks.0.attn": {"q": 2, "k": 2, "v": 2}, "d.joint_blocks.0.x_block.attn2": {"q": 1, "k": 1, "v": 1},
        "d.t.0.attn": {"q": 2},
    }  # fmt: skip


@pytest.mark.parametrize("first", [1.0, 0.3, 0.0])
def test_brief_figures_of_other_strengths_are_those_of_a_first_look(first: float) -> None:
    """They are kept at strength 1; a LoRA that comes or goes is no other LoRA."""
    wanted = [first, *[-0.7] * (len(STACK) - 1)]
    new = [replace(part, adapter=part.adapter.map(replace)) for part in STACK]
    known, fresh = (
        measure(
            [replace(part, strength=s) for part, s in zip(parts, wanted, strict=True)], work=FigureSettings(brief=True)
        )
        for parts in (STACK, new)
    )
    for name in ("inner", "variance", "peak"):
        left, right = (getattr(found.total, name) for found in (known, fresh))
        assert np.allclose(left, right, rtol=1e-5, atol=1e-6 * np.abs(right).max())
    exact = measure([replace(part, strength=s) for part, s in zip(STACK, wanted, strict=True)]).total
    assert np.allclose(known.total.inner, exact.inner, atol=1e-5 * np.abs(exact.inner).max())
    assert known.total.loudness() == pytest.approx(exact.loudness(), rel=1e-4)
