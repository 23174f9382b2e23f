"""A receipt is believed only when everything fits, and whatever else is put in its place is named."""

from __future__ import annotations

import hashlib
import json
import random
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.files.layers import TensorInfo
from lora_loom.lora_core.files.save import save
from lora_loom.lora_core.trust import canonical, ed25519, statement
from lora_loom.lora_core.trust.sealing import seal
from lora_loom.lora_core.trust.signer import Signer, fingerprint, readable
from lora_loom.lora_core.trust.statement import STATEMENT, Subject
from lora_loom.lora_core.trust.verdict import Verdict, judged
from nacl.signing import VerifyKey

GOLDEN = Path(__file__).parents[2] / "golden"
SEED, OTHER = bytes(range(32)), bytes(range(1, 33))
KEY = ed25519.public_key(SEED)
TENSORS = {
    "a.lora_down.weight": TensorInfo("F32", (2, 3), 0, 24),
    "a.lora_up.weight": TensorInfo("F32", (3, 2), 24, 48),
}
METADATA = {
    "modelspec.title": "Ink", "modelspec.license": "CC-BY-4.0", "modelspec.base_model": "sd15.safetensors",
    "ss_new_sd_model_hash": "ab" * 32, "ss_output_name": "ink",
    "lora_loom.contract": '{"concept":"ink","data":{"root":"' + "cd" * 32 + '"},"version":1}',
    "lora_loom.settings": '{"seed": 18446744073709551615, "lr": 0.0001, "dataset": {"pictures": {"a": "b"}, "n": 3}}',
    "lora_loom.parents": json.dumps(
        [{"name": "p", "sha256": "01" * 32, "strength": 0.8, "header": {"ss_x": "y"}, "parents": [{"name": "g"}]}]
    ),
}  # fmt: skip
SUBJECT = Subject("12" * 32, TENSORS, METADATA)


def receipt(subject: Subject = SUBJECT, name: str = "ink@ada", seeds: tuple[bytes, ...] = (SEED,)) -> str:
    return statement.sealed(statement.stated(subject, name), seeds)


def verdict(text: str | None, subject: Subject = SUBJECT) -> Verdict:
    about = dict(subject.metadata) | ({} if text is None else {STATEMENT: text})
    return judged(about, subject.tensors, lambda: subject.digest)


def test_a_receipt_fits_its_file() -> None:
    found = verdict(receipt())
    assert found.state == "valid" and found.signers == (Signer(KEY, "ink@ada"),)
    assert found.sentence() == "unchanged since it was signed"
    assert found.statement.predicate["contract"]["data"]["root"] == "cd" * 32
    assert found.statement.predicate["run"] == {"seed": str(2**64 - 1), "lr": 0.0001, "dataset": {"n": 3}}
    assert found.statement.predicate["parents"] == [
        {"name": "p", "sha256": "01" * 32, "strength": 0.8, "parents": [{"name": "g"}]}
    ]
    assert found.statement.predicate["base"] == {"name": "sd15.safetensors", "sha256": "ab" * 32}


def test_the_same_facts_give_the_same_text() -> None:
    turned = SUBJECT._replace(metadata=dict(reversed(METADATA.items())), tensors=dict(reversed(TENSORS.items())))
    assert receipt() == receipt(turned)


def test_a_receipt_of_the_first_version_fits_for_ever() -> None:
    """It was written with version 0.1.0, for SUBJECT."""
    text = (GOLDEN / "receipt.json").read_text("utf-8")
    found = verdict(text)
    assert (found.state, found.signers) == ("valid", (Signer(KEY, "ink@ada"),))
    assert KEY.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert found.signers[0].fingerprint == "KZDVV-J2UMN-DUYAU-F35O3"


def test_a_file_without_one_is_not_hashed() -> None:
    assert judged(METADATA, TENSORS, lambda: pytest.fail("hashed")).state == "unsigned"
    broken = METADATA | {STATEMENT: receipt().replace("A", "B", 1)}
    assert judged(broken, TENSORS, lambda: pytest.fail("hashed")).state != "valid"


@pytest.mark.parametrize("key", METADATA)
def test_every_text_of_the_header_is_covered(key: str) -> None:
    for about in ({**METADATA, key: METADATA[key] + " "}, {k: v for k, v in METADATA.items() if k != key}):
        found = verdict(receipt(), SUBJECT._replace(metadata=about))
        assert (found.state, found.changed) == ("edited", (key,)) and found.is_signed
    found = verdict(receipt(), SUBJECT._replace(metadata={**METADATA, "new": ""}))
    assert found.sentence() == "header changed since it was signed (new)"


def test_other_tensors_under_the_same_receipt_are_named() -> None:
    """Replayed on other bytes; and, of the same bytes, other names, types, shapes and places."""
    one, two = TENSORS
    tables = [
        {one: TENSORS[two], two: TENSORS[one]},
        {one + "x": TENSORS[one], two: TENSORS[two]},
        {one: TENSORS[one]._replace(dtype="I32"), two: TENSORS[two]},
        {one: TENSORS[one]._replace(shape=(3, 2)), two: TENSORS[two]},
        {one: TENSORS[one]},
    ]
    others = [SUBJECT._replace(digest="13" * 32), *(SUBJECT._replace(tensors=each) for each in tables)]
    for other in others:
        found = verdict(receipt(), other)
        assert found.state == "foreign" and not found.is_signed and "other weights" in found.sentence()


def test_two_people_sign_one_statement() -> None:
    found = verdict(receipt(seeds=(SEED, OTHER)))
    assert [each.public for each in found.signers] == [KEY, ed25519.public_key(OTHER)]
    one_of_them_forged = changed(
        receipt(seeds=(SEED, OTHER)), lambda e: e["signatures"][1].update(sig=e["signatures"][0]["sig"])
    )
    assert verdict(one_of_them_forged).state == "forged"


def test_a_new_receipt_says_which_it_replaces() -> None:
    old = receipt()
    new = statement.stated(SUBJECT, "", [statement.receipt_hash(old)])
    found = verdict(statement.sealed(new, [SEED]))
    assert found.state == "valid" and found.signers == (Signer(KEY),)
    assert found.statement.predicate["replaces"] == [hashlib.sha256(old.encode()).hexdigest()]


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another name": lambda told: told["predicate"].update(signer={"name": "mallory"}),
    "another hash": lambda told: told["subject"][0]["digest"].update(sha256="13" * 32),
    "another licence": lambda told: told["predicate"]["header"].update({"modelspec.license": "00" * 32}),
    "another contract": lambda told: told["predicate"].update(contract={}),
}


@pytest.mark.parametrize("how", FORGED)
def test_what_is_said_differently_is_not_what_was_signed(how: str) -> None:
    found = verdict(restated(receipt(), FORGED[how]))
    assert found.state == "forged" and found.signers == () and "does not fit" in found.sentence()


def test_another_key_beside_a_signature_does_not_make_it_fit() -> None:
    other = ed25519.public_key(OTHER)
    swapped = changed(
        receipt(),
        lambda e: e["signatures"][0].update(publicKey=b64encode(other).decode(), keyid=fingerprint(other)),
    )
    assert verdict(swapped).state == "forged"


MALFORMED: dict[str, str] = {
    "empty": "",
    "no JSON": "signed",
    "a list": "[]",
    "cut": receipt()[:-20],
    "spaces": receipt() + " ",
    "a key twice": receipt().replace('{"payload"', '{"payload":"","payload"', 1),
    "deep": "[" * 70_000,
    "large": '"' + "x" * 500_000 + '"',
    "a field more": json.dumps(json.loads(receipt()) | {"zz": 1}, separators=(",", ":")),
}
ENVELOPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another payload type": lambda e: e.update(payloadType="text/plain"),
    "no signature": lambda e: e.update(signatures=[]),
    "nine signatures": lambda e: e.update(signatures=e["signatures"] * 9),
    "signatures no list": lambda e: e.update(signatures={}),
    "a signature of another kind": lambda e: e["signatures"][0].update(keytype="ecdsa"),
    "a short signature": lambda e: e["signatures"][0].update(sig=b64encode(bytes(63)).decode()),
    "a key of another curve": lambda e: e["signatures"][0].update(publicKey=b64encode(b"\4" + bytes(64)).decode()),
    "a key of low order": lambda e: e["signatures"][0].update(publicKey=b64encode(b"\1" + bytes(31)).decode()),
    "a fingerprint of another key": lambda e: e["signatures"][0].update(keyid="AAAAA-AAAAA-AAAAA-AAAAA"),
    "Base64 in another spelling": lambda e: e.update(payload=e["payload"] + "\n"),
    "no bytes": lambda e: e.update(payload=""),
    "no text": lambda e: e.update(payload=b64encode(b"\xff").decode()),
}
STATEMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a later version": lambda told: told.update(predicateType=statement.PREDICATE + "0"),
    "another type": lambda told: told.update(_type="https://in-toto.io/Statement/v0.1"),
    "two subjects": lambda told: told.update(subject=told["subject"] * 2),
    "no subject": lambda told: told.update(subject="ink"),
    "a short hash": lambda told: told["subject"][0]["digest"].update(sha256="12"),
    "a hash in capitals": lambda told: told["subject"][0]["digest"].update(sha256="AB" * 32),
    "no hash of tensors": lambda told: told["predicate"].pop("tensors"),
    "no header": lambda told: told["predicate"].pop("header"),
    "a header of numbers": lambda told: told["predicate"].update(header={"a": 1}),
    "a name that turns the line": lambda told: told["predicate"].update(signer={"name": "a\u202eb"}),
    "a name of two lines": lambda told: told["predicate"].update(signer={"name": "ink\nsigned by ada"}),
    "a name that is none": lambda told: told["predicate"].update(signer={"name": 1}),
    "a field more": lambda told: told.update(more=1),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_texts_that_are_no_receipt(how: str) -> None:
    assert_malformed(MALFORMED[how])


@pytest.mark.parametrize("how", ENVELOPES)
def test_envelopes_that_are_none(how: str) -> None:
    assert_malformed(changed(receipt(), ENVELOPES[how]))


@pytest.mark.parametrize("how", STATEMENTS)
def test_statements_that_are_none_though_they_are_signed(how: str) -> None:
    told = json.loads(b64decode(json.loads(receipt())["payload"]))
    STATEMENTS[how](told)
    assert_malformed(statement.sealed(canonical.text(told).encode(), [SEED]))


def test_a_statement_in_other_words_is_none_though_it_is_signed() -> None:
    told = b64decode(json.loads(receipt())["payload"])
    for payload in (
        told + b" ",
        told.replace(b'{"_type"', b'{"_type":"","_type"', 1),
        b"{" * 10**5,
        b"\xef\xbb\xbf" + told,
    ):
        assert_malformed(statement.sealed(payload, [SEED]))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=60), max_size=8), st.text(max_size=80), st.data()
)
def test_whatever_the_header_says_it_can_be_signed(about: dict[str, str], name: str, data: st.DataObject) -> None:
    about.pop(STATEMENT, None)
    subject = SUBJECT._replace(metadata=about)
    text = statement.sealed(statement.stated(subject, readable(name)), [SEED])
    assert verdict(text, subject).state == "valid"
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from('aZ09+/={}[]",: '))
    assert text[at] == other or verdict(text[:at] + other + text[at + 1 :], subject).state in ("malformed", "forged")


def test_many_pictures_and_ancestors_are_left_to_the_hashes() -> None:
    old = [
        {"name": f"p{n}", "sha256": "0" * 64, "strength": 1, "parents": [{"name": "x" * 900}] * 9} for n in range(80)
    ]
    about = METADATA | {"lora_loom.settings": json.dumps({"a": "b" * 300_000}), "lora_loom.parents": json.dumps(old)}
    subject = SUBJECT._replace(metadata=about)
    found = verdict(receipt(subject), subject)
    assert found.state == "valid" and "run" not in found.statement.predicate
    assert found.statement.predicate["parents"][79] == {"name": "p79", "sha256": "0" * 64, "strength": 1}
    with pytest.raises(ValueError, match="save without signing"):
        statement.stated(SUBJECT._replace(metadata={f"{n:080}": "" for n in range(3000)}))


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(info.shape, generator=draw) for name, info in TENSORS.items()}
    return save(tmp_path / "ink.safetensors", tensors, METADATA, seal=seal([SEED], "ink@ada")).path


def of_file(path: Path) -> Verdict:
    found = guard.contents(path)
    return judged(found.metadata, found.tensors, lambda: data_hash(path))


def test_a_signed_file_is_a_sound_file(signed: Path, tmp_path: Path) -> None:
    found = guard.inspect(signed)
    assert of_file(signed).state == "valid"
    assert found.metadata.keys() >= METADATA.keys() | {"sshs_model_hash", STATEMENT}
    plain = save(tmp_path / "plain.safetensors", {n: torch.zeros(i.shape) for n, i in TENSORS.items()}, METADATA)
    assert STATEMENT not in guard.inspect(plain.path).metadata
    assert of_file(plain.path).state == "unsigned"


def test_what_is_left_out_for_room_is_left_out_before_it_is_signed(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(info.shape) for name, info in TENSORS.items()}
    tags = json.dumps({"folder": {f"tag {n:06}": n for n in range(60_000)}})
    saved = save(tmp_path / "x.safetensors", tensors, METADATA | {"ss_tag_frequency": tags}, seal=seal([SEED]))
    assert "rarest tags" in saved.left_out[0] and guard.contents(saved.path).data_start <= 2**20 + 8
    assert of_file(saved.path).state == "valid"


def test_a_thousand_edits_of_the_file_are_said_or_change_nothing(signed: Path, tmp_path: Path) -> None:
    """Whole files with one byte of the header or the data changed: they are refused by the guard, or said to be other
    than was signed, or hold the same texts, tensors and bytes."""
    raw, draw, path = signed.read_bytes(), random.Random(1), tmp_path / "edited.safetensors"
    before, digest, harmless = guard.contents(signed), data_hash(signed), 0
    for _ in range(1000):
        at, byte = draw.randrange(len(raw)), draw.choice(b' "{}[]:,.0aA\\\x7f\xe9')
        path.write_bytes(raw[:at] + bytes([byte]) + raw[at + 1 :])
        try:
            after = guard.contents(path)
        except ValueError:
            continue
        if judged(after.metadata, after.tensors, lambda: data_hash(path)).state == "valid":
            same = (after.metadata, after.tensors, data_hash(path)) == (before.metadata, before.tensors, digest)
            assert same, f"byte {at} as {byte}"
            harmless += 1
    assert harmless < 300


def test_a_receipt_on_another_file_is_never_valid(signed: Path, tmp_path: Path) -> None:
    text = guard.contents(signed).metadata[STATEMENT]
    tensors = {name: torch.zeros(info.shape) for name, info in TENSORS.items()}
    other = save(tmp_path / "other.safetensors", tensors, METADATA | {STATEMENT: text})
    assert of_file(other.path).state == "foreign"


def test_the_payload_is_canonical_and_its_signature_is_of_dsse() -> None:
    """As RFC 8785's library writes it, and as libsodium checks what DSSE signs, spelled as its protocol says."""
    envelope = json.loads(receipt())
    payload = b64decode(envelope["payload"])
    assert rfc8785.dumps(json.loads(payload)) == payload
    kind = envelope["payloadType"].encode()
    signed = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
    VerifyKey(KEY).verify(signed, b64decode(envelope["signatures"][0]["sig"]))


def test_the_statement_is_dsse_and_in_toto_for_others() -> None:
    """As the libraries of DSSE and in-toto read and sign it."""
    dsse = pytest.importorskip("securesystemslib.dsse", reason="95 MB of packages with model-signing")
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement_pb2 import Statement as InToto
    from securesystemslib.signer import CryptoSigner, SSlibKey

    envelope = json.loads(receipt())
    read = dsse.Envelope.from_dict(
        {**envelope, "signatures": [{"keyid": s["keyid"], "sig": s["sig"]} for s in envelope["signatures"]]}
    )
    key = SSlibKey(envelope["signatures"][0]["keyid"], "ed25519", "ed25519", {"public": KEY.hex()})
    assert read.verify([key], 1)
    told = json.loads(read.payload)
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    parsed = json_format.Parse(read.payload.decode(), InToto())
    assert parsed.subject[0].digest["sha256"] == SUBJECT.digest
    again = dsse.Envelope(read.payload, read.payload_type, {})
    again.sign(CryptoSigner.generate_ed25519())
    assert again.payload == read.payload


def test_model_signing_wraps_the_same_statement(tmp_path: Path) -> None:
    """Its signer and verifier of bundles take it (its manifests of files are another predicate)."""
    sign_ec_key = pytest.importorskip("model_signing._signing.sign_ec_key", reason="95 MB of packages")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement import Statement as InToto
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (tmp_path / "key").write_bytes(pem)
    pem = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(pem)
    payload = statement.stated(SUBJECT, "ink@ada")
    message = json_format.Parse(payload.decode(), Message())

    class Payload:
        statement = InToto.copy_from_pb(message)

    bundle = sign_ec_key.Signer(tmp_path / "key").sign(Payload()).bundle
    kind, wrapped = sign_ec_key.Verifier(tmp_path / "key.pub")._verify_bundle(bundle)
    assert (kind, json.loads(wrapped)) == (statement.PAYLOAD, json.loads(payload))
    assert canonical.text(json.loads(wrapped)).encode() == payload


def assert_malformed(text: str) -> None:
    found = verdict(text)
    assert found.state == "malformed" and found.signers == () and found.fault
    assert found.sentence().startswith("its signature cannot be read: ") and "\n" not in found.sentence()


def changed(text: str, change: Callable[[dict[str, Any]], Any]) -> str:
    envelope = json.loads(text)
    change(envelope)
    return canonical.text(envelope)


def restated(text: str, change: Callable[[dict[str, Any]], Any]) -> str:
    """The receipt with another statement under the old signature."""
    told = json.loads(b64decode(json.loads(text)["payload"]))
    change(told)
    return changed(text, lambda e: e.update(payload=b64encode(canonical.text(told).encode()).decode()))
