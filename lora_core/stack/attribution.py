"""Tells who made what went into a picture: one entry per adapter, for the MODEL and for the picture's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..files.lineage import Parent, parents_of
from ..files.permissions import permissions_of
from ..files.side_files import Told
from .rows import Row

_NONE = Told()
NOTHING = "e3b0c44298fc"  # how the sha256 of no bytes begins, which some tools write as a hash


def entry(row: Row, metadata: Mapping[str, str], data_hash: str, beside: Told = _NONE) -> dict[str, Any]:
    """`data_hash` is the sha256 of the file's data section. What neither header nor contract says is None; of a merge
    there are its `parents`, too, and of one with a mask its `area`, a share of the picture. Author and permissions are
    those of the side files `beside` it where the header names none, and `source` has the programs that wrote them. JSON
    throughout."""
    own = Parent.of("", metadata, 1.0, 1.0, "")
    found = {"author": own.author, "permissions": permissions_of(own.contract.get("permissions")).in_words()}
    missing = ["author"] if not own.author else []
    missing += ["permissions"] if not (own.license or found["permissions"]) else []
    lent = {name: beside.values[name] for name in missing if name in beside.values}
    source = {name: beside.source[name] for name in lent}
    found |= lent
    parents = [{key: each.get(key) for key in ("name", "sha256", "strength")} for each in parents_of(metadata)
               if isinstance(each, dict)]  # fmt: skip
    return {
        "name": row.name.replace("\\", "/"),
        "sha256": data_hash,
        "strength": float(row.strength),
        "text_strength": float(row.text_strength),
        **({"area": round(row.region.share, 4)} if row.region else {}),
        "license": own.license or None,
        "author": found["author"] or None,
        "title": metadata.get("modelspec.title") or None,
        **({"parents": parents} if parents else {}),
        **({"permissions": found["permissions"]} if found["permissions"] else {}),
        **({"source": source} if source else {}),
    }


def stated_hash(metadata: Mapping[str, str]) -> str:
    """Return the data section's sha256 as the header tells it, 64 hex digits; "" when it tells none, or that of no
    bytes."""
    for key in ("sshs_model_hash", "modelspec.hash_sha256"):
        text = metadata.get(key, "").strip().lower().removeprefix("0x")
        if re.fullmatch(r"[0-9a-f]{64}", text) and not text.startswith(NOTHING):
            return text
    return ""


def lora_hashes(entries: Iterable[Mapping[str, Any]]) -> str:
    """`ink: 0123456789ab, oil: ...`, as A1111 writes "Lora hashes" and readers of pictures look for them; files of one
    name have their folders before it."""
    found: dict[str, str] = {}
    for each in entries:
        digest, path = each["sha256"][:12], re.sub(r"\.[^./]*$", "", each["name"])
        name = re.sub(r"[:,]", "", path.rpartition("/")[2])
        found[name if found.get(name, digest) == digest else re.sub(r"[:,]", "", path)] = digest
    return ", ".join(f"{name}: {digest}" for name, digest in found.items())
