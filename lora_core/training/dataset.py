"""A folder of pictures with same-name `.txt` captions, read the way people prepare them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .buckets import Size, bucket_sizes, fit, nearest_bucket

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Example:
    """One picture: where it came from, its caption, its bucket (width, height) and a hash of pixels and caption."""

    source: str
    caption: str
    size: Size
    pixels: Tensor  # (height, width, 3) in 0..1, fp16 to keep large sets small
    digest: str


@dataclass(frozen=True)
class Dataset:
    """What Train LoRA learns from. `left_out` names every file that was not taken, with the reason."""

    examples: tuple[Example, ...]
    repeats: int
    trigger: str
    resolution: int
    left_out: tuple[tuple[str, str], ...] = ()

    def fingerprint(self) -> str:
        """Changes when a picture, a caption, their order or the repeats change."""
        text = "".join(example.digest for example in self.examples) + str(self.repeats)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def buckets(self) -> Counter[Size]:
        return Counter(example.size for example in self.examples)

    def report(self) -> str:
        """Counts, buckets and everything left out, as lines of plain text."""
        lines = [f"{len(self.examples)} images x {self.repeats} repeats at resolution {self.resolution}"]
        lines += [f"  bucket {w} x {h}: {count}" for (w, h), count in sorted(self.buckets().items())]
        lines += [f"trigger: {self.trigger}"] if self.trigger else []
        lines += [f"left out {name}: {reason}" for name, reason in self.left_out]
        return "\n".join(lines)


def list_images(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """Pictures of the folder by name, and (name, reason) for the other files. Raises ValueError when there are none."""
    if not folder.is_dir():
        raise ValueError(
            f"the folder {folder} does not exist; give an absolute path or one inside ComfyUI's input folder"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(
            f"the folder {folder} holds no images; put {', '.join(SUFFIXES)} files with .txt captions into it"
        )
    captions = {path.with_suffix(".txt").name for path in images}
    others = [path.name for path in files if path not in images and path.name not in captions]
    return images, [(name, _reason(name)) for name in others]


def read_caption(image: Path) -> str | None:
    """The text of the same-name `.txt`, None when there is no such file or it is empty."""
    path = image.with_suffix(".txt")
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return " ".join(text.split()) or None


def check_folder(folder: Path, trigger: str) -> None:
    """What can be known without decoding: there are images, each opens, and there is something to caption them with."""
    images, _ = list_images(folder)
    if not trigger and not any(read_caption(path) for path in images):
        raise ValueError(
            f"none of the {len(images)} images in {folder} has a caption; "
            "add .txt files of the same name, or a trigger word"
        )
    for path in images:
        with _opened(path):
            pass


def from_folder(folder: Path, trigger: str, resolution: int, step: int, repeats: int) -> Dataset:
    """Read a folder. An image without caption is taken with the trigger alone, or left out when there is no trigger."""
    images, left_out = list_images(folder)
    sizes = bucket_sizes(resolution, step)
    examples = []
    for path in images:
        caption = _with_trigger(read_caption(path), trigger)
        if not caption:
            left_out.append((path.name, "no caption and no trigger word"))
            continue
        with _opened(path) as image:
            examples.append(_example(str(path), caption, flatten(image), sizes))
    return _dataset(examples, trigger, resolution, repeats, left_out)


def from_tensors(
    images: Iterable[Tensor], captions: Sequence[str], trigger: str, resolution: int, step: int, repeats: int
) -> Dataset:
    """From (height, width, channels) tensors in 0..1 and one caption each, or one caption for all."""
    images, sizes = list(images), bucket_sizes(resolution, step)
    captions = list(captions) * len(images) if len(captions) == 1 else list(captions)
    if len(captions) != len(images):
        raise ValueError(
            f"{len(images)} images but {len(captions)} captions; give one caption per line, or a single line for all"
        )
    examples = []
    for index, (image, text) in enumerate(zip(images, captions, strict=True)):
        caption = _with_trigger(" ".join(text.split()), trigger)
        if not caption:
            raise ValueError(
                f"image {index + 1} has an empty caption and there is no trigger word; write a caption or a trigger"
            )
        picture = Image.fromarray((image.cpu().float().clamp(0, 1) * 255).round().byte().numpy())
        examples.append(_example(f"image {index + 1}", caption, flatten(picture), sizes))
    return _dataset(examples, trigger, resolution, repeats, [])


def flatten(image: Image.Image) -> Image.Image:
    """Upright (EXIF) RGB with transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grayscale, of which Pillow would keep what is below 256
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preserved_captions(caption: str, trigger: str, words: Sequence[str]) -> list[str]:
    """The caption once for each word, with the word in the trigger's place."""
    return [_trigger_pattern(trigger).sub(lambda _, word=word: word, caption) for word in words]


def check_preservation(dataset: Dataset, weight: float, words: Sequence[str]) -> None:
    """Raises ValueError when output preservation is asked for without what it needs."""
    if weight and not dataset.trigger:
        raise ValueError(f"preservation is {weight:g} but LoRA Dataset has no trigger word; give one, or set it to 0")
    if weight and not words:
        raise ValueError(f"preservation is {weight:g} but preserve names no class word; give one, or set it to 0")


def _trigger_pattern(trigger: str) -> re.Pattern[str]:
    """The trigger as a whole word, in any case."""
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def _dataset(
    examples: list[Example], trigger: str, resolution: int, repeats: int, left_out: list[tuple[str, str]]
) -> Dataset:
    if not examples:
        raise ValueError("no image has a caption; add .txt files of the same name, or a trigger word")
    return Dataset(tuple(examples), repeats, trigger, resolution, tuple(left_out))


def _example(source: str, caption: str, image: Image.Image, sizes: list[Size]) -> Example:
    size = nearest_bucket(image.size, sizes)
    pixels = np.asarray(fit(image, size))
    digest = hashlib.sha256(pixels.tobytes() + caption.encode()).hexdigest()
    return Example(source, caption, size, torch.from_numpy(pixels / np.float32(255)).half(), digest)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, not decoded yet: a file that turns out broken while it is decoded inside is named, too."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path.name}: {error}; repair or remove it") from error


def _with_trigger(caption: str | None, trigger: str) -> str:
    """The caption, led by the trigger unless it already holds it as a word of its own, in any case."""
    if not trigger or (caption and _trigger_pattern(trigger).search(caption)):
        return caption or ""
    return f"{trigger}, {caption}" if caption else trigger


def _reason(name: str) -> str:
    return "caption without an image" if name.lower().endswith(".txt") else f"not one of {', '.join(SUFFIXES)}"
