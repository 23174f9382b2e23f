"""Puts a receipt into the header of a file that is about to be written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..files.layers import TensorInfo
from ..files.packing import Packed
from ..files.save import Seal
from .statement import STATEMENT, Subject, sealed, stated


def seal(seeds: Sequence[bytes], name: str = "", replaces: Iterable[str] = ()) -> Seal:
    """Return what `save` is to add to a finished header: a receipt that is signed with each secret; arguments as of
    `stated`. Raises ValueError as `stated` does."""
    replaced = tuple(replaces)

    def add(metadata: Mapping[str, str], packed: Packed) -> dict[str, str]:
        tensors = {
            key: TensorInfo(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for key, entry in packed.entries.items()
        }
        subject = Subject(packed.model_hash(), tensors, metadata)
        return {**metadata, STATEMENT: sealed(stated(subject, name, replaced), seeds)}

    return add
