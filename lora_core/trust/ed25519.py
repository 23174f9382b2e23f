"""Ed25519 (RFC 8032, section 5.1) on Python's integers, with the strict rules for verifying.

A signature counts only when [S]B - [k]A is, byte for byte, the R that it holds: without the cofactor, as libsodium and
ed25519-dalek's `verify_strict` do. S at or above the group's order, keys that are not the one encoding of a point, and
keys and R of low order are refused; so there is one signature for each message and key, and no key that fits any text.

Not in constant time: meant for a person's own key on their own machine.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import NamedTuple

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
KEY_SIZE, SIGNATURE_SIZE = 32, 64  # bytes
_D = -121665 * pow(121666, -1, P) % P
_ROOT = pow(2, (P - 1) // 4, P)  # of -1
_WINDOW = 4  # bits
_WINDOWS = 64


class Point(NamedTuple):
    """x = X / Z, y = Y / Z, x * y = T / Z."""

    X: int
    Y: int
    Z: int
    T: int


_ZERO = Point(0, 1, 1, 0)


def public_key(seed: bytes) -> bytes:
    """Return the key, 32 bytes, that checks what is signed with a secret of 32 bytes."""
    return _encoded(_combined(((_expanded(seed)[0], _base()),)))


def sign(seed: bytes, message: bytes) -> bytes:
    """Return the signature, 64 bytes: always the same one of a message. Raises ValueError for a secret that has not 32
    bytes."""
    secret, prefix = _expanded(seed)
    public = _encoded(_combined(((secret, _base()),)))
    nonce = _hashed(prefix, message)
    commitment = _encoded(_combined(((nonce, _base()),)))
    answer = (nonce + _hashed(commitment, public, message) * secret) % ORDER
    return commitment + answer.to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature was made of the message with the secret of this key; False for what is neither."""
    if len(signature) != SIGNATURE_SIZE or (key := _decoded(public)) is None or _is_of_low_order(key):
        return False
    commitment, answer = signature[:32], int.from_bytes(signature[32:], "little")
    if answer >= ORDER:
        return False
    negative = Point(-key.X % P, key.Y, key.Z, -key.T % P)
    challenge = _hashed(commitment, public, message)
    found = _combined(((answer, _base()), (challenge, _multiples(negative))))
    return _encoded(found) == commitment and not _is_of_low_order(found)


def is_key(public: bytes) -> bool:
    """Return whether these bytes are a key that a signature can fit."""
    key = _decoded(public)
    return key is not None and not _is_of_low_order(key)


def _expanded(seed: bytes) -> tuple[int, bytes]:
    if len(seed) != KEY_SIZE:
        raise ValueError(f"the secret of a key has {len(seed)} bytes; it must have {KEY_SIZE}")
    digest = hashlib.sha512(seed).digest()
    number = int.from_bytes(digest[:32], "little")
    return number & (2**254 - 8) | 2**254, digest[32:]


def _hashed(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ORDER


def _added(p: Point, q: Point) -> Point:
    """For every two points, equal ones too: the curve's law is complete."""
    a, b = (p.Y - p.X) * (q.Y - q.X), (p.Y + p.X) * (q.Y + q.X)
    c, d = 2 * _D * p.T * q.T, 2 * p.Z * q.Z
    e, f, g, h = (b - a) % P, (d - c) % P, (d + c) % P, (b + a) % P
    return Point(e * f % P, g * h % P, f * g % P, e * h % P)


def _doubled(p: Point) -> Point:
    a, b, c = p.X * p.X, p.Y * p.Y, 2 * p.Z * p.Z
    h, g = (a + b) % P, (a - b) % P
    e, f = (h - (p.X + p.Y) ** 2) % P, (c + g) % P
    return Point(e * f % P, g * h % P, f * g % P, e * h % P)


def _multiples(point: Point) -> tuple[Point, ...]:
    """0, 1, ... 15 times a point."""
    found = [_ZERO, point]
    while len(found) < 2**_WINDOW:
        found.append(_added(found[-1], point))
    return tuple(found)


@cache
def _base() -> tuple[Point, ...]:
    """Multiples of the base point, whose y is 4 / 5 and whose x is even."""
    y = 4 * pow(5, -1, P) % P
    point = _decoded(y.to_bytes(32, "little"))
    assert point is not None
    return _multiples(point)


def _combined(terms: tuple[tuple[int, tuple[Point, ...]], ...]) -> Point:
    """Return the sum of numbers below 2^256 times points, each given by its multiples (Straus)."""
    total = _ZERO
    for window in reversed(range(_WINDOWS)):
        for _ in range(_WINDOW):
            total = _doubled(total)
        for number, multiples in terms:
            if digit := number >> _WINDOW * window & (2**_WINDOW - 1):
                total = _added(total, multiples[digit])
    return total


def _is_of_low_order(point: Point) -> bool:
    """Eight times it is zero."""
    point = _doubled(_doubled(_doubled(point)))
    return point.X == 0 and point.Y == point.Z


def _encoded(point: Point) -> bytes:
    inverse = pow(point.Z, -1, P)
    x, y = point.X * inverse % P, point.Y * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decoded(text: bytes) -> Point | None:
    """Return the point of its one encoding; None for anything else (section 5.1.3)."""
    if len(text) != KEY_SIZE:
        return None
    number = int.from_bytes(text, "little")
    odd, y = number >> 255, number & (2**255 - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (_D * y * y + 1) % P
    x = u * v**3 * pow(u * v**7, (P - 5) // 8, P) % P
    if (v * x * x + u) % P == 0:
        x = x * _ROOT % P
    if (v * x * x - u) % P or (x == 0 and odd):
        return None
    if x & 1 != odd:
        x = P - x
    return Point(x, y, 1, x * y % P)
