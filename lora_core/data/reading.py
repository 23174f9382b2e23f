"""Make a data set of a folder of captioned pictures, as people prepare them, or of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import decoding, references
from .buckets import SMALL, bucket_sizes, fit, nearest_bucket, step_at
from .captions import clean_trigger, plain, shuffled, with_trigger
from .dataset import PLAIN, Dataset, Example, Group, Options, Role, by_reason, combined
from .decoding import Decoded, PictureError, flatten
from .folder import FolderContents, look, named
from .pictures import Masks, mask_file, origin, read_mask
from .reserved import reserved
from .views import as_pixels, further_crops

_NO_CAPTION = "no caption and no trigger word"
_CURE = "add .txt files with the same names, or write a trigger word"


def check_folder(folder: Path, trigger: str, masks: Masks = "off", with_references: bool = True) -> None:
    """Check what can be known without decoding: that there is a picture that opens and has something to caption it
    with, that there are masks where they are asked for, and that no picture lacks a reference that others have."""
    sets, _ = look(folder, masks, with_references)
    for each in sets:
        each.references.check(each.images)
    images = [path for each in sets for path in each.images]
    if not clean_trigger(trigger) and not any(each.words or each.captions.any() for each in sets):
        raise ValueError(f"none of the {len(images)} images in {folder} has a caption; {_CURE}{_why_not(sets)}")
    if masks == "-mask files" and not any(mask_file(path) for path in images):
        raise ValueError(
            f"none of the {len(images)} images in {folder} has a mask; put x-mask.png beside x.jpg, or set masks to off"
        )
    broken = []
    for path in images:
        try:
            decoding.check(decoding.content(path))
            return
        except PictureError as error:
            broken.append((path.name, str(error)))
    raise ValueError(f"none of the {len(images)} images in {folder} can be read: {_listed(broken)}")


def from_folder(
    folder: Path, trigger: str, resolution: int, step: int, repeats: int, options: Options = PLAIN
) -> Dataset:
    """Read a folder. A picture without caption is taken with the trigger alone, or left out when there is no trigger;
    one that cannot be read is left out. Raises ValueError when nothing is left.

    A folder of folders named as `10_sks dog` is a set for each of them: 10 times the repeats, and the words stand in
    for captions. Of class images, `trigger` is the class word: it leads their captions in the same way and is none to
    be replaced.
    """
    sets, left_out = look(folder, options.masks, options.references)
    found: list[Dataset] = []
    for each in sets:
        each.references.check(each.images)
        reader = _Reader(str(each.folder), trigger, resolution, step, repeats * each.repeats, options)
        data = reader.folder(each)
        left_out += data.left_out
        found.append(data)
    data = combined(found)
    notes = data.notes if sets[0].name else (*data.notes, *_of_name(folder, repeats))
    data = replace(data, left_out=tuple(left_out), notes=notes)
    _check(data)
    return _with_finer_steps_told(data, step)


def from_tensors(
    images: Iterable[Tensor],
    captions: Sequence[str],
    trigger: str,
    resolution: int,
    step: int,
    repeats: int,
    options: Options = PLAIN,
    beside: Sequence[Iterable[Tensor]] = (),
) -> Dataset:
    """From (height, width, channels) tensors in 0..1 and one caption each, or one caption for all. Each of the sets
    `beside` holds a reference for each."""
    images, held = list(images), [list(each) for each in beside]
    if wrong := next((each for each in held if len(each) != len(images)), None):
        raise ValueError(f"{len(images)} images but {len(wrong)} references; connect one reference for each image")
    captions = list(captions) * len(images) if len(captions) == 1 else list(captions)
    if len(captions) != len(images):
        raise ValueError(
            f"{len(images)} images but {len(captions)} captions; write one caption per line, or a single line for all"
        )
    reader = _Reader("connected images", trigger, resolution, step, repeats, options)
    examples: list[Example] = []
    for index, (image, text) in enumerate(zip(images, captions, strict=True)):
        text = " ".join(text.split())
        if not text and not reader.trigger:
            raise ValueError(
                f"image {index + 1} has an empty caption and there is no trigger word; write a caption or a trigger"
            )
        shown = [flatten(_picture(each[index])) for each in held]
        examples += reader.examples(f"image {index + 1}", text, Decoded(_picture(image)), beside=shown)
    data = reader.dataset(examples)
    _check(data)
    return _with_finer_steps_told(data, step)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image.cpu().float().clamp(0, 1) * 255).round().byte().numpy())


class _Reader:
    """Makes examples of pictures, all in one way."""

    def __init__(self, name: str, trigger: str, resolution: int, step: int, repeats: int, options: Options):
        role: Role = "class" if options.class_images else "concept"
        self.options = options
        self.trigger = self._read(clean_trigger(trigger))
        own = "" if options.class_images else self.trigger
        self.group = Group(name, own, repeats, weight=options.weight, role=role, step=step, options=options)
        self.resolutions = tuple(sorted(set(options.resolutions))) or (resolution,)
        self.sizes = [bucket_sizes(each, step_at(each, step)) for each in self.resolutions]

    def folder(self, found: FolderContents) -> Dataset:
        """Return the set of a folder, which may be empty."""
        examples: list[Example] = []
        left_out, notes = [], []
        for path in found.images:
            text = found.captions.of(path)
            if not (text or self.trigger or found.words):
                left_out.append((found.name + path.name, _NO_CAPTION))
                continue
            try:
                data = decoding.content(path)
                picture = decoding.decode(data)
                content = hashlib.sha256(data).hexdigest()
                mark = reserved(data)
                shown = [references.read(each) for each in found.references.of(path)]
                made = self.examples(
                    str(path), text or "", picture, path, mark=mark, words=found.words, content=content, beside=shown
                )
                examples += made
            except PictureError as error:
                left_out.append((found.name + path.name, str(error)))
                continue
            if picture.several:
                notes.append((found.name + path.name, "several pictures in one file: the first is used"))
        notes += [(found.name + name, why) for name, why in found.captions.notes]
        return self.dataset(examples, [*left_out, *found.left_out()], notes)

    def examples(
        self, source: str, text: str, picture: Decoded, path: Path | None = None, mark: str = "", words: str = "",
        content: str = "", beside: Sequence[Image.Image] = (),
    ) -> list[Example]:  # fmt: skip
        """Return the picture at each resolution. `words` stand in for an empty text, led by the trigger like any;
        `beside` are its references."""
        if beside:
            references.check_crops(self.options.crops)
        caption = with_trigger(self._read(text or words), self.trigger)
        flat, mask = flatten(picture.image), read_mask(picture.image, path, self.options.masks)
        content = content or hashlib.sha256(flat.tobytes()).hexdigest()
        found, options = origin(picture, flat, mark, content), self.options
        captions = (prompt := self.group.prompt(caption),)
        if options.shuffle_tags:
            captions = shuffled(prompt, options.keep_tokens, options.caption_variants)
        made = []
        for sizes in self.sizes:
            size = nearest_bucket(flat.size, sizes)
            pixels = np.asarray(fit(flat, size))
            masked = None if mask is None else np.array(fit(mask, size))
            seed = int(hashlib.sha256(pixels.tobytes()).hexdigest()[:15], 16)
            crops = further_crops(flat, mask, size, options.crops, seed) if options.crops else None
            digest = hashlib.sha256(pixels.tobytes() + prompt.encode())
            for values in (masked, crops and crops.canvas.numpy()):
                digest.update(b"" if values is None else values.tobytes())
            if (extras := (crops and crops.boxes, captions[1:], options.flip)) != (None, (), False):
                digest.update(repr(extras).encode())
            held = tuple(references.sized(each, sizes) for each in beside)
            digest.update("".join(each.digest for each in held).encode())
            made.append(
                Example(
                    source=source,
                    caption=caption,
                    size=size,
                    pixels=as_pixels(pixels),
                    digest=digest.hexdigest(),
                    origin=found,
                    group=self.group,
                    captions=captions,
                    mask=None if masked is None else torch.from_numpy(masked),
                    crops=crops,
                    flip=options.flip,
                    written=bool(text),
                    references=held,
                )
            )
        return made

    def dataset(
        self,
        examples: list[Example],
        left_out: Sequence[tuple[str, str]] = (),
        notes: Sequence[tuple[str, str]] = (),
    ) -> Dataset:
        return Dataset(tuple(examples), self.resolutions, tuple(left_out), tuple(notes))

    def _read(self, text: str) -> str:
        return text if self.options.caption_weights else plain(text)


def _check(data: Dataset) -> None:
    """Raises ValueError when nothing is left to learn from, or no mask is found where they are asked for."""
    if not data.examples:
        lost = [(name, why) for name, why in (*data.left_out, *data.notes) if why != _NO_CAPTION]
        bare = any(why == _NO_CAPTION for _, why in data.left_out)
        what = f"no image has a caption; {_CURE}" if bare else "there is no picture to train on"
        raise ValueError(what + (f": {_listed(lost)}" if lost else ""))
    if data.examples[0].group.options.masks == "alpha" and all(example.mask is None for example in data.examples):
        raise ValueError("masks is alpha but no picture has a transparent part; set masks to off")


def _with_finer_steps_told(data: Dataset, step: int) -> Dataset:
    """With a note on every resolution at which a finer step than `step` was used."""
    finer = [(each, used) for each in data.resolutions if (used := step_at(each, step)) != step]
    told = [
        ("bucket_step", f"{used} at resolution {each}: below {SMALL}, multiples of {step} would crop most to squares")
        for each, used in finer
    ]
    return replace(data, notes=(*data.notes, *told)) if told else data


def _of_name(folder: Path, repeats: int) -> list[tuple[str, str]]:
    """Return what a folder's own name tells other trainers, where it does not tell the same here."""
    if (found := named(folder)) and found[0] != repeats:
        times, words = found
        why = f"other trainers read {times} repeats of '{words}' from this name, but repeats is {repeats} here"
        return [(folder.name, f"{why}: set repeats to {times}, or choose the folder above")]
    return []


def _why_not(sets: Sequence[FolderContents]) -> str:
    told = [each for found in sets for each in (*found.captions.notes, *found.left_out())]
    return f" ({_listed(told)})" if told else ""


def _listed(told: Sequence[tuple[str, str]], most: int = 4) -> str:
    found = [f"{', '.join(names[:most])} {why}" for why, names in by_reason(told).items()]
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more reasons" if len(found) > most else "")
