"""A file made of another carries no signature of that one, and notes it by its hash."""

from __future__ import annotations

import hashlib

import pytest
from lora_loom.lora_core.files.lineage import Parent, inherited
from lora_loom.lora_core.files.signatures import signatures

DSSE = '{"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": [{"sig": "AA=="}]}'
SIGNED = {
    "c2pa:manifest": "AAAA", "c2pa:manifest_url": "https://x", "C2PA": "x", "content_credentials": "x",
    "cawg.identity": "x", "pgp": "x",
    "model_signing.bundle": "{}", "modelSignature": "AA==", "openssf.model-signing": "{}", "sigstore": "{}",
    "in-toto": "{}", "in_toto_statement": "{}", "dsse_envelope": "{}", "slsa.provenance": "{}", "ed25519": "ab",
    "lora_loom.statement": "{}", "modelspec.signature": "ab", "gpg_sig": "x",
    "extra": DSSE, "note": "-----BEGIN PGP SIGNATURE-----\nabc", "more": "untrusted comment: minisign\nRW",
    "proof": '{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}', "told": '{"_type": "https://in-toto.io/Statement/v1"}',
}  # fmt: skip
HASHES = {
    "sha256": "ab", "model_hash": "cd", "blake3": "ef", "autov2": "01", "sshs_model_hash": "02",
    "sshs_legacy_hash": "03",
    "modelspec.hash_sha256": "0x04", "file.sha256": "05",
}  # fmt: skip
STAYS = {
    "modelspec.title": "Ink", "modelspec.description": "a signed print; designed to assign", "ss_sd_model_hash": "ab",
    "ss_new_sd_model_hash": "cd", "ss_vae_hash": "ef", "base_sha256": "01", "ss_steps": "900", "design": "signal",
    "ss_training_comment": "no signature here", "modelspec.author": "Sig Statement",
    "lora_loom.settings": '{"a": "in-toto.io/x"}',
}  # fmt: skip


@pytest.mark.parametrize("key", SIGNED)
def test_signatures_of_every_kind(key: str):
    text = SIGNED[key]
    assert signatures({**STAYS, key: text}) == {key: hashlib.sha256(text.encode()).hexdigest()}


def test_what_is_made_of_a_file_carries_neither_its_signatures_nor_its_hashes():
    assert inherited({**STAYS, **SIGNED, **HASHES}) == STAYS


def test_a_parent_is_noted_with_what_it_carried():
    header = {**STAYS, "c2pa:manifest": "AAAA", "modelspec.signature": "ab"}
    told = Parent.of("ink", header, 1.0, 1.0, "ab" * 32).described()
    assert told["signatures"] == signatures(header) and len(told["signatures"]) == 2
    assert "modelspec.signature" not in told["header"]
    assert "signatures" not in Parent.of("ink", STAYS, 1.0, 1.0, "ab").described()
    many = Parent.of("ink", {f"c2pa:{n}": "x" for n in range(10_000)}, 1.0, 1.0, "ab")
    assert len(many.signatures) == 16, "a header is no place for ten thousand"
