"""Make a data set of a folder of pictures with same-name `.txt` captions, as people prepare them, or of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .buckets import bucket_sizes, fit, nearest_bucket
from .captions import shuffled, with_trigger
from .dataset import PLAIN, Dataset, Example, Group, Options, Role
from .pictures import Masks, flatten, list_images, mask_file, opened, origin, read_mask
from .views import as_pixels, further_crops


def read_caption(image: Path) -> str | None:
    """The text of the same-name `.txt`, None when there is no such file or it is empty."""
    path = image.with_suffix(".txt")
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return " ".join(text.split()) or None


def check_folder(folder: Path, trigger: str, masks: Masks = "off") -> None:
    """What can be known without decoding: there are images, each opens, there is something to caption them with, and
    there are masks where they are asked for."""
    images, _ = list_images(folder, masks)
    if not trigger and not any(read_caption(path) for path in images):
        raise ValueError(
            f"none of the {len(images)} images in {folder} has a caption; "
            "add .txt files of the same name, or a trigger word"
        )
    if masks == "-mask files" and not any(mask_file(path) for path in images):
        raise ValueError(
            f"none of the {len(images)} images in {folder} has a mask; put x-mask.png beside x.jpg, or set masks to off"
        )
    for path in images:
        with opened(path):
            pass


def from_folder(
    folder: Path, trigger: str, resolution: int, step: int, repeats: int, options: Options = PLAIN
) -> Dataset:
    """Read a folder. An image without caption is taken with the trigger alone, or left out when there is no trigger.

    Of class images, `trigger` is the class word: it leads their captions in the same way and is none to be replaced.
    """
    images, left_out = list_images(folder, options.masks)
    reader = _Reader(str(folder), trigger, resolution, step, repeats, options)
    examples: list[Example] = []
    for path in images:
        caption = with_trigger(read_caption(path), trigger)
        if not caption:
            left_out.append((path.name, "no caption and no trigger word"))
            continue
        with opened(path) as image:
            examples += reader.examples(str(path), caption, image, path)
    return reader.dataset(examples, left_out)


def from_tensors(
    images: Iterable[Tensor],
    captions: Sequence[str],
    trigger: str,
    resolution: int,
    step: int,
    repeats: int,
    options: Options = PLAIN,
) -> Dataset:
    """From (height, width, channels) tensors in 0..1 and one caption each, or one caption for all."""
    images = list(images)
    captions = list(captions) * len(images) if len(captions) == 1 else list(captions)
    if len(captions) != len(images):
        raise ValueError(
            f"{len(images)} images but {len(captions)} captions; give one caption per line, or a single line for all"
        )
    reader = _Reader("connected images", trigger, resolution, step, repeats, options)
    examples: list[Example] = []
    for index, (image, text) in enumerate(zip(images, captions, strict=True)):
        caption = with_trigger(" ".join(text.split()), trigger)
        if not caption:
            raise ValueError(
                f"image {index + 1} has an empty caption and there is no trigger word; write a caption or a trigger"
            )
        picture = Image.fromarray((image.cpu().float().clamp(0, 1) * 255).round().byte().numpy())
        examples += reader.examples(f"image {index + 1}", caption, picture)
    return reader.dataset(examples, [])


class _Reader:
    """Makes examples of pictures, all in one way."""

    def __init__(self, name: str, trigger: str, resolution: int, step: int, repeats: int, options: Options):
        role: Role = "class" if options.class_images else "concept"
        self.group = Group(name, "" if options.class_images else trigger, repeats, options.weight, role, step, options)
        self.resolutions = tuple(sorted(set(options.resolutions))) or (resolution,)
        self.sizes = [bucket_sizes(each, step) for each in self.resolutions]
        self.options = options

    def examples(self, source: str, caption: str, image: Image.Image, path: Path | None = None) -> Iterator[Example]:
        """The picture at each resolution."""
        flat, mask = flatten(image), read_mask(image, path, self.options.masks)
        found, options = origin(image, flat), self.options
        captions = (caption,)
        if options.shuffle_tags:
            captions = shuffled(caption, options.keep_tokens, options.caption_variants)
        for sizes in self.sizes:
            size = nearest_bucket(flat.size, sizes)
            pixels = np.asarray(fit(flat, size))
            masked = None if mask is None else np.array(fit(mask, size))
            seed = int(hashlib.sha256(pixels.tobytes()).hexdigest()[:15], 16)
            crops = further_crops(flat, mask, size, options.crops, seed) if options.crops else None
            digest = hashlib.sha256(pixels.tobytes() + caption.encode())
            for values in (masked, crops and crops.canvas.numpy()):
                digest.update(b"" if values is None else values.tobytes())
            if (extras := (crops and crops.boxes, captions[1:], options.flip)) != (None, (), False):
                digest.update(repr(extras).encode())
            yield Example(
                source, caption, size, as_pixels(pixels), digest.hexdigest(), found, self.group, captions,
                None if masked is None else torch.from_numpy(masked), crops, options.flip,
            )  # fmt: skip

    def dataset(self, examples: list[Example], left_out: list[tuple[str, str]]) -> Dataset:
        if not examples:
            raise ValueError("no image has a caption; add .txt files of the same name, or a trigger word")
        if self.options.masks == "alpha" and all(example.mask is None for example in examples):
            raise ValueError("masks is alpha but no picture has a transparent part; set masks to off")
        return Dataset(tuple(examples), self.resolutions, tuple(left_out))
