"""Tells what is found of a LoRA's health in plain words: the verdict first, then each finding with its figures."""

from __future__ import annotations

from collections.abc import Sequence

from .health import Health, LayerFigures
from .heat_map import percent
from .repair import Moved, Repair

_MOST_NAMED = 3
_LITTLE = 0.25  # effective rank over rank, below which much of it is not used


def verdict(health: Health) -> str:
    """Return one sentence: sound, or what is wrong and how often."""
    count = len(health.layers)
    named = {
        "broken": health.broken, "loud": health.loud, "with a direction that stands out": health.outliers,
        "dead": health.dead,
    }  # fmt: skip
    wrong = [f"{len(found)} {what}" for what, found in named.items() if found]
    whole = ["the whole far too loud"] if health.too_loud_as_a_whole else []
    if not wrong and not whole:
        return f"Sound: none of its {count} layers is broken, dead or loud for its kind."
    return f"Not sound: {_listed([*whole, *wrong])}, of {count} layers."


def findings(health: Health) -> list[str]:
    """Return a sentence for each finding, and one on its strength and one on its rank."""
    return [
        *_broken(health), *_whole(health), *_loud(health), *_outliers(health), *_dead(health), _strength(health),
        *_rank(health),
    ]  # fmt: skip


def _broken(health: Health) -> list[str]:
    if not health.broken:
        return []
    return [
        f"Broken: {_layers(health.broken)} NaN or infinite values, which make pictures black. The repaired LoRA is "
        "without them."
    ]


def _whole(health: Health) -> list[str]:
    if not health.too_loud_as_a_whole:
        return []
    fence = min(health.fences.values(), key=lambda fence: fence.factor)
    return [
        f"Too loud as a whole: its usual layer is {percent(fence.share.whole)} of the weight it changes, so the file "
        f"was probably made for a strength near {fence.factor:.1g}. The repaired LoRA has that folded in; try others."
    ]


def _loud(health: Health) -> list[str]:
    if not health.loud:
        return []
    most = health.loud[0]
    return [
        f"Loud: {_layers(health.loud, 'is', 'are')} far louder than others of the kind, most {most.name}: "
        f"{percent(most.share)} of the weight, {health.times(most):.3g} times what is usual. The repaired LoRA has "
        "what is usual."
    ]


def _outliers(health: Health) -> list[str]:
    if not health.outliers:
        return []
    most = health.outliers[0]
    limit = health.fence(most).limit(most)
    return [
        f"A direction stands out: in {_layers(health.outliers, '', '')}, most in {most.name}, where it is "
        f"{most.top / limit:.3g} times what is usual for the kind. In the repaired LoRA it is held to that."
    ]


def _dead(health: Health) -> list[str]:
    if not health.dead:
        return []
    return [f"Dead: {_layers(health.dead, 'changes', 'change')} nothing. The repaired LoRA is without them."]


def _strength(health: Health) -> str:
    known = [layer for layer in health.layers if layer.base and layer.norm]
    if not known:
        return "Strength: how strong it is beside the base model is not known, as its weights cannot be read."
    most = max(known, key=lambda layer: layer.share)
    return (
        f"Strength: it has {percent(health.share())} of the norm of the weights it changes, at most "
        f"{percent(most.share)} ({most.name})."
    )


def _rank(health: Health) -> list[str]:
    kept, rank = health.rank_for(), max((layer.rank for layer in health.layers), default=0)
    if not kept:
        return []
    used = sorted(layer.effective_rank / layer.rank for layer in health.layers if layer.norm)
    told = f"Rank: {kept} of {rank} hold 99 % of it"
    if used[len(used) // 2] >= _LITTLE or kept >= rank:
        return [f"{told}."]
    return [f"{told}, so Resize LoRA with rank {kept} makes a smaller file that does the same."]


def repair_line(repairs: Sequence[Repair], moved: Moved) -> str:
    """Return what was done in all, and how far it has moved the LoRA."""
    if not repairs:
        return "Nothing was repaired: the output is the LoRA as it is."
    counts = {what: len({r.layer for r in repairs if _done(r) == what}) for what in ("left out", "held", "scaled")}
    done = _listed([f"{count} {what}" for what, count in counts.items() if count])
    return (
        f"Repaired: {done}. {percent(moved.distance)} of the LoRA's norm was changed, {percent(moved.left)} of it is "
        "left."
    )


def _done(repair: Repair) -> str:
    return "left out" if not repair.factor else "held" if repair.limit is not None else "scaled"


def _layers(found: Sequence[LayerFigures], one: str = "holds", many: str = "hold") -> str:
    """`2 layers hold`, with a few of their names."""
    named = ", ".join(layer.name for layer in found[:_MOST_NAMED]) + (", ..." if len(found) > _MOST_NAMED else "")
    word = f" {one}" if one and len(found) == 1 else f" {many}" if many else ""
    return f"{len(found)} layer{'' if len(found) == 1 else 's'} ({named}){word}"


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
