"""One number for a whole data set: a Merkle root over its pictures and captions.

As RFC 6962, section 2.1: a leaf is sha256(0x00 || text), a node sha256(0x01 || left || right), and a list of n is cut
at the largest power of two below n. The text of a leaf is sha256 of the picture's file followed by sha256 of its
caption as UTF-8, 64 bytes; of a picture that is no file, sha256 of its pixels (8 bit RGB, row by row). Leaves are
sorted and each stands once, so that names and order of files change nothing. Whoever has all pictures and captions can
work it out again, and show of one that it was among them; whoever has not learns nothing from it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .dataset import Dataset


def leaf(picture: bytes, caption: str) -> bytes:
    """Return the leaf of a picture, by the 32 bytes of its sha256, with a caption."""
    return hashlib.sha256(
        b"\x00" + picture + hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()
    ).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of leaves in their order, 32 bytes; sha256 of nothing for none."""
    if not leaves:
        return hashlib.sha256().digest()
    level = list(leaves)
    while len(level) > 1:  # joining neighbours and lifting a last one alone gives the tree of the RFC
        pairs = zip(level[::2], level[1::2], strict=False)
        joined = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
        level = joined + level[len(joined) * 2 :]
    return level[0]


def root_of(dataset: Dataset) -> str:
    """Return the root of a data set, 64 hex digits; "" when the content of one of its pictures is not known."""
    pictures = dataset.pictures()
    if not pictures or not all(each.origin.content for each in pictures):
        return ""
    leaves = {leaf(bytes.fromhex(each.origin.content), each.caption) for each in pictures}
    return merkle_root(sorted(leaves)).hex()


def contents(dataset: Dataset) -> dict[str, Any]:
    """Return for a header what is in a data set: its root, the number of its pictures, and how many of them say that
    they are not to be learned from, by what they say."""
    marks = Counter(each.origin.reserved for each in dataset.pictures() if each.origin.reserved)
    found = {"root": root_of(dataset), "count": dataset.num_pictures(), "reserved": dict(marks)}
    return {name: value for name, value in found.items() if value}
