"""Masks that are painted: what the mask editor is shown, and the mask file that is made of what it saves."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from harness.links import link
from lora_loom.lora_core.data.album import Album
from lora_loom.lora_core.data.decoding import PictureError
from lora_loom.lora_core.data.inspection import Reading
from lora_loom.lora_core.data.painting import (
    SIDE,
    MaskFile,
    as_alpha,
    as_file,
    canvas,
    current,
    painted,
    replace,
    share,
)
from lora_loom.lora_core.data.pictures import read_mask
from PIL import Image, ImageOps

SIZE = (48, 32)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Different in each corner, so that it is seen when it is turned."""
    ramp = Image.linear_gradient("L").resize(SIZE)
    across = ramp.transpose(Image.Transpose.ROTATE_90).resize(SIZE)
    path = tmp_path / "a.jpg"
    Image.merge("RGB", (ramp, across, ImageOps.invert(ramp))).save(path, quality=95)
    return path


def stroke(size: tuple[int, int] = SIZE) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1] // 4))
    return mask


def saved(path: Path, mask: Image.Image, turn: Image.Transpose | None = None) -> bytes:
    """What the editor uploads: the picture, transparent where it was painted."""
    image = Image.open(path).convert("RGBA")
    image.putalpha(ImageOps.invert(mask.resize(image.size)))
    image = image.transpose(turn) if turn is not None else image
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def album(folder: Path, roots: list[Path] | None = None) -> Album:
    return Album(folder, Reading(trigger="sks", masks="auto"), [folder] if roots is None else roots)


def test_paint_is_white_and_comes_back_as_it_was(picture: Path) -> None:
    mask = painted(saved(picture, stroke()), picture)
    assert mask is not None and np.array_equal(np.asarray(mask), np.asarray(stroke()))
    assert share(mask) == pytest.approx(1 / 8)
    file = as_file(mask, picture)
    assert file.name == "a-mask.png"
    (picture.parent / file.name).write_bytes(file.data)
    learned = read_mask(Image.open(picture), picture, "auto")
    assert learned is not None and np.array_equal(np.asarray(learned), np.asarray(stroke()))
    flat, again = canvas(picture, "off")
    assert flat.size == SIZE and np.array_equal(np.asarray(again), np.asarray(stroke()))
    assert np.array_equal(np.asarray(as_alpha(again).getchannel("A")), 255 - np.asarray(stroke()))


def test_nothing_painted_and_all_painted_is_no_mask(picture: Path) -> None:
    for value in (0, 255):
        assert painted(saved(picture, Image.new("L", SIZE, value)), picture) is None


def test_transparency_is_painted_already_where_the_node_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGB", SIZE, "red")
    image.putalpha(stroke())
    image.save(path)
    for masks, wanted in (("auto", stroke()), ("alpha", stroke()), ("off", Image.new("L", SIZE))):
        assert np.array_equal(np.asarray(canvas(path, masks)[1]), np.asarray(wanted)), masks


def test_a_mask_that_cannot_be_used_is_painted_anew(picture: Path) -> None:
    for faulty in (Image.new("L", (10, 90), 255), Image.new("L", SIZE)):
        faulty.save(picture.with_name("a-mask.png"))
        assert canvas(picture, "auto")[1].getextrema() == (0, 0)


def test_large_pictures_are_painted_smaller(tmp_path: Path) -> None:
    Image.new("L", (2 * SIDE, 8), 90).save(tmp_path / "a.png")
    assert canvas(tmp_path / "a.png", "off")[0].size == (SIDE, 4)
    mask = painted(saved(tmp_path / "a.png", stroke()), tmp_path / "a.png")
    assert mask is not None and mask.size == (2 * SIDE, 8)


@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name)
def test_a_picture_that_was_turned_in_the_editor_is_refused(picture: Path, turn: Image.Transpose) -> None:
    square = picture.with_name("b.png")
    Image.open(picture).resize((40, 40)).save(square)
    for path in (picture, square):
        with pytest.raises(PictureError, match=r"turned or mirrored|do not turn"):
            painted(saved(path, stroke(), turn), path)


def test_what_is_no_picture_with_transparency_is_refused(picture: Path) -> None:
    with pytest.raises(PictureError, match="without transparency"):
        painted(picture.read_bytes(), picture)
    with pytest.raises(PictureError, match="not a readable picture"):
        painted(b"GIF89a", picture)


def test_a_mask_takes_the_place_of_another_and_goes(picture: Path) -> None:
    folder = picture.parent
    stroke().save(folder / "a-mask.jpg")
    new = as_file(stroke(), picture)
    before = current(album(folder), "a.jpg")
    assert before is not None and before.name == "a-mask.jpg"
    replace(album(folder), "a.jpg", new)
    assert sorted(os.listdir(folder)) == ["a-mask.png", "a.jpg"] and current(album(folder), "a.jpg") == new
    replace(album(folder), "a.jpg", before)
    assert sorted(os.listdir(folder)) == ["a-mask.jpg", "a.jpg"]
    replace(album(folder), "a.jpg", None)
    assert os.listdir(folder) == ["a.jpg"]
    replace(album(folder), "a.jpg", None)


def test_nothing_is_written_elsewhere_or_through_a_link(picture: Path, tmp_path: Path) -> None:
    folder, mask = picture.parent, MaskFile("a-mask.png", b"new")
    with pytest.raises(ValueError, match=r"a-mask\.png is not written: it is outside"):
        replace(album(folder, roots=[]), "a.jpg", mask)
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept.png").write_bytes(b"kept")
    link(folder / "a-mask.png", other / "kept.png")
    for wanted in (mask, None):
        with pytest.raises(ValueError, match="is a link, and links are not followed"):
            replace(album(folder), "a.jpg", wanted)
    assert (other / "kept.png").read_bytes() == b"kept"


def test_the_page_knows_that_a_mask_has_changed(picture: Path) -> None:
    folder = picture.parent
    assert album(folder).shown("a.jpg").mask == ""
    replace(album(folder), "a.jpg", MaskFile("a-mask.png", b"1"))
    first = album(folder).shown("a.jpg").mask
    replace(album(folder), "a.jpg", MaskFile("a-mask.png", b"22"))
    assert first and album(folder).shown("a.jpg").mask not in ("", first)
