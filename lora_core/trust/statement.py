"""The receipt of a LoRA file: who signed it, what for, and what has changed since.

An in-toto Statement v1 (in-toto.io/Statement/v1) whose subject is the sha256 of the file's data section, in canonical
JSON, signed with Ed25519 over DSSE's pre-authentication encoding. The header key `lora_loom.statement` holds the DSSE
envelope (github.com/secure-systems-lab/dsse), with the public key beside each signature. docs/receipt.md has it all.

The data section says nothing of names and shapes, so the predicate has a hash of the table of tensors too, and one of
each text of the header: what is not as it was signed can be named.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..files.layers import TensorInfo
from ..files.lineage import CONTINUED, CONTRACT, LEARNED_ON, parents_of
from ..files.metadata import SETTINGS
from ..files.nested import table_of, value_of
from ..version import VERSION
from . import canonical, ed25519
from .signer import Signer, fingerprint, readable

STATEMENT = "lora_loom.statement"
TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://github.com/lora-loom/lora-loom/receipt/v1"
PAYLOAD = "application/vnd.in-toto+json"
LARGEST = 2**18  # characters of a payload
MOST_SIGNATURES = 8
_ENVELOPE = LARGEST * 4 // 3 + 8 * 512
_GENERATIONS = 16  # of parents that are repeated in the predicate


class Subject(NamedTuple):
    """Holds what is signed: sha256 of the data section, 64 hex digits, the table of tensors, and the header's texts."""

    digest: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Statement:
    """A receipt as it stands in a header; nothing of it was compared with a file, and no signature was checked."""

    payload: bytes
    signatures: tuple[tuple[bytes, bytes], ...]  # of (public key, signature)
    subject: str
    name: str
    predicate: Mapping[str, Any]


def stated(subject: Subject, name: str = "", replaces: Iterable[str] = ()) -> bytes:
    """Return the payload: the statement about a file, in canonical JSON. `name` is what the signer goes by, `replaces`
    are sha256 of the receipts that this one takes the place of.

    What has no room, the settings of the run and then the oldest ancestors, is left to the hashes of the header's
    texts. Raises ValueError where it still passes LARGEST.
    """
    replaced = list(replaces)
    for with_run, generations in ((True, _GENERATIONS), (False, _GENERATIONS), (False, 1), (False, 0)):
        predicate = _predicate(subject, with_run, generations)
        predicate |= {"signer": {"name": name}} if name else {}
        predicate |= {"replaces": replaced} if replaced else {}
        text = canonical.text(
            {
                "_type": TYPE,
                "subject": [{"name": _title(subject.metadata), "digest": {"sha256": subject.digest}}],
                "predicateType": PREDICATE,
                "predicate": predicate,
            }
        )
        if len(text) <= LARGEST:
            return text.encode()
    raise ValueError(
        f"a receipt of {len(subject.metadata)} texts in the header has {len(text)} characters, above the {LARGEST} "
        "allowed; save without signing"
    )


def sealed(payload: bytes, seeds: Iterable[bytes]) -> str:
    """Return the text of the header key: a payload, signed with each secret."""
    encoded = _pre_authentication(payload)
    made = [(ed25519.public_key(seed), ed25519.sign(seed, encoded)) for seed in seeds]
    return canonical.text(
        {
            "payload": b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [
                {
                    "keyid": fingerprint(public),
                    "keytype": "ed25519",
                    "publicKey": b64encode(public).decode(),
                    "sig": b64encode(signature).decode(),
                }
                for public, signature in made
            ],
        }
    )


def opened(text: str) -> Statement:
    """Return what a text of the header key holds. Raises ValueError, one sentence, for what is no receipt of ours."""
    envelope = _table(canonical.parsed(text, "its envelope", _ENVELOPE), "its envelope")
    if envelope.keys() != {"payload", "payloadType", "signatures"} or envelope["payloadType"] != PAYLOAD:
        raise ValueError("its envelope is not a DSSE envelope of an in-toto statement")
    payload = _bytes(envelope["payload"], "its payload")
    try:
        written = payload.decode()
    except UnicodeDecodeError:
        raise ValueError("its payload is not UTF-8 text") from None
    told = _table(canonical.parsed(written, "its statement", LARGEST), "its statement")
    signatures = _signatures(envelope["signatures"])
    return Statement(payload, signatures, *_told(told))


def fitting(found: Statement) -> tuple[Signer, ...] | None:
    """Return who signed a receipt, each once; None when one of its signatures does not fit."""
    encoded = _pre_authentication(found.payload)
    if not all(ed25519.verify(public, encoded, signature) for public, signature in found.signatures):
        return None
    return tuple(Signer(public, found.name) for public in dict.fromkeys(public for public, _ in found.signatures))


def changes(found: Statement, subject: Subject) -> tuple[str, ...] | None:
    """Return the names of the header's texts that are not as they were signed; None when its tensors are not, by their
    bytes or by their names, types, shapes and places."""
    if found.subject != subject.digest or found.predicate["tensors"]["sha256"] != table_hash(subject.tensors):
        return None
    signed, there = found.predicate["header"], _hashes(subject.metadata)
    return tuple(sorted(key for key in signed.keys() | there.keys() if signed.get(key) != there.get(key)))


def table_hash(tensors: Mapping[str, TensorInfo]) -> str:
    """sha256 of the canonical JSON of {name: [dtype, shape, first byte, byte after the last]}, 64 hex digits."""
    return _sha256(canonical.text({name: [*info] for name, info in tensors.items()}))


def receipt_hash(text: str) -> str:
    """sha256 of a receipt's text in the header, 64 hex digits."""
    return _sha256(text)


def _predicate(subject: Subject, with_run: bool, generations: int) -> dict[str, Any]:
    about = subject.metadata
    contract, settings = table_of(about.get(CONTRACT, "")), _settings(about.get(SETTINGS, ""))
    began = table_of(about.get(CONTINUED, ""))
    base = {"name": about.get("modelspec.base_model", ""), "sha256": about.get("ss_new_sd_model_hash", "")}
    told = {
        "contract": contract,
        "parents": _family(parents_of(about), generations),
        "continuedFrom": _family([began], generations)[0] if began and generations else None,
        "learnedOn": _family(_list(value_of(about.get(LEARNED_ON, ""))), generations),
        "base": {key: value for key, value in base.items() if value},
        "run": settings if with_run else None,
    }
    return {key: canonical.expressible(value) for key, value in told.items() if value} | {
        "versions": {"loraLoom": VERSION},
        "tensors": {"count": len(subject.tensors), "sha256": table_hash(subject.tensors)},
        "header": _hashes(about),
    }


def _settings(text: str) -> dict[str, Any]:
    """The settings of a run without the hashes of its pictures, which can be thousands; seeds with all their digits."""
    found = table_of(text, int)
    dataset = found.get("dataset")
    sets = _list(dataset.get("sets")) if isinstance(dataset, dict) else []
    for part in (dataset, *sets):
        if isinstance(part, dict):
            part.pop("pictures", None)
    return found


def _family(parents: Iterable[Any], generations: int) -> list[dict[str, Any]]:
    """Parents with what names them: hashes, strengths, and the receipts that they had."""
    if not generations:
        return []
    kept = "name", "sha256", "hash_of", "strength", "text_strength", "blocks", "author", "license", "signatures"
    return [
        {key: each[key] for key in kept if key in each}
        | ({"parents": older} if (older := _family(_list(each.get("parents")), generations - 1)) else {})
        for each in parents
        if isinstance(each, dict)
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _title(metadata: Mapping[str, str]) -> str:
    return readable(metadata.get("ss_output_name") or metadata.get("modelspec.title") or "lora")


def _hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: _sha256(value) for key, value in metadata.items() if key != STATEMENT}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _pre_authentication(payload: bytes) -> bytes:
    """DSSE's PAE: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _signatures(value: Any) -> tuple[tuple[bytes, bytes], ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_SIGNATURES:
        raise ValueError(f"it does not hold 1 to {MOST_SIGNATURES} signatures")
    return tuple(map(_signature, value))


def _signature(value: Any) -> tuple[bytes, bytes]:
    each = _table(value, "a signature")
    if each.keys() != {"keyid", "keytype", "publicKey", "sig"}:
        raise ValueError("a signature in it has other fields than keyid, keytype, publicKey and sig")
    if each["keytype"] != "ed25519":
        raise ValueError("a signature in it is of another kind than ed25519")
    public, signature = _bytes(each["publicKey"], "a public key in it"), _bytes(each["sig"], "a signature in it")
    if not ed25519.is_key(public):
        raise ValueError("a public key in it is not one of Ed25519")
    if len(signature) != ed25519.SIGNATURE_SIZE:
        raise ValueError(f"a signature in it has {len(signature)} bytes, not {ed25519.SIGNATURE_SIZE}")
    if each["keyid"] != fingerprint(public):
        raise ValueError("a public key in it has another fingerprint than it says")
    return public, signature


def _told(told: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """The subject's hash, the signer's name, and the predicate."""
    if told.get("_type") != TYPE or told.get("predicateType") != PREDICATE:
        raise ValueError("its statement is of another kind, or of a later version of LoRA Loom")
    if told.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise ValueError("its statement has other fields than those of in-toto's Statement v1")
    subjects = told["subject"] if isinstance(told["subject"], list) else []
    if len(subjects) != 1:
        raise ValueError(f"its statement is about {len(subjects)} files, not one")
    digests = _table(_table(subjects[0], "its subject").get("digest"), "its subject's digest")
    predicate = _table(told["predicate"], "its predicate")
    signer = _table(predicate.get("signer", {"name": ""}), "its signer")
    name, tensors = signer.get("name"), _table(predicate.get("tensors"), "its hash of the tensors")
    hashes = _table(predicate.get("header"), "its list of the header's texts")
    if not all(map(_is_hash, (digests.get("sha256"), tensors.get("sha256"), *hashes.values()))):
        raise ValueError("it holds something other than a sha256 where one must be")
    if not isinstance(name, str) or readable(name) != name:
        raise ValueError("its signer's name is no plain text of at most 64 characters")
    return digests["sha256"], name, predicate


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no table")
    return value


def _bytes(value: Any, what: str) -> bytes:
    """The bytes of their one spelling in Base64."""
    try:
        found = b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        found = b""
    if not found or b64encode(found).decode() != value:
        raise ValueError(f"{what} is not Base64")
    return found
