"""Ed25519 against RFC 8032's vectors and libsodium, and against everything that strict verification must refuse."""

from __future__ import annotations

import hashlib
import random
import time

import pytest
from lora_loom.lora_core.trust import ed25519
from lora_loom.lora_core.trust.ed25519 import ORDER, P, is_key, public_key, sign, verify
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

RFC8032 = [  # section 7.1: secret, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]
LOW_ORDER = [  # all points of order 1, 2, 4 and 8, and their spellings that are not canonical
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]
SEED, MESSAGE = bytes(range(32)), b"a LoRA"


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC8032, ids=["empty", "one", "two", "sha512"])
def test_vectors_of_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key, text, made = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
    assert public_key(bytes.fromhex(seed)) == key
    assert sign(bytes.fromhex(seed), text) == made
    assert verify(key, text, made)


def test_any_changed_bit_is_refused() -> None:
    key, made = public_key(SEED), sign(SEED, MESSAGE)
    for at in range(0, 512, 7):
        assert not verify(key, MESSAGE, flipped(made, at))
    for at in range(0, 256, 5):
        assert not verify(flipped(key, at), MESSAGE, made)
    for at in range(8 * len(MESSAGE)):
        assert not verify(key, flipped(MESSAGE, at), made)


@pytest.mark.parametrize("times", [1, 2, 7, 14])
def test_a_signature_has_one_form(times: int) -> None:
    """S + L is the same number to a verifier that does not look: malleability."""
    made = sign(SEED, MESSAGE)
    larger = int.from_bytes(made[32:], "little") + times * ORDER
    assert not verify(public_key(SEED), MESSAGE, made[:32] + larger.to_bytes(32, "little"))


@pytest.mark.parametrize("text", LOW_ORDER)
def test_points_of_low_order_are_no_keys_and_no_commitments(text: str) -> None:
    """With such a key S = 0 and R = zero fit every message in a verifier that lets them pass."""
    point = bytes.fromhex(text)
    zero = bytes.fromhex(LOW_ORDER[0])
    assert not is_key(point)
    for message in (b"", MESSAGE, b"another"):
        assert not any(verify(point, message, bytes.fromhex(each) + bytes(32)) for each in LOW_ORDER)
        assert not verify(public_key(SEED), message, point + bytes(32))
        assert not verify(point, message, zero + bytes(32))


def test_a_key_of_low_order_fits_nothing_that_anybody_can_make() -> None:
    """Of R = [S]B one message in eight fits it, without any secret, where such keys are let pass."""
    commitment = ed25519._encoded(ed25519._combined(((7, ed25519._base()),)))
    made = commitment + (7).to_bytes(32, "little")
    assert not any(verify(bytes.fromhex(LOW_ORDER[6]), bytes([number]), made) for number in range(64))


def test_a_commitment_of_low_order_is_refused_though_it_fits() -> None:
    """S = k * a with R = zero holds in the equation, for whoever has the secret."""
    secret, zero = ed25519._expanded(SEED)[0], bytes.fromhex(LOW_ORDER[0])
    key = public_key(SEED)
    answer = ed25519._hashed(zero, key, MESSAGE) * secret % ORDER
    assert not verify(key, MESSAGE, zero + answer.to_bytes(32, "little"))


def test_the_cofactor_does_not_forgive() -> None:
    """R plus a point of order 8 fits when all is multiplied by 8: here it is refused, as by libsodium."""
    torsion = ed25519._decoded(bytes.fromhex(LOW_ORDER[6]))
    nonce, (secret, _), key = 12345, ed25519._expanded(SEED), public_key(SEED)
    point = ed25519._combined(((nonce, ed25519._base()),))
    commitment = ed25519._encoded(ed25519._added(point, torsion))
    answer = (nonce + ed25519._hashed(commitment, key, MESSAGE) * secret) % ORDER
    assert not verify(key, MESSAGE, commitment + answer.to_bytes(32, "little"))


@pytest.mark.parametrize("y", [2, 5, P - 4, P, P + 1, P + 5, 2**255 - 1, 2**255 - 2])
def test_what_encodes_no_point_is_no_key(y: int) -> None:
    for odd in (0, 1):
        text = (y | odd << 255).to_bytes(32, "little")
        assert is_key(text) == (y < P and on_curve(y))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_other_lengths_are_refused(size: int) -> None:
    assert not is_key(bytes(size))
    assert not verify(bytes(size), MESSAGE, sign(SEED, MESSAGE))
    if size != 64:
        assert not verify(public_key(SEED), MESSAGE, bytes(size))
    if size != 32:
        with pytest.raises(ValueError, match="must have 32"):
            sign(bytes(size), MESSAGE)


def test_random_cases_equal_libsodium() -> None:
    draw = random.Random(0)
    for number in range(40):
        seed, message = draw.randbytes(32), draw.randbytes(number * 5)
        key = SigningKey(seed)
        made = sign(seed, message)
        assert (bytes(key.verify_key), key.sign(message).signature) == (public_key(seed), made)
        broken = flipped(made, draw.randrange(512))
        assert verify(public_key(seed), message, made) and not verify(public_key(seed), message, broken)


def test_strange_signatures_are_judged_as_by_libsodium() -> None:
    """Keys, commitments and numbers at all the edges, signed for by whoever has the secret."""
    numbers = [0, 1, ORDER - 1, ORDER, ORDER + 1, 2**252, 2**256 - 1]
    points = [bytes.fromhex(each) for each in LOW_ORDER] + [public_key(SEED)]
    for key in points:
        for commitment in points:
            for number in numbers:
                made = commitment + number.to_bytes(32, "little")
                try:
                    VerifyKey(key).verify(MESSAGE, made)
                    theirs = True
                except BadSignatureError:
                    theirs = False
                assert verify(key, MESSAGE, made) == theirs


def test_verifying_takes_less_than_35_ms() -> None:
    key, made = public_key(SEED), sign(SEED, MESSAGE)
    verify(key, MESSAGE, made)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        verify(key, MESSAGE, made)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.035


def flipped(text: bytes, bit: int) -> bytes:
    return text[: bit // 8] + bytes([text[bit // 8] ^ 1 << bit % 8]) + text[bit // 8 + 1 :]


def on_curve(y: int) -> bool:
    """By Euler's criterion, x^2 = (y^2 - 1) / (d y^2 + 1)."""
    square = (y * y - 1) * pow(-121665 * pow(121666, -1, P) * y * y + 1, -1, P) % P
    return square != 0 and pow(square, (P - 1) // 2, P) == 1
