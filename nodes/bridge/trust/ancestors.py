"""The LoRA files on a MODEL, as parents of what is made of it: with their own parents and contracts."""

from __future__ import annotations

from collections.abc import Sequence

from ....lora_core.files.lineage import Parent
from ..host.wires import Model

KEY = "lora_loom_parents"


def attach(model: Model, parents: Sequence[Parent]) -> None:
    """Add to what is on the MODEL. Clones share the list, so it is never changed in place."""
    model.set_attachments(KEY, [*learned_on(model), *parents])


def learned_on(model: Model) -> list[Parent]:
    """Return the rows of stacks that are on a MODEL, in their order."""
    return list(model.get_attachment(KEY) or ())
