"""Checks what pictures say of the LoRAs in them."""

from __future__ import annotations

import json

from lora_loom.lora_core.files.lineage import PARENTS
from lora_loom.lora_core.stack.attribution import entry, lora_hashes
from lora_loom.lora_core.stack.rows import Row


def test_hashes_as_a1111_writes_them() -> None:
    """Two files of one name are both told, one file twice is told once, and a name ends where a reader expects it."""
    named = [("art\\ink.safetensors", "a"), ("old/ink.safetensors", "b"), ("art/ink.safetensors", "a"),
             ("v1.5, x:2.safetensors", "c")]  # fmt: skip
    entries = [entry(Row(name, 1.0, 1.0), {}, digit * 64) for name, digit in named]
    assert lora_hashes(entries) == f"ink: {'a' * 12}, old/ink: {'b' * 12}, v1.5 x2: {'c' * 12}"


def test_a_merge_names_its_parents() -> None:
    ink = {"name": "ink", "sha256": "a" * 64, "strength": 0.5}
    told = {PARENTS: json.dumps([{**ink, "header": {"ss_epoch": "1"}, "parents": [ink]}, "junk"])}
    assert entry(Row("sum", 1.0, 1.0), told, "b" * 64)["parents"] == [ink]
    assert "parents" not in entry(Row("ink", 1.0, 1.0), {}, "a" * 64)
