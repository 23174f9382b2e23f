"""Finds what is wrong with a data set, and says in sentences what to do, the most important first."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from . import doctor_pictures as looks
from . import doctor_texts as texts
from .dataset import Dataset, Example
from .finding import DatasetFinding, are, is_mask, names

ENLARGED, CROPPED, QUALITY = 1.25, 0.2, 50
BLURRED = 0.004  # sharpness: in focus it is far above, below it after a blur of about 2 pixels at the training size
DARK, BRIGHT, FLAT = 0.06, 0.94, 0.03  # mean and deviation of gray in 0..1
FEW = 8
_T = TypeVar("_T")


def examine(dataset: Dataset, tick: Callable[[], None] = lambda: None) -> list[DatasetFinding]:
    """Return all findings, the most urgent first. `tick` is called before each check and each picture, and may
    raise."""
    pictures = dataset.pictures()
    checks = (
        copies, partial(of_pictures, tick=tick), texts.missing, texts.captions, texts.parentheses, texts.trigger,
        texts.tags_of_all, texts.reserved, texts.left_out, _balance,
    )  # fmt: skip
    found = [finding for check in _each(checks, tick) for finding in check(dataset, pictures)]
    return sorted(found, key=lambda finding: (-finding.urgency, -len(finding.examples)))


def report(dataset: Dataset, findings: Sequence[DatasetFinding]) -> str:
    """Lines of plain text."""
    urgent = sum(finding.urgency == 3 for finding in findings)
    head = f"{dataset.num_pictures()} pictures, {len(findings)} findings" + (f", {urgent} urgent" if urgent else "")
    if not findings:
        return f"{head}: no problem found"
    return "\n".join([head, *(f"{number}. {finding.text}" for number, finding in enumerate(findings, 1))])


def marks(findings: Sequence[DatasetFinding]) -> dict[int, list[str]]:
    """Return the marks of each picture, by the id of its origin."""
    found: dict[int, list[str]] = {}
    for finding in findings:
        for example in finding.examples:
            found.setdefault(id(example.origin), []).append(finding.mark)
    return found


def copies(_: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    """Yield findings on pictures that are the same, or nearly."""
    groups = _alike(pictures)
    yield from _same(groups)
    first = [group[0] for group in groups]
    pairs = looks.near_copies([example.origin.thumbnail for example in first]) if len(first) > 1 else []
    for indices, mirrored in looks.grouped(pairs):
        group = [first[index] for index in indices]
        if len(group) > 2:
            how = "nearly the same picture, some of them mirrored" if mirrored else "nearly the same picture"
            text = f"{names(group)} are {how}: keep only the best one or two, unless the differences matter."
        else:
            how = "mirror images of each other" if mirrored else "nearly the same picture"
            text = f"{names(group)} are {how}: keep only the better one, unless the differences matter."
        yield DatasetFinding(2, text, "near copy", tuple(group))


def quite_the_same(pictures: list[Example]) -> Iterator[DatasetFinding]:
    """Yield what `copies` does but for those that are only nearly the same, which takes long for thousands."""
    yield from _same(_alike(pictures))


def _same(groups: list[list[Example]]) -> Iterator[DatasetFinding]:
    for group in groups:
        if len(group) > 1:
            yield DatasetFinding(
                3,
                f"{names(group)} are the same picture, which counts {len(group)} times: keep only one.",
                "copy",
                tuple(group),
            )


def _alike(pictures: list[Example]) -> list[list[Example]]:
    found: dict[str, list[Example]] = {}
    for example in pictures:
        found.setdefault(hashlib.sha256(example.pixels.numpy().tobytes()).hexdigest(), []).append(example)
    return list(found.values())


def of_pictures(
    _: Dataset, pictures: list[Example], tick: Callable[[], None] = lambda: None
) -> Iterator[DatasetFinding]:
    """Yield findings on single pictures: their size, light and shape, and how they are stored."""
    small = _small(pictures)
    if small:
        most = looks.enlarged(small[0].origin.size, small[0].size)
        yield DatasetFinding(
            3 if most > 2 else 2,
            f"{names(small)} {are(small)} smaller than the training size and enlarged up to {most:.1f} times, so "
            "the LoRA learns soft pictures: use larger files or a lower resolution, or remove them.",
            "small", tuple(small),
        )  # fmt: skip
    yield from _light(pictures, small, tick)
    yield from _files(pictures)


def _files(pictures: list[Example]) -> Iterator[DatasetFinding]:
    """Yield findings on shapes, compression and names of files."""
    cut = [e for e in pictures if looks.cropped_away(e.origin.size, e.size) > CROPPED]
    if cut:
        worst = max(looks.cropped_away(e.origin.size, e.size) for e in cut)
        yield DatasetFinding(
            2,
            f"{names(cut)} {are(cut)} too long or too wide: up to {worst:.0%} is cropped away. Crop by hand to at most 2 to 1.",
            "cropped", tuple(cut),
        )  # fmt: skip
    rough = [e for e in pictures if e.origin.quality is not None and e.origin.quality < QUALITY]
    if rough:
        yield DatasetFinding(
            2,
            f"{names(rough)} {are(rough)} JPEG of low quality (about {min(e.origin.quality or 0 for e in rough)}), so the "
            "LoRA learns the JPEG blocks: use better files.",
            "JPEG", tuple(rough),
        )  # fmt: skip
    masks = [e for e in pictures if is_mask(e)]
    if masks:
        yield DatasetFinding(
            3,
            f"{names(masks)} {are(masks)} named like masks but used as pictures: set masks to auto, or rename the files.",
            "mask?", tuple(masks),
        )  # fmt: skip


def _small(pictures: list[Example]) -> list[Example]:
    """The most enlarged first."""
    scales = [(looks.enlarged(e.origin.size, e.size), e) for e in pictures]
    return [e for scale, e in sorted(scales, key=lambda each: -each[0]) if scale > ENLARGED]


def _light(pictures: list[Example], small: list[Example], tick: Callable[[], None]) -> Iterator[DatasetFinding]:
    """Yield findings on pictures that are one colour, dark, bright or blurred; each in the first of these that fits."""
    light = {id(e): looks.gray(e.pixels) for e in _each(pictures, tick)}
    flat = [e for e in pictures if float(light[id(e)].std()) < FLAT]
    dark = [e for e in pictures if e not in flat and float(light[id(e)].mean()) < DARK]
    bright = [e for e in pictures if e not in flat and float(light[id(e)].mean()) > BRIGHT]
    odd = {id(e) for e in (*small, *flat, *dark, *bright)}
    blurred = [e for e in _each(pictures, tick) if id(e) not in odd and looks.sharpness(e.pixels) < BLURRED]
    for severity, name, found, advice in (
        (
            2,
            "blurred",
            blurred,
            "blurred or out of focus, and the LoRA learns that: remove pictures that are not sharp.",
        ),
        (3, "flat", flat, "almost one colour: check that this is the right file."),
        (2, "dark", dark, "almost black: make them lighter, or remove them."),
        (1, "bright", bright, "almost white: check the exposure, or crop closer."),
    ):
        if found:
            yield DatasetFinding(severity, f"{names(found)} {are(found)} {advice}", name, tuple(found))


def _balance(dataset: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    concept = [e for e in pictures if e.group.role == "concept"]
    if 0 < len(concept) < FEW:
        yield DatasetFinding(
            2,
            f"there are only {len(concept)} pictures: 10 to 20 different ones work better. Otherwise use crops; more repeats do not help.",
        )
    if not concept:
        yield DatasetFinding(3, "there are only class images: combine them with a data set that shows the concept.")
    buckets = Counter(e.size for e in pictures)
    alone = [e for e in pictures if buckets[e.size] == 1]
    if len(alone) > 1 and len(buckets) > 1:
        yield DatasetFinding(
            1,
            f"{names(alone)} each have a different shape, so they cannot share a batch: with batch_size above 1, crop them to a common shape.",
            "shape",
            tuple(alone),
        )
    shares = {
        g: sum(e.group.times for e in dataset.examples if e.group == g) for g in dataset.groups if g.role == "concept"
    }
    if len(shares) > 1 and max(shares.values()) > 3 * min(shares.values()):
        most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
        yield DatasetFinding(
            2,
            f"{Path(most.name).name} is used {shares[most] / shares[least]:.1f} times as often as {Path(least.name).name}: raise the weight of {Path(least.name).name} to balance them.",
        )


def _each(items: Iterable[_T], tick: Callable[[], None]) -> Iterator[_T]:
    for item in items:
        tick()
        yield item
