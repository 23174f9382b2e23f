"""Interference in plain words, and strengths that keep a sum as loud as its loudest member."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from string import ascii_uppercase

from ..stack.weighted import Weighted
from .figures import BlockFigures, Interference, OverlapExcess
from .interference import measure
from .layer_sum import FigureSettings

RISK = (
    "These figures show a risk, not a fault: they are computed from the files and say where LoRAs overlap. "
    "LoRA Leave-One-Out shows whether pictures suffer."
)
_SAME, _STRONG, _CLEAR = 0.9999, 0.2, 0.05  # |cosine|; about 0.2 is what two trainings of one subject have
_MOST_PRODUCTS = 10**11  # about 3 s of two cores; four LoRAs of rank 16 for FLUX have a fifth
Norms = Mapping[str, tuple[float, float]]  # Frobenius and spectral norm by layer


def letter(index: int) -> str:
    """Return A to Z, then A1, B1 and on."""
    round_, at = divmod(index, len(ascii_uppercase))
    return ascii_uppercase[at] + (str(round_) if round_ else "")


def suggested(found: Interference, fixed: Collection[int] = ()) -> float:
    """Return what to multiply all strengths with but those of `fixed`, so that the sum of the rest is no louder than
    its loudest member: min(1, max_i |W_i| / |sum_i W_i|)."""
    total, free = found.total, [i for i in range(len(found.names)) if i not in fixed]
    together = total.loudness(fixed)
    return min(1.0, max(total.norms()[i] for i in free) / together) if free and together else 1.0


def of_stack(parts: Sequence[Weighted]) -> list[str]:
    """Two lines for a stack of two or more: how loud the sum is, and the pair that agrees or opposes most."""
    parts = [part for part in parts if any(map(part.strength_of, part.adapter.layers))]
    if len(parts) < 2:
        return []
    if _products(parts) > _MOST_PRODUCTS:
        return ["Overlap was not measured: with so many ranks it takes a while. LoRA Interference does it."]
    found = measure(parts, work=FigureSettings(brief=True))
    i, j = max(found.pairs, key=lambda pair: abs(found.total.z(*pair)))
    if not found.total.variance[i, j]:
        return [loudness(found), "No two of them change the same layer."]
    beyond = found.total.found(i, j, found.comparisons)
    verdict = _verdict(found.total.cos(i, j)) if beyond else "No overlap beyond chance"
    pair = f"{_named(found, i)} and {_named(found, j)}, {agreement(found, i, j)}"
    return [loudness(found), f"{verdict}; of all pairs most in {pair}."]


def _products(parts: Sequence[Weighted]) -> int:
    """Return how many numbers are multiplied for all inner products."""
    ranks: Counter[str] = Counter()
    for part in parts:
        ranks.update({name: layer.rank for name, layer in part.adapter.layers.items()})
    sides = {name: sum(layer.lora_B.shape[:1] + layer.lora_A.shape[1:]) for part in parts
             for name, layer in part.adapter.layers.items()}  # fmt: skip
    return sum(sides[name] * rank**2 for name, rank in ranks.items())


def report(found: Interference, base: Norms | None = None, fixed: Mapping[int, str] | None = None) -> str:
    """Return everything in sentences. `base` holds the norms of the base model's weights, `fixed` why a LoRA's strength
    is left alone."""
    norms = found.total.norms()
    lines = [f"{letter(i)} = {name}, norm {norms[i]:.3g}" for i, name in enumerate(found.names)]
    lines += ["", loudness(found), *_against_base(found, base or {})]
    lines += ["", *(sentence for i, j in found.pairs for sentence in pair(found, i, j))] if found.pairs else []
    factor = suggested(found, fixed or {})
    lines += [
        "",
        suggestion(found, factor),
        *(f"The strength of {letter(i)} is not changed: {why}." for i, why in (fixed or {}).items()),
    ]
    if found.pairs:
        lines += ["", _floor(found)]
    return "\n".join([*lines, RISK])


def headline(found: Interference) -> str:
    """Return a sentence on the pair that agrees or opposes most, by the names of the LoRAs."""
    total, many = found.total, found.comparisons
    marked = [pair for pair in found.pairs if total.found(*pair, many)]
    if not found.pairs:
        return "There is a single LoRA, and nothing to compare it with."
    if not marked:
        said = [sentence for i, j in found.pairs for sentence in pair(found, i, j)]
        quiet = all("No interference" in sentence or "nothing to compare" in sentence for sentence in said)
        return "No interference beyond chance." if quiet else "No overlap as a whole, but in parts: see the tables."
    i, j = max(marked, key=lambda pair: abs(total.cos(*pair)))
    cos, one, other = total.cos(i, j), found.names[i], found.names[j]
    if abs(cos) > _SAME:
        way = f"{one} and {other} make the same change" if cos > 0 else f"{one} and {other} undo each other"
        return f"{way}: keep only one of them."
    if cos > 0:
        return f"{_verdict(cos)}: {one} and {other} pull the same way."
    return f"{_verdict(cos)}: {one} and {other} pull against each other."


def pair(found: Interference, i: int, j: int) -> list[str]:
    """Tell in sentences what two LoRAs do to each other."""
    who, total, many = f"{letter(i)} and {letter(j)}", found.total, found.comparisons
    if idle := [letter(k) for k in (i, j) if not total.inner[k, k]]:
        return [f"{who}: nothing to compare, because no plain LoRA weight of {' and '.join(idle)} changes anything."]
    if not total.variance[i, j]:
        return _attention(found, i, j, many) or [f"No interference: {who} change different layers."]
    cos = total.cos(i, j)
    if abs(cos) > _SAME:
        verdict = "Duplicates: {} make the same change" if cos > 0 else "Opposites: {} undo each other"
        return [f"{verdict.format(who)} (cosine {cos:.4f}). {_effect(found, i, j)}. Keep only one of them."]
    said = _cosine(found, i, j) + _directions(found, i, j) + _attention(found, i, j, many)
    return said or [
        f"No interference beyond chance: {who} (cosine {cos:.1g}, z {total.z(i, j):.1f}; shared directions "
        f"{total.write.times(i, j):.2f} x chance written, {total.read.times(i, j):.2f} x read)."
    ]


def _cosine(found: Interference, i: int, j: int) -> list[str]:
    total, many = found.total, found.comparisons
    marked = [block for block in found.blocks if block.found(i, j, many)]
    most = max(marked, key=lambda block: abs(block.cos(i, j)), default=None)
    who = f"{letter(i)} and {letter(j)}"
    where = f", most in {most.name} ({most.cos(i, j):+.2f})" if most else ""
    if total.found(i, j, many):
        cos = total.cos(i, j)
        figures = f"{_effect(found, i, j)} ({agreement(found, i, j)})"
        return [f"{_verdict(cos)}: {who} {_way(cos)}{where}. {figures}.{_advice(cos)}"]
    if not marked:
        return []
    same = sum(block.cos(i, j) > 0 for block in marked)
    return [f"Mixed: {who} pull the same way in {same} blocks and against each other in {len(marked) - same}{where}."]


def _directions(found: Interference, i: int, j: int) -> list[str]:
    sides: list[tuple[str, Callable[[BlockFigures], OverlapExcess]]] = [
        ("write into the same directions", lambda block: block.write),
        ("read the same directions", lambda block: block.read),
    ]
    who, said = f"{letter(i)} and {letter(j)}", []
    for what, of in sides:
        marked = [block for block in found.blocks if of(block).found(i, j, found.comparisons)]
        whole = of(found.total)
        if marked or whole.found(i, j, found.comparisons):
            most = max(marked, key=lambda block: of(block).times(i, j), default=None)
            where = f", most in {most.name} ({of(most).times(i, j):.3g} x)" if most else ""
            share = f"{100 * whole.share(i, j):.3g}% of them, {whole.times(i, j):.3g} x chance"
            said.append(f"Shared directions: {who} {what}{where} ({share}).")
    return said


def _attention(found: Interference, i: int, j: int, many: int) -> list[str]:
    said = []
    for kind, excess in found.total.crossed.items():
        marked = [b.name for b in found.blocks if kind in b.crossed and b.crossed[kind].found(i, j, many)]
        if not marked and not excess.found(i, j, many):
            continue
        heads = [head for head in found.heads if head.pair == (i, j) and head.kind == kind]
        worst = max(heads, key=lambda head: head.norm / head.base if head.base else head.times)
        size = f", {100 * worst.norm / worst.base:.2g}% of the base model's" if worst.base else ""
        what = "queries of one match keys" if kind == "Q-K" else "values of one match the output"
        said.append(
            f"Attention: of {letter(i)} and {letter(j)}, {what} of the other, most in head {worst.head} of "
            f"{worst.attention.partition('.')[2]} ({worst.times:.3g} x chance{size}; overall "
            f"{excess.times(i, j):.3g} x)."
        )
    return said


def _verdict(cos: float) -> str:
    size = "Strong" if abs(cos) >= _STRONG else "Clear" if abs(cos) >= _CLEAR else "Slight"
    return f"{size} overlap" if cos > 0 else f"{size} conflict"


def _way(cos: float) -> str:
    return "pull the same way" if cos > 0 else "pull against each other"


def _advice(cos: float) -> str:
    if abs(cos) < _CLEAR:
        return ""
    condition = "" if abs(cos) >= _STRONG else " if pictures suffer"
    return f" Lower one of them{condition}." if cos > 0 else f" Lower one of them or leave it out{condition}."


def agreement(found: Interference, i: int, j: int) -> str:
    """Return the cosine of two LoRAs over all blocks, and its multiple of chance."""
    return f"cosine {found.total.cos(i, j):+.2g}, z {found.total.z(i, j):.3g}"


def _effect(found: Interference, i: int, j: int) -> str:
    inner = found.total.inner
    apart = inner[i, i] + inner[j, j]
    change = 100 * (max(apart + 2 * inner[i, j], 0.0) / apart) ** 0.5 - 100
    if abs(change) < 0.1:
        return "Together they are as strong as unrelated LoRAs would be, within 0.1%"
    return (
        f"Together they are {abs(change):.3g}% {'stronger' if change > 0 else 'weaker'} than unrelated LoRAs would be"
    )


def loudness(found: Interference) -> str:
    """Return how strong the sum is beside the strongest LoRA."""
    total = found.total
    norms, sum_ = total.norms(), total.loudness()
    if len(norms) < 2:
        return f"The LoRA's norm is {sum_:.3g}."
    most = max(range(len(norms)), key=norms.__getitem__)
    apart = sum(norm**2 for norm in norms) ** 0.5
    return (
        f"The LoRAs together are {sum_ / norms[most]:.3g} times as strong as the strongest one, "
        f"{_named(found, most)}; unrelated LoRAs of these norms would be {apart / norms[most]:.3g} times as strong."
    )


def _against_base(found: Interference, base: Norms) -> list[str]:
    shared = [name for name in found.layers if name in base and base[name][0]]
    if not shared:
        return []
    whole = (sum(found.layers[n][0] ** 2 for n in shared) / sum(base[n][0] ** 2 for n in shared)) ** 0.5
    loud = max(shared, key=lambda name: found.layers[name][0] / base[name][0])
    strong = max(shared, key=lambda name: found.layers[name][1] / (base[name][1] or 1))
    return [
        f"Compared with the base model, the sum has {100 * whole:.3g}% of the norm of the weights it changes, at most "
        f"{100 * found.layers[loud][0] / base[loud][0]:.3g}% ({loud}). Its strongest direction reaches at most "
        f"{100 * found.layers[strong][1] / (base[strong][1] or 1):.3g}% of the weight's strongest ({strong})."
    ]


def suggestion(found: Interference, factor: float) -> str:
    """Return what to do with the strengths: multiply them by `factor`, or nothing."""
    if len(found.names) < 2:
        return "A single LoRA needs no balancing."
    if factor == 1:
        return "Keep the strengths: the LoRAs together are no stronger than the strongest one."
    return f"Multiply the strengths by {factor:.3g} to make the sum only as strong as the strongest LoRA."


def floors(found: Interference) -> tuple[float, float]:
    """Return the cosine that pairs must pass to be more than chance: the largest over all blocks together, and in
    one."""
    many = found.comparisons
    alone = [block.floor(i, j, many) for block in found.blocks for i, j in found.pairs if block.variance[i, j]]
    return max(found.total.floor(i, j, many) for i, j in found.pairs), max(alone, default=0.0)


def _floor(found: Interference) -> str:
    whole, alone = floors(found)
    return (
        f"Noise floor: in 99 of 100 such reports ({found.comparisons} comparisons), unrelated LoRAs stay below a "
        f"cosine of {whole:.1g} over all layers and of {alone:.1g} in any single block."
    )


def _named(found: Interference, index: int) -> str:
    return f"{letter(index)} ({found.names[index]})"


def figures(found: Interference, base: Norms | None = None, fixed: Collection[int] = ()) -> dict[str, object]:
    """Everything measured, for a machine to read: blocks and heads by pair, and layers beside the base. The strengths
    of `fixed` are left alone."""
    many, pairs = found.comparisons, found.pairs
    return {
        "loras": {letter(i): name for i, name in enumerate(found.names)},
        "norms": found.total.norms(), "sum": found.total.loudness(), "suggested_factor": suggested(found, fixed),
        "comparisons": many,
        "pairs": {
            letter(i) + letter(j): {block.name: _block(block, i, j, many) for block in (*found.blocks, found.total)}
            for i, j in pairs
        },
        "heads": [
            {"pair": "".join(map(letter, head.pair)), "attention": head.attention, "head": head.head,
             "kind": head.kind, "norm": head.norm, "times_chance": head.times,
             "share_of_base": head.norm / head.base if head.base else None}
            for head in found.heads
        ],
        "layers": {
            name: {"norm": norm, "spectral": top, "base_norm": (base or {}).get(name, (None, None))[0],
                   "base_spectral": (base or {}).get(name, (None, None))[1]}
            for name, (norm, top) in found.layers.items()
        },
    }  # fmt: skip


def _block(block: BlockFigures, i: int, j: int, many: int) -> dict[str, object]:
    shared = {"written": block.write, "read": block.read, **block.crossed}
    return {
        "cosine": block.cos(i, j), "z": block.z(i, j), "beyond_chance": block.found(i, j, many),
        **{name: {"times_chance": excess.times(i, j), "z": excess.z(i, j),
                  "beyond_chance": excess.found(i, j, many)} for name, excess in shared.items()},
    }  # fmt: skip
