"""Marks in pictures against learning from them, as cameras, agencies and content credentials write them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from lora_loom.lora_core.data.reserved import reserved
from PIL import Image, PngImagePlugin

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" %s/></rdf:RDF></x:xmpmeta>'
)
MINING = b'plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-'
NO, ONLY, YES = b"\x6anotAllowed", b"\x6bconstrained", b"\x67allowed"


def cbor(use: bytes, key: bytes = b"c2pa.ai_generative_training") -> bytes:
    """A part of a C2PA manifest: one entry of the assertion on training and data mining."""
    entry = b"\xa1\x67entries\xa1\x78" + bytes([len(key)]) + key + b"\xa1\x63use" + use
    return b"jumbc2pa.training-mining\0" + struct.pack(">I4s", len(entry) + 8, b"cbor") + entry


def jpeg(xmp: bytes = b"", more: bytes = b"") -> bytes:
    out = BytesIO()
    Image.new("RGB", (32, 32), "teal").save(out, "JPEG", **({"xmp": xmp} if xmp else {}))
    data = out.getvalue()
    block = struct.pack(">BBH", 0xFF, 0xEB, len(more) + 2) + more if more else b""
    return data[:2] + block + data[2:]


def png(compressed: bool, text: bytes) -> bytes:
    info, out = PngImagePlugin.PngInfo(), BytesIO()
    info.add_itxt("XML:com.adobe.xmp", text.decode(), zip=compressed)
    Image.new("RGB", (32, 32), "teal").save(out, "PNG", pnginfo=info)
    return out.getvalue()


TDM = b'<rdf:Description xmlns:tdm="http://www.w3.org/ns/tdmrep/" tdm:reservation="%d"/>'


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (jpeg(XMP % (MINING + b'PROHIBITED"')), "IPTC Data Mining: DMI-PROHIBITED"),
        (jpeg(XMP % (MINING + b'PROHIBITED-GENAIMLTRAINING"')), "IPTC Data Mining: DMI-PROHIBITED-GENAIMLTRAINING"),
        (png(False, XMP % (MINING + b'PROHIBITED-AIMLTRAINING"')), "IPTC Data Mining: DMI-PROHIBITED-AIMLTRAINING"),
        (png(True, XMP % (MINING + b'PROHIBITED-SEECONSTRAINT"')), "IPTC Data Mining: DMI-PROHIBITED-SEECONSTRAINT"),
        (jpeg(more=(MINING + b"PROHIBITED").decode().encode("utf-16-le")), "IPTC Data Mining: DMI-PROHIBITED"),
        (jpeg(more=cbor(NO)), "C2PA training and data mining: notAllowed"),
        (jpeg(more=cbor(NO, b"cawg.ai_training")), "C2PA training and data mining: notAllowed"),
        (jpeg(more=cbor(NO, b"c2pa.data_mining")), "C2PA training and data mining: notAllowed"),
        (jpeg(more=cbor(ONLY)), "C2PA training and data mining: constrained"),
        (jpeg(more=TDM % 1), "TDM reservation: 1"),
        (jpeg(more=b"<tdm:reservation>1</tdm:reservation>"), "TDM reservation: 1"),
        (
            jpeg(XMP % (MINING + b'PROHIBITED"'), cbor(NO)),
            "IPTC Data Mining: DMI-PROHIBITED and C2PA training and data mining: notAllowed",
        ),
    ],
)  # fmt: skip
def test_marks(data: bytes, told: str) -> None:
    assert reserved(data) == told


@pytest.mark.parametrize(
    "data",
    [
        jpeg(), jpeg(XMP % (MINING + b'ALLOWED"')), jpeg(XMP % (MINING + b'UNSPECIFIED"')), jpeg(more=cbor(YES)),
        jpeg(more=cbor(NO, b"c2pa.ai_inference")), jpeg(more=TDM % 0), png(True, b"x" * 10), b"",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**31 - 1, b"zTXt") + b"x",
    ],
)  # fmt: skip
def test_nothing_is_told_of_others(data: bytes) -> None:
    assert reserved(data) == ""


def test_the_look_is_bounded() -> None:
    """A long file is looked at from both ends, and a compressed text that never ends only in its first part."""
    mark = XMP % (MINING + b'PROHIBITED"')
    assert reserved(mark + bytes(2**25)) and reserved(bytes(2**25) + mark)
    packed = b"k\0\0" + zlib.compress(bytes(2**26))
    assert reserved(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", len(packed), b"zTXt") + packed + bytes(4)) == ""
