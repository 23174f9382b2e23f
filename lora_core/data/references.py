"""Reference pictures of edits: beside each picture of a folder, those that it is to be made from.

They are where people who train edits keep them: of the same stem in a folder `control` below, or in `control_1` to
`control_3`, or beside the picture as `name_ref1.png`, `name_ref2.png` and so on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from . import decoding
from .buckets import PictureSize, fit, nearest_bucket
from .caption_files import ENDINGS
from .decoding import SUFFIXES, PictureError, flatten
from .views import as_pixels

FOLDERS = ("control", "control_1", "control_2", "control_3")
OFF = "set use_references to off"
_BESIDE = re.compile(r"(.+)_ref([1-9])")
_MOST_NAMED = 4


@dataclass(frozen=True)
class Reference:
    """A reference picture at one resolution: `pixels` (height, width, 3) in 0..1, fp16, in the bucket that is nearest
    to its own shape, and a hash of them."""

    pixels: Tensor
    digest: str

    @property
    def size(self) -> PictureSize:
        """Return (width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True)
class ReferenceFiles:
    """Holds the files of references of a folder's pictures: for each of its `folders`, and for each number `beside`,
    the file by the stem of its picture."""

    folders: tuple[tuple[str, dict[str, Path]], ...] = ()
    beside: tuple[dict[str, Path], ...] = ()

    def of(self, image: Path) -> list[Path]:
        """Return the references of a picture in their order: those in folders first."""
        held = [files.get(image.stem) for files in (*(own for _, own in self.folders), *self.beside)]
        return [path for path in held if path]

    def unused(self, images: Sequence[Path]) -> list[tuple[str, str]]:
        """Return the files in folders that are a reference of none of these pictures, each with the reason."""
        stems = {image.stem for image in images}
        found = [(name, path) for name, files in self.folders for stem, path in files.items() if stem not in stems]
        return [(f"{name}/{path.name}", "a reference without a picture of its name") for name, path in found]

    def check(self, images: Sequence[Path]) -> None:
        """Raises ValueError where one of the pictures lacks a reference that others have."""
        for name, files in self.folders:
            _check(images, [image for image in images if image.stem not in files], f"in {name}")
        if not self.folders and self.beside:
            first = self.beside[0]
            missing = [image for image in images if image.stem not in first]
            _check(images, missing, f"beside {'it' if len(missing) == 1 else 'them'} (name_ref1.png)")
        for number, (before, files) in enumerate(zip(self.beside, self.beside[1:], strict=False), 2):
            if gap := next((path for stem, path in files.items() if stem not in before), None):
                raise ValueError(f"{gap.name} has no _ref{number - 1} before it; number references from 1 without gaps")


def look(images: Sequence[Path], files: Sequence[Path], folders: Sequence[Path]) -> tuple[ReferenceFiles, set[Path]]:
    """Return the references of these pictures of a folder, and what is a reference of all its `files` and `folders`.

    A folder without a single picture of the same stem holds no references, and a picture with a caption of its own is
    none.
    """
    stems = {path.stem for path in images}
    captioned = {path.stem for path in files if path.suffix.lower() in ENDINGS}
    captioned |= {Path(stem).stem for stem in captioned if Path(stem).suffix.lower() in SUFFIXES}
    beside: dict[int, dict[str, Path]] = {}
    for path in images:
        found = _BESIDE.fullmatch(path.stem)
        if found and found[1] in stems and path.stem not in captioned:
            beside.setdefault(int(found[2]), {})[found[1]] = path
    last = max(beside, default=0)
    numbered = tuple(beside.get(number, {}) for number in range(1, last + 1))
    known = [path for name in FOLDERS for path in folders if path.name == name]
    held = [(path, own) for path in known if stems & (own := _pictures(path)).keys()]
    used = {path for own in numbered for path in own.values()}.union(path for path, _ in held)
    return ReferenceFiles(tuple((path.name, own) for path, own in held), numbered), used


def read(path: Path) -> Image.Image:
    """Return a reference as RGB. Raises PictureError, with its name, for one that cannot be read."""
    try:
        return flatten(decoding.decode(decoding.content(path)).image)
    except PictureError as error:
        raise PictureError(f"cannot be used: its reference {path.parent.name}/{path.name} {error}") from error


def sized(image: Image.Image, sizes: list[PictureSize]) -> Reference:
    """Return a reference in the bucket of `sizes` that is nearest to its shape."""
    pixels = np.asarray(fit(image, nearest_bucket(image.size, sizes)))
    return Reference(as_pixels(pixels), hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest())


def check_crops(crops: int) -> None:
    """Raises ValueError for further crops of pictures with references: which part of a reference belongs to a part of
    its picture, nobody can know."""
    if crops:
        raise ValueError(f"crops is {crops}, but pictures with references are not cropped further; set crops to 0")


def _pictures(folder: Path) -> dict[str, Path]:
    try:
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    except OSError:
        return {}


def _check(images: Sequence[Path], missing: Sequence[Path], where: str) -> None:
    if missing:
        names = ", ".join(path.name for path in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        have = "has" if len(missing) == 1 else "have"
        raise ValueError(
            f"{len(missing)} of {len(images)} pictures {have} no reference {where}: {names}{more}; add pictures of the "
            f"same names, or {OFF}"
        )
