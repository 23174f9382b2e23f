"""Makes a data set of pairs of two: pictures of one side, such as those that people like, each beside its partner."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .dataset import Dataset, Example, by_reason
from .task import PairTask, Side

_PAIRS = "pairs"
Picture = list[Example]  # at each resolution
Lost = list[tuple[str, str]]


def paired(first: Dataset, second: Dataset, task: PairTask) -> Dataset:
    """Return pairs as examples of the first set, with their captions, each with its `partner` of the second. The sides
    of the task say in words what the sets show.

    Pictures of one name, without suffix, are a pair. Where no name is in both sets and the task allows it, pictures of
    one caption and size are, in their order. What has no partner is left out, with the reason. Raises ValueError when
    no pair is left, and for sets that pairs cannot be made of.
    """
    one, other = task.sides
    _check(one, first)
    _check(other, second)
    if first.resolutions != second.resolutions:
        raise ValueError(
            f"the {one.pictures} are read at resolution {_numbers(first)} and the {other.pictures} at "
            f"{_numbers(second)}; set the same resolution in both LoRA Datasets"
        )
    named = bool({_name(each) for each in first.examples} & {_name(each) for each in second.examples})
    lost: Lost = [(name, why) for data in (first, second) for name, why in data.left_out]
    by = _by_name if named or not task.by_caption else _by_caption
    found = list(by((first, second), task.sides, lost))
    examples = [_pair(a, b) for pair in found for a, b in zip(*pair, strict=True)]
    if not examples:
        told = "; ".join(f"{', '.join(names[:4])}: {why}" for why, names in list(by_reason(lost).items())[:4])
        raise ValueError(
            f"there is no pair of a {one.picture} and a {other.picture} ({told}); give the two of a pair one name"
        )
    notes = [(_PAIRS, _told(len(found), by is _by_name, one)), *first.notes, *second.notes]
    return Dataset(tuple(examples), first.resolutions, tuple(lost), tuple(notes), task=task)


def partners(dataset: Dataset) -> Dataset:
    """Return the second pictures of pairs, in the order of the examples and with as many views."""
    return replace(dataset, examples=tuple(each.partner for each in dataset.examples if each.partner))


def all_pictures(dataset: Dataset) -> Dataset:
    """Return everything that is learned from: partners after the others."""
    return replace(dataset, examples=(*dataset.examples, *partners(dataset).examples))


def side_by_side(dataset: Dataset) -> Dataset:
    """Return both pictures of each pair one after the other, to be looked at."""
    said = dataset.task.sides[1].word if isinstance(dataset.task, PairTask) else ""
    both = ((each, replace(each.partner, caption=said)) for each in dataset.examples if each.partner)
    return replace(dataset, examples=tuple(picture for pair in both for picture in pair))


def _check(side: Side, data: Dataset) -> None:
    options = [group.options for group in data.groups]
    wrong = (
        ("is made of pairs already", any(each.partner for each in data.examples), "connect two LoRA Datasets"),
        ("has crops, which would show other parts of the two", any(o.crops for o in options), "set crops to 0"),
        ("has masks, which pairs do not use", any(each.mask is not None for each in data.examples), "set masks to off"),
        (
            "has class images, which pairs do not use",
            any(o.class_images for o in options),
            "switch class_images off",
        ),
    )
    for what, there, cure in wrong:
        if there:
            raise ValueError(f"the data set of {side.pictures} {what}; {cure}")


def _by_name(
    sets: tuple[Dataset, Dataset], sides: tuple[Side, Side], lost: Lost
) -> Iterator[tuple[Picture, Picture]]:  # fmt: skip
    first, second = (_named(side, data, lost) for side, data in zip(sides, sets, strict=True))
    for name, one in first.items():
        other = second.pop(name, None)
        if other is None:
            lost.append((_file(one), f"no {sides[1].picture} has its name"))
        elif why := _unlike(one, other):
            lost.append((_file(one), why))
        else:
            yield one, other
    lost.extend((_file(other), f"no {sides[0].picture} has its name") for other in second.values())


def _named(side: Side, data: Dataset, lost: Lost) -> dict[str, Picture]:
    found: dict[str, Picture] = {}
    for picture in _pictures(data):
        if found.setdefault(_name(picture[0]), picture) is not picture:
            lost.append((_file(picture), f"another {side.picture} has its name"))
    return found


def _unlike(one: Picture, other: Picture) -> str:
    """Return why these are no pair; empty where they are."""
    if (mine := [each.size for each in one]) != (theirs := [each.size for each in other]):
        (width, height), (w, h) = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
        return f"it is {width} x {height} and its partner {w} x {h} after cropping; give both one shape"
    same = all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    return "its partner is the same picture" if same else ""


def _by_caption(
    sets: tuple[Dataset, Dataset], sides: tuple[Side, Side], lost: Lost
) -> Iterator[tuple[Picture, Picture]]:  # fmt: skip
    """Each picture is in one pair at most, so that held-out pairs share none with the others."""
    free: defaultdict[tuple, list[Picture]] = defaultdict(list)
    for other in _pictures(sets[1]):
        free[_kind(other)].append(other)
    for one in _pictures(sets[0]):
        own = free[_kind(one)]
        at = next((i for i, other in enumerate(own) if not _unlike(one, other)), None)
        if at is None:
            lost.append((_file(one), f"no other {sides[1].picture} of its caption and size is left"))
        else:
            yield one, own.pop(at)
    left = [other for own in free.values() for other in own]
    lost.extend((_file(other), f"no other {sides[0].picture} of its caption and size is left") for other in left)


def _pair(one: Example, other: Example) -> Example:
    """The caption is that of the first, and so is whether both are mirrored."""
    digest = hashlib.sha256(f"{one.digest} {other.digest}".encode()).hexdigest()
    partner = replace(other, caption=one.caption, captions=one.captions, flip=one.flip)
    return replace(one, digest=digest, partner=partner)


def _pictures(data: Dataset) -> list[Picture]:
    found: dict[int, Picture] = {}
    for each in data.examples:
        found.setdefault(id(each.origin), []).append(each)
    return list(found.values())


def _kind(picture: Picture) -> tuple:
    return picture[0].caption, tuple(each.size for each in picture)


def _name(example: Example) -> str:
    return Path(example.source).stem


def _file(picture: Picture) -> str:
    return Path(picture[0].source).name


def _numbers(data: Dataset) -> str:
    return ", ".join(map(str, data.resolutions))


def _told(count: int, named: bool, side: Side) -> str:
    how = "by name" if named else "by caption and size, as no name is in both sets"
    return f"{count} {'pair' if count == 1 else 'pairs'}, found {how}; captions are those of the {side.pictures}"


def report(dataset: Dataset) -> str:
    """Return the pairs first, then what is told of the pictures of the first side."""
    (_, head), *notes = dataset.notes
    return f"{head}\n{replace(dataset, notes=tuple(notes)).report()}"
