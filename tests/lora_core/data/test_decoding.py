"""Pictures that others made: decoded whatever their metadata, refused in a sentence when they are none or too large."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from lora_loom.lora_core.data import decoding
from lora_loom.lora_core.data.decoding import PREVIEW, PictureError, check, content, decode, flatten, small, transparent
from PIL import Image, ImageFile, PngImagePlugin, features

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
SMOOTH = NOISE.resize((8, 6)).resize((64, 48), Image.Resampling.BICUBIC)
SIX = (0x0112, 3, 1, 6)  # an orientation: turn by a quarter


def saved(kind: str, image: Image.Image = SMOOTH, **options) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(*entries, extra: bytes = b"") -> bytes:
    """An EXIF block, from TIFF 6.0."""
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        out += struct.pack("<HHI", tag, kind, count) + (value if isinstance(value, bytes) else struct.pack("<I", value))
    return out + struct.pack("<I", 0) + extra


def jpeg(*entries, extra: bytes = b"") -> bytes:
    return saved("JPEG", quality=95, exif=b"Exif\0\0" + tiff(*entries, extra=extra))


def png(method: str, *args, **options) -> bytes:
    info = PngImagePlugin.PngInfo()
    getattr(info, method)(*args, **options)
    return saved("PNG", pnginfo=info)


def odd_tiff() -> bytes:
    """An orientation, and a tag of a type that its value is not."""
    data = bytearray(saved("TIFF", tiffinfo={0x0112: 6, 0x0131: "some program"}))
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 0x0131:
            struct.pack_into("<HHI4s", data, entry, 0x011A, 9, 1, b"\xff\xff\xff\xff")
    return bytes(data)


def segment(kind: int, body: bytes) -> bytes:
    """Put into a sound JPEG that is turned by a quarter."""
    data = jpeg(SIX)
    return data[:2] + struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body + data[2:]


def turned_png(**more) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("PNG", exif=exif, **more)


def workflow() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("workflow", "x" * 1_200_000, zip=True)
    return info


TURNED = {
    "an orientation beside a workflow of 1.2 MB": turned_png(pnginfo=workflow()),
    "an orientation beside a profile of 1.5 MB": turned_png(icc_profile=b"\0" * 1_500_000),
    "a number of type UNDEFINED": jpeg(SIX, (0x0101, 7, 4, b"abcd")),
    "a signed number that is too large": jpeg(SIX, (0x0100, 9, 1, 0xFFFFFFFF)),
    "a resolution that is NaN": jpeg(SIX, (0x011A, 11, 1, struct.pack("<f", float("nan")))),
    "a rational of 0 by 0": jpeg(SIX, (0x011A, 5, 1, 38), extra=struct.pack("<II", 0, 0)),
    "text that points outside": jpeg(SIX, (0x010E, 2, 400, 60000)),
    "a sub-directory that points to itself": jpeg(SIX, (0x8769, 4, 1, 8)),
    "an odd tag in a TIFF": odd_tiff(),
    "a colour profile in odd parts": segment(0xE2, b"ICC_PROFILE\0\x09\x02xxxx"),
    "a picture index that is cut": segment(0xE2, b"MPF\0II*\0"),
    "a Photoshop block that is cut": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0"),
}
UPRIGHT = {
    "a workflow of 1.2 MB, compressed": png("add_itxt", "workflow", "x" * 1_200_000, zip=True),
    "text of 1.2 MB, compressed": png("add_text", "prompt", "x" * 1_200_000, zip=True),
    "a colour profile of 1.5 MB": saved("PNG", icc_profile=b"\0" * 1_500_000),
    "raw EXIF that is no hex": png("add_text", "Raw profile type exif", "\nexif\n 10\nzzzz"),
    "EXIF that is none": png("add", b"eXIf", b"nothing of it"),
    "a checksum of text that is wrong": png("add_text", "a", "b").replace(b"tEXta\0b", b"tEXta\0c"),
    "EXIF that is cut": saved("JPEG", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "an orientation of 77": saved("JPEG", quality=95, exif=b"Exif\0\0" + tiff((0x0112, 3, 1, 77))),
    "an orientation that is text": saved("JPEG", quality=95, exif=b"Exif\0\0" + tiff((0x0112, 2, 4, b"six\0"))),
}


@pytest.mark.parametrize("name", [*TURNED, *UPRIGHT])
def test_metadata_never_stop_a_picture(name: str) -> None:
    """And it is turned by its orientation alone."""
    wanted = SMOOTH.transpose(Image.Transpose.ROTATE_270) if name in TURNED else SMOOTH
    found = decode((TURNED | UPRIGHT)[name]).image
    assert found.size == wanted.size
    assert np.abs(np.asarray(found, np.int16) - np.asarray(wanted, np.int16)).mean() < 6
    check((TURNED | UPRIGHT)[name])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_formats_by_content_whatever_the_name(kind: str) -> None:
    if kind == "AVIF" and "avif" not in features.get_supported():
        pytest.skip("this Pillow has no AVIF")
    found = flatten(decode(saved(kind)).image)
    assert np.abs(np.asarray(found, np.int16) - np.asarray(SMOOTH, np.int16)).mean() < 8


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "TGA", "PCX", "PDF"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(PictureError, match="is not a readable picture: it is not PNG, JPEG"):
        decode(saved(kind, NOISE))


# What may be in a file, and what is seen of its first row.
def shades(mode: str) -> Image.Image:
    return Image.fromarray(np.tile(np.array([0, 64, 128, 255], np.uint8), (4, 1))).convert(mode)


def deep(values: list, dtype) -> Image.Image:
    return Image.fromarray(np.tile(np.array(values, dtype), (4, 1)))


def shown(image: Image.Image) -> list[int]:
    return np.asarray(flatten(image).convert("L"))[0].tolist()


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (lambda: saved("PNG", shades("LA")), [0, 64, 128, 255]), (lambda: saved("PNG", shades("1")), None),
        (lambda: saved("PNG", shades("P")), [0, 64, 128, 255]),
        (lambda: saved("TIFF", shades("CMYK")), [0, 64, 128, 255]),
        (lambda: saved("PNG", shades("P"), transparency=64), [0, 255, 128, 255]),
        (lambda: saved("PNG", deep([0, 0x4020, 0x8000, 0xFFFF], np.uint16)), [0, 0x40, 0x80, 255]),
        (lambda: saved("TIFF", deep([0, 0x4020, 0x8000, 0xFFFF], np.uint16)), [0, 0x40, 0x80, 255]),
        (lambda: saved("TIFF", deep([0, 0.25, 0.5, 1], np.float32)), [0, 64, 128, 255]),
    ],
)  # fmt: skip
def test_modes(data: Callable[[], bytes], row: list[int] | None) -> None:
    found = shown(decode(data()).image)
    assert found == row if row else set(found) <= {0, 255} and len(set(found)) == 2


@pytest.mark.parametrize(
    "image",
    [deep([0, 1, 300, 70000], np.int32), deep([-1, 0, 1, 2], np.int32), deep([0, 1, 2, 3.5], np.float32),
     deep([0, np.nan, 0.5, 1], np.float32)],
    ids=["32 bits", "negative", "above 1", "not a number"],
)  # fmt: skip
def test_numbers_without_an_agreed_white_are_refused(image: Image.Image) -> None:
    with pytest.raises(PictureError, match="not clear which are black and white; save it with 8 or 16 bits"):
        decode(saved("TIFF", image))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("lime", "red", "blue")]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    found = decode(saved(kind, frames[0], save_all=True, append_images=frames[1:], **options))
    assert found.several and flatten(found.image).getpixel((5, 5)) == (0, 255, 0)
    assert not decode(saved(kind, frames[0])).several


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("lenient", [False, True])
def test_what_is_cut_is_refused(monkeypatch, kind: str, share: float, lenient: bool) -> None:
    """Also when another pack has switched Pillow to filling it up with grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = saved(kind, NOISE)
    with pytest.raises(PictureError, match="is not a readable picture|cannot be read"):
        decode(data[: int(len(data) * share)])
    assert ImageFile.LOAD_TRUNCATED_IMAGES == lenient


def bomb(side: int) -> bytes:
    """A black PNG of side x side, some KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pack = zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(1 + side)) for _ in range(side)) + pack.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_are_measured_before_they_are_decoded(monkeypatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="has 5000 x 5000 pixels, but at most 17 million are allowed"):
        small(bomb(5000), 512)
    with (
        pytest.raises(PictureError, match="13000 x 13000 pixels, but at most 160 million"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        decode(bomb(13000))
    with pytest.raises(PictureError, match="more pixels than Pillow can read"), warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(bomb(10000))


def test_one_at_a_time(monkeypatch) -> None:
    """Four that come at once are decoded one after the other."""
    inside, most, load = [0], [0], ImageFile.ImageFile.load

    def counted(self):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.02)
        try:
            return load(self)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    data = saved("PNG", Image.new("RGB", (1024, 512), "red"))
    found: list[Image.Image] = []
    threads = [threading.Thread(target=lambda: found.append(small(data, 64))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and [each.size for each in found] == [(64, 32)] * 4


def test_a_jpeg_of_very_many_passes_is_refused() -> None:
    """One of a thousand scans takes a thousand times as long; a film behind the picture is none."""
    data = saved("JPEG", NOISE.resize((256, 256)), progressive=True)
    assert decode(data + bytes(range(256)) * 64 + b"\xff\xda" * 1000).image.size == (256, 256)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(PictureError, match="is a JPEG of 5.. scans"):
        decode(data[:at] + data[at:-2] * 500 + data[-2:])


def test_small_pictures_show_no_hidden_colour() -> None:
    image = Image.new("RGBA", (300, 100), (255, 0, 0, 0))
    found = small(saved("PNG", image), 64)
    assert found.mode == "RGB" and found.size == (64, 21) and found.getpixel((5, 5)) == (255, 255, 255)
    assert PREVIEW < 17e6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "I", "F", "I;16"])
def test_transparent_is_what_newer_pillows_tell(mode: str) -> None:
    image = Image.new(mode, (2, 2))
    wanted = getattr(image, "has_transparency_data", mode in ("LA", "PA", "RGBA", "RGBa"))
    assert transparent(image) == wanted
    image.info["transparency"] = 0
    assert transparent(image)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "zeros").write_bytes(bytes(100))
    for name, why in (("link", "broken link"), ("gone", "is not a file"), ("", "is not a file"), ("zeros", "is empty")):
        with pytest.raises(PictureError, match=why):
            content(tmp_path / name)


def test_what_is_not_built_in_is_named() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    if "HEIF" not in Image.OPEN:
        with pytest.raises(
            PictureError, match="is HEIF, which this version of Pillow cannot read; save it as JPEG or PNG"
        ):
            decode(heic)
    assert decoding.FORMATS[0] == "PNG" and "EPS" not in decoding.FORMATS
