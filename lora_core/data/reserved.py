"""Whether a picture's file says that it must not be learned from: a look through its bytes, not a validation.

Marks: the PLUS/IPTC property Data Mining in XMP, the C2PA and CAWG assertion on training and data mining, and W3C's
TDM Reservation Protocol. What is stored compressed is looked at in PNG alone.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

_FIRST, _LAST = 2**24, 2**22  # bytes from either end of a file that are looked at
_MOST_TEXT = 2**20  # of one compressed text
_DATA_MINING = re.compile(rb"DMI-PROHIBITED[A-Z-]*")
_ASSERTION = re.compile(
    rb"(?:ai_generative_training|ai_training|data_mining)\W{0,8}.{0,48}?(notAllowed|constrained)", re.DOTALL
)
_TDM = re.compile(rb"tdm(?:rep)?[:_-]reservation[\"']?\s*(?:[=:>]|content=)\s*[\"']?\s*1", re.IGNORECASE)
_TEXTS = (b"zTXt", b"iTXt")


def reserved(data: bytes) -> str:
    """Return what the file of a picture says against learning from it, in a few words; "" when it says nothing."""
    part = data if len(data) <= _FIRST + _LAST else data[:_FIRST] + data[-_LAST:]
    found = {told: None for piece in (part, *_unpacked(part)) for told in _marks(piece)}
    return " and ".join(found)


def _marks(data: bytes) -> Iterator[str]:
    if found := _DATA_MINING.search(data) or _DATA_MINING.search(_narrow(data)):
        yield f"IPTC Data Mining: {found[0].decode()}"
    if b"training-mining" in data or b"ai_training" in data:
        uses = {match[1].decode() for match in _ASSERTION.finditer(data)}
        if uses:
            yield f"C2PA training and data mining: {'notAllowed' if 'notAllowed' in uses else 'constrained'}"
    if b"reservation" in data and _TDM.search(data):  # the first is much faster
        yield "TDM reservation: 1"


def _narrow(data: bytes) -> bytes:
    """XMP may be UTF-16."""
    return data.replace(b"\0", b"") if b"D\0M\0I\0-\0" in data else b""


def _unpacked(data: bytes) -> Iterator[bytes]:
    """The compressed texts of a PNG, each up to a bound."""
    at = 8 if data.startswith(b"\x89PNG\r\n\x1a\n") else len(data)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in _TEXTS:
            start = data.find(b"x", at + 8, at + 8 + length)  # of a zlib stream, after the keyword
            while 0 <= start < at + 8 + length:
                try:
                    yield zlib.decompressobj().decompress(data[start : at + 8 + length], _MOST_TEXT)
                    break
                except zlib.error:
                    start = data.find(b"x", start + 1, at + 8 + length)
        at += length + 12
