"""The difference of two MODELs, read one weight at a time, as a LoRA."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from math import sqrt

import torch
from comfy.model_management import throw_exception_if_processing_interrupted

from ....lora_core.adapter import TEXT_PREFIX, Adapter
from ....lora_core.files import metadata
from ....lora_core.files.lineage import CONTRACT, Parent, losses
from ....lora_core.low_rank import LowRank
from ....lora_core.merging.chart import draw_merge
from ....lora_core.merging.cut_table import cut_measure
from ....lora_core.merging.extraction import Extracted, cost, cut, extract, whole_error
from ....lora_core.merging.merge import Merged
from ....lora_core.merging.outlook import Loss
from ....lora_core.merging.pick import Pick
from ....lora_core.ranks.dealt import Wire, dealt
from ....lora_core.ranks.group import ALONE, Group
from ....lora_core.trust.written import contract_text
from ..host.model_files import file_name, files_of, known_hash
from ..host.progress import Progress
from ..host.wires import Clip, Model
from ..model.names import NameTable, names_of
from ..stack.patched_weights import Patched, less
from ..trust.ancestors import learned_on
from .conversion import Tick
from .merge import Made
from .report import error_lines, size_line

_METHOD, _CPU = "extract", torch.device("cpu")
Pair = tuple[Patched, Patched]
_WIRE = Wire[Extracted | None](
    lambda part: part and part.packed(), lambda name, held: Extracted.unpacked(held) if held else None
)


def extract_lora(
    model_a: Model, model_b: Model, clip_a: Clip | None, clip_b: Clip | None, rank: int, energy: float, pick: Pick,
    tick: Tick, group: Group = ALONE,
) -> Made:  # fmt: skip
    """Return the LoRA that makes `a` of `b`. The ranks of `group` share the layers out, and all have the
    whole. Raises ValueError when the two are not of one kind, when there is no difference, or when one has changes that
    no LoRA can have."""
    if (clip_a is None) != (clip_b is None):
        raise ValueError("connect both clip_a and clip_b, or neither")
    table = names_of(model_b, clip_b)
    _check_alike(names_of(model_a, clip_a), table)
    layers = {name: shape for name, shape in table.shapes.items() if len(shape) > 1}
    pick.check(layers)
    pairs = _pairs(model_a, model_b, clip_a, clip_b)
    costs = {name: cost(shape, rank) for name, shape in layers.items() if pick.takes(name)}
    made = dealt(group, costs, lambda name: _extract(name, layers[name], pairs, rank, energy), _WIRE, tick)
    found = {name: part for name, part in made.items() if part}
    if not found:
        raise ValueError(
            "nothing to extract: model_a and model_b are the same in all selected layers; connect the fine-tuned "
            "model and its base, or change keep and drop"
        )
    merged = Merged(
        {name: part.low_rank for name, part in found.items()}, {name: part.error for name, part in found.items()},
        whole_error(list(found.values())), spectra={name: part.sigma for name, part in found.items()},
    )  # fmt: skip
    beyond = _out_of_reach(pairs, layers, found)
    report = "\n".join([size_line(merged), *(error_lines(merged) or ["nothing is lost"]), *beyond])
    loss = replace(Loss.of(merged, "the difference"), spectra={})  # of what was found alone, which is not all
    adapter = _described(merged, model_a, model_b, rank, energy, table)
    return Made(adapter, report, draw_merge(merged, "difference"), cut_measure(loss, " ".join(beyond)))


def _check_alike(a: NameTable, b: NameTable) -> None:
    if a.family.name != b.family.name:
        raise ValueError(
            f"model_a is a {a.family.name} model and model_b a {b.family.name} model; use two models of the same family"
        )
    for name in a.shapes.keys() | b.shapes.keys():
        if a.shapes.get(name) != b.shapes.get(name):
            shapes = [tuple(shapes[name]) if name in shapes else "missing" for shapes in (a.shapes, b.shapes)]
            raise ValueError(
                f"{name} is {shapes[0]} in model_a and {shapes[1]} in model_b; use two models of the same size"
            )


def _pairs(model_a: Model, model_b: Model, clip_a: Clip | None, clip_b: Clip | None) -> dict[str, Pair]:
    """By the prefix of our names."""
    pairs = {"diffusion_model.": (Patched(model_a, "model_a"), Patched(model_b, "model_b"))}
    if clip_a is not None and clip_b is not None:
        text = Patched(clip_a.patcher, "clip_a", TEXT_PREFIX), Patched(clip_b.patcher, "clip_b", TEXT_PREFIX)
        pairs[TEXT_PREFIX] = text
    for each in (weights for pair in pairs.values() for weights in pair):
        each.check()
    return pairs


def _extract(name: str, shape: tuple[int, ...], pairs: dict[str, Pair], rank: int, energy: float) -> Extracted | None:
    a, b = pairs[TEXT_PREFIX if name.startswith(TEXT_PREFIX) else "diffusion_model."]
    key, device = f"{name.removeprefix(a.prefix)}.weight", a.patcher.load_device
    ours, theirs = (each.sums(key) for each in (a, b))
    if a.same(b, key) and ours is not None and theirs is not None:
        terms = [term.to(_CPU) for term in less(ours, theirs)]
        return cut(LowRank.concat(terms), rank, energy, name) if terms else None
    difference = a.read(key, device, shape).sub_(b.read(key, device, shape))
    for term in less(a.branches(key), b.branches(key)):
        term.add_to_(difference)
    return extract(difference.float(), rank, energy, name, throw_exception_if_processing_interrupted)


def _out_of_reach(pairs: dict[str, Pair], layers: Iterable[str], found: dict[str, Extracted]) -> list[str]:
    """Describe what differs and has no place in a LoRA, with its size beside what was extracted."""
    changes = {
        f"{a.prefix}{key}": float((a.read(key, _CPU) - b.read(key, _CPU)).double().norm())
        for a, b in pairs.values()
        for key in a.parameters()
        if f"{a.prefix}{key.removesuffix('.weight')}" not in layers
        and not (a.same(b, key) and not a.is_changed(key) and not b.is_changed(key))
    }
    names = [name for name, change in changes.items() if change]
    if not names:
        return []
    share = sqrt(sum(change**2 for change in changes.values()) / sum(part.norm**2 for part in found.values()))
    return [
        f"{len(names)} biases and norms also differ and are not in the LoRA, for example {names[0]}; their difference "
        f"is {share:.2g} times that of the layers"
    ]


def _described(merged: Merged, model_a: Model, model_b: Model, rank: int, energy: float, table: NameTable) -> Adapter:
    base = file_name(next(iter(files_of(model_b)), ""))
    parents, family, made = _parents(model_a, model_b), table.family, Adapter(merged.layers)
    names = " + ".join(parent.name.rsplit(".", 1)[0] for parent in parents)
    facts = metadata.Facts(
        title=f"{names[:108] or 'model'} extracted", architecture=family.architecture,
        base_version=family.base_version, base_name=base, merged_from=parents,
        made_by={"method": _METHOD, "rank": rank, "energy": energy, **losses(merged.error, merged.errors)},
    )  # fmt: skip
    told = metadata.build(facts, made)
    text = contract_text(None, told)
    return Adapter(made.layers, {**told, **({CONTRACT: text} if text else {})})


def _parents(model_a: Model, model_b: Model) -> tuple[Parent, ...]:
    """The tuned model's file, where it is not the base's, and the rows of stacks that only the tuned model has."""
    tuned, base = (next(iter(files_of(model)), "") for model in (model_a, model_b))
    files = [_checkpoint(tuned)] if tuned and file_name(tuned) != file_name(base) else []
    below = learned_on(model_b)
    return (*files, *(each for each in learned_on(model_a) if each not in below))


def _checkpoint(path: str) -> Parent:
    if not os.path.isfile(path):
        return Parent(file_name(path), "", 1.0)
    return Parent(file_name(path), known_hash(path, Progress(1)), 1.0, hash_of="file")
