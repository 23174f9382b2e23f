"""One line of a takedown list: which LoRA, why, since when, who says so (docs/takedown.md)."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from . import canonical, ed25519

LONGEST = 16_384  # bytes of a line
REASONS = {
    "likeness": "shows a real person who did not consent",
    "intimate": "makes intimate pictures of a real person",
    "minor": "sexualises minors",
    "style": "imitates an artist who objects",
    "copyright": "infringes a copyright",
    "licence": "breaks the licence of what it was made of",
    "withdrawn": "was withdrawn by its author",
    "harmful": "was made to do harm",
}
_SIGNED_FOR = b"lora_loom.takedown 1\n"
_HASH = re.compile("[0-9a-f]{64}")
_MOST = {"reason": 100, "issuer": 200, "sketch": 8_000, "key": 44, "signature": 88}  # characters
_MOST_KEYS = 24


@dataclass(frozen=True)
class Entry:
    """`data` and `content` are what `hashes.data_hash` and `hashes.content_hash` give, "" where the line has none;
    `expires` is the last day on which it holds. `key` is base64 of the signer's, "" for an unsigned one. `id` is the
    beginning of the sha256 of what would be signed, by which a person names it."""

    id: str
    data: str
    content: str
    sketch: str
    reason: str
    date: str
    expires: str
    issuer: str
    key: str
    signature: str
    message: bytes

    def fault(self, today: date) -> str:
        """Return why the entry does not count, or "": its day is over, or what it is signed with does not fit it."""
        if self.expires and date.fromisoformat(self.expires) < today:
            return f"expired on {self.expires}"
        if (self.key or self.signature) and not _fits(self.key, self.message, self.signature):
            return "is badly signed"
        return ""

    def words(self) -> str:
        """Return reason, issuer and date: "shows a real person who did not consent, says Ada since 2026-11-30"."""
        return f"{REASONS.get(self.reason, f'has the reason {self.reason!r}')}, says {self.issuer} since {self.date}"


def read(line: bytes) -> Entry:
    """Return the entry of a line. Raises ValueError for one that is none, or too long."""
    if len(line) > LONGEST:
        raise ValueError(f"has {len(line)} bytes, above {LONGEST}")
    try:
        said = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
        message = _message(said)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON that names each key once ({str(error)[:80]})") from None
    return _entry(said, message)


def write(said: Mapping[str, str], secret: bytes | None = None) -> str:
    """Return the line of an entry without its line feed, by the keys that docs/takedown.md lists; signed with an
    Ed25519 secret of 32 bytes where there is one. Raises ValueError for what `read` would not read."""
    entry = {key: value for key, value in said.items() if value}
    if secret is not None:
        entry["key"] = b64encode(ed25519.public_key(secret)).decode()
        entry["signature"] = b64encode(ed25519.sign(secret, _message(entry))).decode()
    line = canonical.text(entry)
    read(line.encode())
    return line


def _entry(said: Any, message: bytes) -> Entry:
    if not isinstance(said, dict) or len(said) > _MOST_KEYS:
        raise ValueError(f"is no table of at most {_MOST_KEYS} keys")
    found = {name: _text(said, name) for name in ("reason", "issuer", "sketch", "key", "signature")}
    hashes = {name: said.get(f"{name}_sha256", "") for name in ("data", "content")}
    days = {name: said.get(name, "") for name in ("date", "expires")}
    for name, value in hashes.items():
        if value != "" and not (isinstance(value, str) and _HASH.fullmatch(value)):
            raise ValueError(f"has a {name}_sha256 that is not 64 hex digits in lower case")
    for name, value in days.items():
        if value != "" and not _is_day(value):
            raise ValueError(f"has a {name} that is not a day such as 2026-11-30")
    if missing := [name for name in ("reason", "issuer") if not found[name]] + ["date"] * (not days["date"]):
        raise ValueError(f"does not say {' and '.join(missing)}")
    if not any(hashes.values()):
        raise ValueError("names no file by data_sha256 or content_sha256")
    return Entry(hashlib.sha256(message).hexdigest()[:12], **hashes, **found, **days, message=message)


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name, "")
    if not isinstance(value, str) or len(value) > _MOST[name] or not value.isprintable():
        raise ValueError(f"has a {name} that is not plain text of at most {_MOST[name]} characters")
    return value.strip()


def _is_day(value: Any) -> bool:
    try:
        return isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _message(said: Any) -> bytes:
    """Return what is signed: a line of its own before the canonical JSON (RFC 8785) of all but the signature."""
    rest = {key: value for key, value in said.items() if key != "signature"} if isinstance(said, dict) else said
    return _SIGNED_FOR + canonical.text(rest).encode()


@lru_cache(256)
def _fits(key: str, message: bytes, signature: str) -> bool:
    try:
        public, signed = b64decode(key, validate=True), b64decode(signature, validate=True)
    except (Error, ValueError):
        return False
    return ed25519.verify(public, message, signed)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
