"""Who signs: a public key, by a fingerprint that people can compare, and a name that it goes by."""

from __future__ import annotations

import hashlib
import unicodedata
from base64 import b32encode
from typing import NamedTuple

LONGEST = 64  # characters of a name


class Signer(NamedTuple):
    """`public` has 32 bytes; `name` is what its owner calls it, and empty where it has none."""

    public: bytes
    name: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})" if self.name else self.fingerprint


def fingerprint(public: bytes) -> str:
    """Return the first 100 bits of a key's sha256 as four groups of five letters and digits (RFC 4648's Base32, which
    has no 0, 1, 8 and 9)."""
    letters = b32encode(hashlib.sha256(public).digest()).decode()[:20]
    return "-".join(letters[at : at + 5] for at in range(0, 20, 5))


def readable(name: str) -> str:
    """Return a name as it can stand in a line: one line, nothing that cannot be seen, at most 64 characters."""
    spaced = " ".join(unicodedata.normalize("NFC", name).split())
    return "".join(each for each in spaced if each.isprintable())[:LONGEST].strip()


def alike(name: str) -> str:
    """Return a form of a name that is the same for names that look the same but for case, width and accents' coding."""
    return unicodedata.normalize("NFKC", name).casefold()
