"""The bytes of a safetensors file, in a layout that depends on nothing but its content.

The safetensors library orders metadata by a randomly seeded hash, so the same training would not give the same
file. The data section is the library's; the header is rewritten with sorted metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """`entries` are the header's tensor records in file order, `data` the data section."""

    entries: dict[str, Any]
    data: memoryview

    def model_hash(self) -> str:
        """sha256 of the data section; 64 hex digits. Unchanged by metadata and by renaming all keys in order."""
        return self._data_sha256

    @cached_property
    def _data_sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def legacy_hash(self, metadata: Mapping[str, str]) -> str:
        """sd-scripts' `sshs_legacy_hash`: 8 hex digits over 64 KiB at 1 MiB of a file with only the `ss_*` metadata.

        Empty when the file is shorter: the hash of nothing would be shared with every other small file.
        """
        head = self.header({key: value for key, value in metadata.items() if key.startswith("ss_")})
        start = 0x100000 - len(head)
        window = head[0x100000:0x110000] + bytes(self.data[max(start, 0) : max(start + 0x10000, 0)])
        return hashlib.sha256(window).hexdigest()[:8] if window else ""

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Length and JSON, padded to 8 bytes."""
        described = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        text = json.dumps({**described, **self.entries}, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def pack(tensors: Mapping[str, Tensor]) -> Packed:
    """Serialise contiguous CPU tensors, ordered by alignment and name."""
    raw = safetensors.torch.save(dict(sorted(tensors.items())))
    start = 8 + int.from_bytes(raw[:8], "little")
    return Packed(json.loads(raw[8:start]), memoryview(raw)[start:])
