"""What is wrong with a data set, in sentences that say what to do, the most important first."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from . import doctor_captions as words
from . import doctor_pictures as looks
from .dataset import Dataset, Example
from .pictures import MASK_ENDING

ENLARGED, CROPPED, QUALITY = 1.25, 0.2, 50
BLURRED = 0.004  # sharpness: in focus it is far above, below it after a blur of about 2 pixels at the training size
DARK, BRIGHT, FLAT = 0.06, 0.94, 0.03  # mean and deviation of gray in 0..1
NEARLY_ALL = 0.9
FEW = 8
_NAMED = 4  # pictures that a sentence names
_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """`text` is a sentence with its cure, `mark` a word for the thumbnails, `examples` the pictures it is about."""

    urgency: int  # 3: it will spoil the result, 2: it will hurt, 1: worth a look
    text: str
    mark: str = ""
    examples: tuple[Example, ...] = ()


def examine(dataset: Dataset, tick: Callable[[], None] = lambda: None) -> list[Finding]:
    """All findings, the most urgent first. `tick` is called before each check and each picture, and may raise."""
    pictures = list({id(example.origin): example for example in reversed(dataset.examples)}.values())[::-1]
    checks = (_copies, partial(_pictures, tick=tick), _captions, _trigger, _tags, _balance)
    found = [finding for check in _each(checks, tick) for finding in check(dataset, pictures)]
    return sorted(found, key=lambda finding: (-finding.urgency, -len(finding.examples)))


def report(dataset: Dataset, findings: Sequence[Finding]) -> str:
    """Lines of plain text."""
    urgent = sum(finding.urgency == 3 for finding in findings)
    head = f"{dataset.num_pictures()} pictures, {len(findings)} findings" + (f", {urgent} urgent" if urgent else "")
    if not findings:
        return f"{head}: nothing to change"
    return "\n".join([head, *(f"{number}. {finding.text}" for number, finding in enumerate(findings, 1))])


def marks(findings: Sequence[Finding]) -> dict[int, list[str]]:
    """The marks of each picture, by the id of its origin."""
    found: dict[int, list[str]] = {}
    for finding in findings:
        for example in finding.examples:
            found.setdefault(id(example.origin), []).append(finding.mark)
    return found


def _copies(_: Dataset, pictures: list[Example]) -> Iterator[Finding]:
    same: dict[str, list[Example]] = {}
    for example in pictures:
        same.setdefault(hashlib.sha256(example.pixels.numpy().tobytes()).hexdigest(), []).append(example)
    for group in same.values():
        if len(group) > 1:
            yield Finding(
                3,
                f"{_names(group)} are the same picture: keep one, or it counts {len(group)} times.",
                "copy",
                tuple(group),
            )
    first = [group[0] for group in same.values()]
    pairs = looks.near_copies([example.origin.thumbnail for example in first]) if len(first) > 1 else []
    for one, other, mirrored in pairs:
        pair, how = (first[one], first[other]), "mirror images of each other" if mirrored else "nearly the same picture"
        yield Finding(
            2, f"{_names(pair)} are {how}: keep the better one, unless they differ in what matters.", "near copy", pair
        )


def _pictures(_: Dataset, pictures: list[Example], tick: Callable[[], None]) -> Iterator[Finding]:
    small = _small(pictures)
    if small:
        most = looks.enlarged(small[0].origin.size, small[0].size)
        yield Finding(
            3 if most > 2 else 2,
            f"{_names(small)} {_are(small)} smaller than the training size and enlarged up to {most:.1f} times, "
            "which teaches softness: use larger files, a lower resolution, or leave them out.",
            "small", tuple(small),
        )  # fmt: skip
    yield from _light(pictures, small, tick)
    yield from _files(pictures)


def _files(pictures: list[Example]) -> Iterator[Finding]:
    """Of shapes, compression and names of files."""
    cut = [e for e in pictures if looks.cropped_away(e.origin.size, e.size) > CROPPED]
    if cut:
        worst = max(looks.cropped_away(e.origin.size, e.size) for e in cut)
        yield Finding(
            2,
            f"{_names(cut)} {_are(cut)} so long that up to {worst:.0%} is cropped away: crop by hand to at most 2 to 1.",
            "cropped", tuple(cut),
        )  # fmt: skip
    rough = [e for e in pictures if e.origin.quality is not None and e.origin.quality < QUALITY]
    if rough:
        yield Finding(
            2,
            f"{_names(rough)} {_are(rough)} JPEG of low quality (about {min(e.origin.quality for e in rough)}), whose "
            "blocks are learned: find better files.",
            "JPEG", tuple(rough),
        )  # fmt: skip
    masks = [e for e in pictures if Path(e.source).stem.endswith(MASK_ENDING)]
    if masks:
        yield Finding(
            3,
            f"{_names(masks)} {_are(masks)} named like masks but learned as pictures: set masks to auto, or rename.",
            "mask?", tuple(masks),
        )  # fmt: skip


def _small(pictures: list[Example]) -> list[Example]:
    """The most enlarged first."""
    scales = [(looks.enlarged(e.origin.size, e.size), e) for e in pictures]
    return [e for scale, e in sorted(scales, key=lambda each: -each[0]) if scale > ENLARGED]


def _light(pictures: list[Example], small: list[Example], tick: Callable[[], None]) -> Iterator[Finding]:
    """Of pictures that are one colour, dark, bright or blurred; each in the first of these that fits."""
    light = {id(e): looks.gray(e.pixels) for e in _each(pictures, tick)}
    flat = [e for e in pictures if float(light[id(e)].std()) < FLAT]
    dark = [e for e in pictures if e not in flat and float(light[id(e)].mean()) < DARK]
    bright = [e for e in pictures if e not in flat and float(light[id(e)].mean()) > BRIGHT]
    odd = {id(e) for e in (*small, *flat, *dark, *bright)}
    blurred = [e for e in _each(pictures, tick) if id(e) not in odd and looks.sharpness(e.pixels) < BLURRED]
    for severity, name, found, advice in (
        (2, "blurred", blurred, "out of focus or blurred, and the LoRA will learn that: leave out what is not sharp."),
        (3, "flat", flat, "almost one colour: look whether the file is what you mean."),
        (2, "dark", dark, "almost black: lighten or leave out."),
        (1, "bright", bright, "almost white: check the exposure, or crop closer."),
    ):
        if found:
            yield Finding(severity, f"{_names(found)} {_are(found)} {advice}", name, tuple(found))


def _captions(dataset: Dataset, pictures: list[Example]) -> Iterator[Finding]:
    junk = [e for e in pictures if words.has_junk(e.caption)]
    if junk:
        yield Finding(
            2, f"the caption of {_names(junk)} holds broken characters: save the .txt as UTF-8.", "text", tuple(junk)
        )
    if long := [e for e in pictures if words.tokens(e.caption) > words.CLIP_TOKENS]:
        most = max(words.tokens(e.caption) for e in long)
        yield Finding(
            1,
            f"the caption of {_names(long)} is long, by estimate up to {most} tokens: beyond {words.CLIP_TOKENS} CLIP reads it in separate parts, so put what matters first (T5 and newer encoders take more).",
            "long",
            tuple(long),
        )
    twice = [e for e in pictures if words.repeated_tags(e.caption)]
    if twice:
        tag = words.repeated_tags(twice[0].caption)[0]
        yield Finding(
            1,
            f"the caption of {_names(twice)} says the same tag twice ('{tag}'): once is enough.",
            "twice",
            tuple(twice),
        )
    concept = [e for e in pictures if e.group.role == "concept"]
    if len(concept) > 3 and len({e.caption for e in concept}) == 1:
        yield Finding(
            2,
            f"all {len(concept)} captions are the same, so everything in the pictures goes into them: describe what changes from picture to picture (pose, place, light).",
            "",
            (),
        )
    if dataset.left_out:
        names = ", ".join(name for name, _ in dataset.left_out[:_NAMED])
        more = f" and {len(dataset.left_out) - _NAMED} more" if len(dataset.left_out) > _NAMED else ""
        yield Finding(
            1, f"{names}{more} {'was' if len(dataset.left_out) == 1 else 'were'} left out: {dataset.left_out[0][1]}."
        )


def _trigger(dataset: Dataset, pictures: list[Example]) -> Iterator[Finding]:
    for group in dataset.groups:
        members = [e for e in pictures if e.group == group]
        if group.role == "concept" and not group.trigger:
            name = f" of {Path(group.name).name}" if len(dataset.groups) > 1 else ""
            yield Finding(
                2,
                f"there is no trigger word{name}, so the LoRA acts on every prompt: write one in LoRA Dataset, unless it is a style that should.",
            )
        inside = [e for e in members if words.trigger_inside(e.caption, group.trigger)]
        if inside:
            word = words.trigger_inside(inside[0].caption, group.trigger)
            yield Finding(
                2,
                f"the trigger '{group.trigger}' is part of another word ('{word}') in the caption of {_names(inside)}: choose a trigger that is in no other word.",
                "trigger",
                tuple(inside),
            )


def _tags(dataset: Dataset, pictures: list[Example]) -> Iterator[Finding]:
    concept = [e for e in pictures if e.group.role == "concept"]
    captions = [e.caption for e in concept]
    if len(captions) < 5 or len(set(captions)) == 1:
        return
    counts = words.tag_counts(captions, [group.trigger for group in dataset.groups])
    for tag, count in counts.most_common():
        if count < NEARLY_ALL * len(captions):
            break
        trigger = f"'{dataset.trigger}'" if dataset.trigger else "the concept"
        yield Finding(
            1,
            f"'{tag}' is in {count} of {len(captions)} captions and will be learned as part of {trigger}: leave it out of the captions if it belongs to it, else add pictures without it.",
        )
    single = [tag for tag, count in counts.items() if count == 1]
    if single and words.are_tags(captions):
        named = ", ".join(f"'{tag}'" for tag in single[:_NAMED])
        yield Finding(
            1,
            f"{len(single)} of {len(counts)} tags are in one caption only ({named}): check their spelling; once is too little to learn from.",
        )


def _balance(dataset: Dataset, pictures: list[Example]) -> Iterator[Finding]:
    concept = [e for e in pictures if e.group.role == "concept"]
    if 0 < len(concept) < FEW:
        yield Finding(
            2,
            f"{len(concept)} pictures are few: 10 to 20 different ones learn better; with these use crops, more repeats change nothing.",
        )
    if not concept:
        yield Finding(
            3, "there are class images only, and nothing to learn: combine them with a set that shows the concept."
        )
    buckets = Counter(e.size for e in pictures)
    alone = [e for e in pictures if buckets[e.size] == 1]
    if len(alone) > 1 and len(buckets) > 1:
        yield Finding(
            1,
            f"{_names(alone)} have a shape of their own, so no batch joins them with others: crop alike if you use a batch_size above 1.",
            "shape",
            tuple(alone),
        )
    shares = {
        g: sum(e.group.times for e in dataset.examples if e.group == g) for g in dataset.groups if g.role == "concept"
    }
    if len(shares) > 1 and max(shares.values()) > 3 * min(shares.values()):
        most, least = max(shares, key=shares.get), min(shares, key=shares.get)
        yield Finding(
            2,
            f"{Path(most.name).name} is drawn {shares[most] / shares[least]:.1f} times as often as {Path(least.name).name}: raise the weight of the latter to balance them.",
        )


def _each(items: Iterable[_T], tick: Callable[[], None]) -> Iterator[_T]:
    for item in items:
        tick()
        yield item


def _names(examples: Sequence[Example]) -> str:
    names = [Path(example.source).name for example in examples]
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _are(examples: Sequence[Example]) -> str:
    return "is" if len(examples) == 1 else "are"
