"""Signatures and manifests in a header: they speak of the bytes of one file, and of no file that is made of it.

C2PA binds `c2pa:manifest` to the file it is in (C2PA 2.4, hard binding), model signing (sigstore, in-toto, DSSE) a
statement to a digest. A file that is made of others notes theirs as ingredients, by hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

_WORDS = frozenset(
    "attestation attestations bundle c2pa cawg cert certificate certificates certs cosign credential credentials dsse "
    "ecdsa ed25519 gpg intoto jumbf jws jwt manifest manifests minisig minisign openssf pgp pkcs7 provenance rekor rsa "
    "sig signature signatures signed signer signers signing sigstore slsa statement toto x509".split()
)
_WRITTEN = re.compile(
    r"-----BEGIN [A-Z0-9 ]+-----|^untrusted comment:|\"payloadType\"|(in-toto\.io|slsa\.dev)/|dev\.sigstore"
    r"|c2pa\.(claim|hash)"
)
_HASHES = re.compile(r"(?:\w*[._:-])?(?:hash|sha\d*|md5|crc32|blake\d\w*|checksum|digest|auto_?v\d|sha(?:256|512)sum)")
_BASE = re.compile(r"base|vae|parent|source|data|train")
_OF_OTHERS = ("ss_", "modelspec.", "lora_loom.")  # hashes of the base and of what it was made of


def signatures(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the sha256 of each signature's or manifest's text, 64 hex digits, by its key."""
    return {
        key: hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        for key, value in sorted(metadata.items())
        if is_signature(key, value)
    }


def is_signature(key: str, value: str) -> bool:
    """By what its key says, or what its text is."""
    apart = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", key)
    if not _WORDS.isdisjoint(re.findall(r"[a-z0-9]+", f"{key} {apart}".lower())):
        return True
    return not key.startswith(_OF_OTHERS) and bool(_WRITTEN.search(value))


def is_hash_of_the_file(key: str) -> bool:
    """A hash that is not said to be of anything else."""
    named = key.lower()
    return not (key.startswith(_OF_OTHERS) or _BASE.search(named)) and bool(_HASHES.fullmatch(named))
