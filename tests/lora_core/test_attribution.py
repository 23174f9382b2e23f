"""What pictures say of the LoRAs in them."""

from __future__ import annotations

from lora_loom.lora_core.attribution import entry, lora_hashes
from lora_loom.lora_core.rows import Row


def test_hashes_as_a1111_writes_them() -> None:
    """Two files of one name are both told, one file twice is told once, and a name ends where a reader expects it."""
    named = [("art\\ink.safetensors", "a"), ("old/ink.safetensors", "b"), ("art/ink.safetensors", "a"),
             ("v1.5, x:2.safetensors", "c")]  # fmt: skip
    entries = [entry(Row(name, 1.0, 1.0), {}, digit * 64) for name, digit in named]
    assert lora_hashes(entries) == f"ink: {'a' * 12}, old/ink: {'b' * 12}, v1.5 x2: {'c' * 12}"
