"""Tells who made what went into a picture: one entry per adapter, for the MODEL and for the picture's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..files.lineage import parents_of
from .rows import Row

NOTHING = "e3b0c44298fc"  # how the sha256 of no bytes begins, which some tools write as a hash


def entry(row: Row, metadata: Mapping[str, str], data_hash: str) -> dict[str, Any]:
    """`data_hash` is the sha256 of the file's data section. What the header does not say is None; of a merge there are
    its `parents`, too. JSON throughout."""
    parents = [{key: each.get(key) for key in ("name", "sha256", "strength")} for each in parents_of(metadata)
               if isinstance(each, dict)]  # fmt: skip
    return {
        "name": row.name.replace("\\", "/"),
        "sha256": data_hash,
        "strength": float(row.strength),
        "text_strength": float(row.text_strength),
        "license": metadata.get("modelspec.license") or None,
        "author": metadata.get("modelspec.author") or None,
        "title": metadata.get("modelspec.title") or None,
        **({"parents": parents} if parents else {}),
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
