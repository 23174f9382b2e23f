"""Picture files without what is not pixels, for readers that stop at odd metadata."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_PIXELS = (0xE0, 0xEE)  # of the application segments: JFIF, and Adobe's, which tells the colours
# TIFF 6.0 and its first two supplements: what tells how pixels are stored.
_TIFF_PIXELS = {
    254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
    347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
_ORIENTATION = 274
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # but for restarts and what stands for a byte of 255
_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}(?:Exif\0\0)?)((?:II\*\0|MM\0\*).*)", re.DOTALL)


def bare(data: bytes) -> bytes | None:
    """Return the same picture with its pixels and orientation alone; None for kinds of files whose metadata stop
    nobody. Raises struct.error for what is cut."""
    turn = struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, _ORIENTATION, 3, 1, orientation(data), 0, 0)
    if data.startswith(_PNG):
        (_, head), *rest = ((kind, chunk) for kind, chunk in _chunks(data) if kind in _PNG_PIXELS)
        exif = struct.pack(">I4s", len(turn), b"eXIf") + turn
        exif += struct.pack(">I", zlib.crc32(exif[4:]))
        return _PNG + head + exif + b"".join(chunk for _, chunk in rest)
    if data.startswith(b"\xff\xd8"):
        exif = b"Exif\0\0" + turn
        return b"\xff\xd8" + struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 2) + exif + b"".join(_segments(data))
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(data)
    return None


def orientation(data: bytes) -> int:
    """The EXIF orientation of a picture file, 1 when there is none that can be read."""
    found = re.match(rb"(II\*\0|MM\0\*).*", data, re.DOTALL) and data
    if not found:
        block = _EXIF.search(data)
        found = block[1] if block else b""
    try:
        order, start, count = _directory(found)
        for at in range(start, start + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", found, at)
            if tag == _ORIENTATION and kind == 3:
                return struct.unpack_from(order + "H", found, at + 8)[0]
    except (struct.error, KeyError):
        pass
    return 1


def scans(data: bytes) -> int:
    """Scans of a JPEG, up to where its first picture ends or is cut; 0 for what is none."""
    found, at = 0, 2 if data.startswith(b"\xff\xd8") else len(data)
    while marker := _MARKER.search(data, at):
        if (kind := marker[1][0]) == 0xD9:
            break
        found += kind == 0xDA
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return found


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and all bytes of each chunk of a PNG."""
    at = len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + length + 12]
        at += length + 12


def _segments(data: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG that are needed; what begins with the first scan's header comes as it is."""
    at = 2
    while True:
        fill, kind = struct.unpack_from(">BB", data, at)
        if fill != 0xFF or kind == 0xDA:
            yield data[at:]
            return
        if kind == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE) or kind in _JPEG_PIXELS:
            yield data[at : at + 2 + length]
        at += 2 + length


def _tiff(data: bytes) -> bytes:
    """With the first directory alone, in its place, and in it what is needed and the orientation."""
    order, start, count = _directory(data)
    kept = []
    for at in range(start, start + 12 * count, 12):
        (tag,) = struct.unpack_from(order + "H", data, at)
        if tag in _TIFF_PIXELS or tag == _ORIENTATION:
            kept.append(data[at : at + 12])
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return data[: start - 2] + directory + data[start - 2 + len(directory) :]


def _directory(data: bytes) -> tuple[str, int, int]:
    """Byte order, place and number of the entries of a TIFF's first directory."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    return order, at + 2, count
