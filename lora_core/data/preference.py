"""Makes a data set of pairs of two: pictures that people like, each beside one that they do not."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .dataset import Dataset, Example, by_reason
from .task import LearnPreference

_PAIRS = "pairs"
_SIDES = ("liked", "disliked")
Picture = list[Example]  # at each resolution
Lost = list[tuple[str, str]]


def paired(liked: Dataset, disliked: Dataset, beta: float) -> Dataset:
    """Return pairs as examples of the liked pictures, with their captions, each with its `disliked` one.

    Pictures of one name, without suffix, are a pair. Where no name is in both sets, pictures of one caption and size
    are, in their order. What has no partner is left out, with the reason. Raises ValueError when no pair is left, and
    for sets that pairs cannot be made of.
    """
    task = LearnPreference(beta)
    for side, data in zip(_SIDES, (liked, disliked), strict=True):
        _check(side, data)
    if liked.resolutions != disliked.resolutions:
        raise ValueError(
            f"the liked pictures are read at resolution {_numbers(liked)} and the disliked ones at "
            f"{_numbers(disliked)}; set the same resolution in both LoRA Datasets"
        )
    named = {_name(each) for each in liked.examples} & {_name(each) for each in disliked.examples}
    lost: Lost = [(name, why) for data in (liked, disliked) for name, why in data.left_out]
    found = list(_by_name(liked, disliked, lost) if named else _by_caption(liked, disliked, lost))
    examples = [_pair(one, other) for pair in found for one, other in zip(*pair, strict=True)]
    if not examples:
        told = "; ".join(f"{', '.join(names[:4])}: {why}" for why, names in list(by_reason(lost).items())[:4])
        raise ValueError(
            f"there is no pair of a liked and a disliked picture ({told}); give the two of a pair one name"
        )
    notes = [(_PAIRS, _told(len(found), bool(named))), *liked.notes, *disliked.notes]
    return Dataset(tuple(examples), liked.resolutions, tuple(lost), tuple(notes), task=task)


def partners(dataset: Dataset) -> Dataset:
    """Return the disliked pictures of pairs, in the order of the examples and with as many views."""
    return replace(dataset, examples=tuple(each.disliked for each in dataset.examples if each.disliked))


def all_pictures(dataset: Dataset) -> Dataset:
    """Return everything that is learned from: disliked pictures after the others."""
    return replace(dataset, examples=(*dataset.examples, *partners(dataset).examples))


def side_by_side(dataset: Dataset) -> Dataset:
    """Return both pictures of each pair one after the other, to be looked at."""
    both = ((each, replace(each.disliked, caption="disliked")) for each in dataset.examples if each.disliked)
    return replace(dataset, examples=tuple(picture for pair in both for picture in pair))


def _check(side: str, data: Dataset) -> None:
    options = [group.options for group in data.groups]
    wrong = (
        ("is made of pairs already", any(each.disliked for each in data.examples), "connect two LoRA Datasets"),
        ("has crops, which would show other parts of the two", any(o.crops for o in options), "set crops to 0"),
        ("has masks, which pairs do not use", any(each.mask is not None for each in data.examples), "set masks to off"),
        (
            "has class images, of which nothing is liked",
            any(o.class_images for o in options),
            "switch class_images off",
        ),
    )
    for what, there, cure in wrong:
        if there:
            raise ValueError(f"the data set of {side} pictures {what}; {cure}")


def _by_name(liked: Dataset, disliked: Dataset, lost: Lost) -> Iterator[tuple[Picture, Picture]]:
    sides = [_named(side, data, lost) for side, data in zip(_SIDES, (liked, disliked), strict=True)]
    for name, one in sides[0].items():
        other = sides[1].pop(name, None)
        if other is None:
            lost.append((_file(one), "no disliked picture has its name"))
        elif why := _unlike(one, other):
            lost.append((_file(one), why))
        else:
            yield one, other
    lost.extend((_file(other), "no liked picture has its name") for other in sides[1].values())


def _named(side: str, data: Dataset, lost: Lost) -> dict[str, Picture]:
    found: dict[str, Picture] = {}
    for picture in _pictures(data):
        if found.setdefault(_name(picture[0]), picture) is not picture:
            lost.append((_file(picture), f"another {side} picture has its name"))
    return found


def _unlike(one: Picture, other: Picture) -> str:
    """Return why these are no pair; empty where they are."""
    if (mine := [each.size for each in one]) != (theirs := [each.size for each in other]):
        (width, height), (w, h) = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
        return f"it is {width} x {height} and its disliked partner {w} x {h} after cropping; give both one shape"
    same = all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    return "its disliked partner is the same picture" if same else ""


def _by_caption(liked: Dataset, disliked: Dataset, lost: Lost) -> Iterator[tuple[Picture, Picture]]:
    """Each picture is in one pair at most, so that held-out pairs share none with the others."""
    free: defaultdict[tuple, list[Picture]] = defaultdict(list)
    for other in _pictures(disliked):
        free[_kind(other)].append(other)
    for one in _pictures(liked):
        own = free[_kind(one)]
        at = next((i for i, other in enumerate(own) if not _unlike(one, other)), None)
        if at is None:
            lost.append((_file(one), "no other disliked picture of its caption and size is left"))
        else:
            yield one, own.pop(at)
    left = [other for own in free.values() for other in own]
    lost.extend((_file(other), "no other liked picture of its caption and size is left") for other in left)


def _pair(one: Example, other: Example) -> Example:
    """The caption is the liked picture's, and so is whether both are mirrored."""
    digest = hashlib.sha256(f"{one.digest} {other.digest}".encode()).hexdigest()
    return replace(
        one, digest=digest, disliked=replace(other, caption=one.caption, captions=one.captions, flip=one.flip)
    )


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


def _told(count: int, named: bool) -> str:
    how = "by name" if named else "by caption and size, as no name is in both sets"
    return f"{count} {'pair' if count == 1 else 'pairs'}, found {how}; captions are those of the liked pictures"


def report(dataset: Dataset) -> str:
    """Return the pairs first, then what is told of the liked pictures."""
    (_, head), *notes = dataset.notes
    return f"{head}\n{replace(dataset, notes=tuple(notes)).report()}"
