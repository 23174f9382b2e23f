"""Marks single pictures and captions as Dataset Doctor does, so that a page need not hold a whole data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import decoding, doctor
from . import doctor_texts as texts
from .buckets import PictureSize, bucket_sizes, fit, frame, nearest_bucket
from .captions import clean_trigger, plain, with_trigger
from .dataset import Dataset, Example, Group, Options
from .decoding import PictureError, flatten
from .finding import DatasetFinding
from .pictures import Masks, Origin, origin, read_mask
from .reserved import reserved
from .views import as_pixels

Marks = tuple[tuple[str, str], ...]  # (a word, a sentence with its cure)
NEAR_COPIES = 500  # pictures; with more of them only those are found that are quite the same
_NOTHING = torch.empty(0, dtype=torch.uint8)
_NO_SET = Dataset((), (512,))


@dataclass(frozen=True)
class Reading:
    """Says how the node reads a folder, as far as it matters for what is told of captions."""

    trigger: str = ""
    masks: Masks = "off"
    class_images: bool = False
    caption_weights: bool = False

    @property
    def word(self) -> str:
        """Return what leads captions and stands in for missing ones."""
        word = clean_trigger(self.trigger)
        return word if self.caption_weights else plain(word)

    def group(self) -> Group:
        role, trigger = ("class", "") if self.class_images else ("concept", self.word)
        return Group(trigger=trigger, role=role, options=Options(caption_weights=self.caption_weights))


@dataclass(frozen=True)
class Frames:
    """Says how pictures are brought to buckets: the largest training resolution, and the step of their sides."""

    resolution: int
    step: int


@dataclass(frozen=True)
class Look:
    """One picture, looked at: its size, its bucket, what of it is kept, and marks. `fault` is why it is left out.

    `example` holds what copies are found by, and no pixels.
    """

    size: PictureSize = (0, 0)
    bucket: PictureSize = (0, 0)
    frame: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    marks: Marks = ()
    fault: str = ""
    example: Example | None = None


def look(path: Path, frames: Frames, masks: Masks) -> Look:
    """Decode a picture, which takes as long as to read it for training."""
    try:
        data = decoding.content(path)
        picture = decoding.decode(data)
        read_mask(picture.image, path, masks)
    except PictureError as error:
        return Look(fault=str(error))
    flat = flatten(picture.image)
    size = nearest_bucket(flat.size, bucket_sizes(frames.resolution, frames.step))
    pixels = as_pixels(np.asarray(fit(flat, size)))
    example = _example(path, "", Group(), origin=origin(picture, flat, reserved(data)), pixels=pixels, size=size)
    found = (*doctor.of_pictures(_NO_SET, [example]), *texts.reserved(_NO_SET, [example]))
    digest = torch.tensor(list(hashlib.sha256(pixels.numpy().tobytes()).digest()), dtype=torch.uint8)
    return Look(
        size=flat.size,
        bucket=size,
        frame=frame(flat.size, size),
        marks=_marks(found),
        example=replace(example, pixels=digest),  # the doctor compares hashes, and hashes of hashes are the same then
    )


def copies(looks: Sequence[Look]) -> list[tuple[str, str, list[str]]]:
    """(mark, sentence, paths) of each group of copies."""
    examples = [each.example for each in looks if each.example is not None]
    whole = len(examples) <= NEAR_COPIES
    found = doctor.copies(_NO_SET, examples) if whole else doctor.quite_the_same(examples)
    return [(each.mark, each.text, [example.source for example in each.examples]) for each in found]


def of_caption(path: Path, text: str, words: str, reading: Reading) -> Marks:
    """Return the marks of a caption. `words` stand in for an empty one, as the name of its folder may have them."""
    group = reading.group()
    read = " ".join((text or words).split())
    caption = with_trigger(read if reading.caption_weights else plain(read), reading.word)
    example = _example(path, caption, group, written=bool(text))
    alone = Dataset((example,), (512,))
    checks = (texts.captions, texts.parentheses, texts.trigger)
    return (*_alone(example), *(mark for check in checks for mark in _marks(check(alone, [example]))))


def _alone(example: Example) -> Iterator[tuple[str, str]]:
    name, group = Path(example.source).name, example.group
    if not example.written and not example.caption:
        yield "no caption", f"{name} has no caption and there is no trigger word, so it is left out."
    elif not example.written and group.role == "concept":
        yield "no caption", f"{name} has no caption, so everything in it is learned as '{example.caption}'."
    elif example.written and example.caption.casefold() == group.trigger.casefold():
        yield "trigger alone", f"the caption of {name} is the trigger word alone: describe what else is in it."


def _example(
    path: Path, caption: str, group: Group, written: bool = True, size: PictureSize = (1, 1),
    origin: Origin | None = None, pixels: Tensor = _NOTHING,
) -> Example:  # fmt: skip
    return Example(
        source=str(path), caption=caption, size=size, pixels=pixels, digest="", origin=origin or Origin(size, _NOTHING),
        group=group, captions=(), written=written,
    )  # fmt: skip


def _marks(found: Iterable[DatasetFinding]) -> Marks:
    return tuple((each.mark, each.text) for each in found if each.mark)
