"""LoRA Passport: reads a file afresh, whatever is on record of it, and looks at all that it says of itself."""

from __future__ import annotations

import comfy.model_management

from ....lora_core.files import guard
from ....lora_core.files.hashes import data_hash
from ....lora_core.files.listing import Listing, listing
from ....lora_core.trust.passport import Passport
from ..host.folders import lora_path
from ..host.progress import Progress
from .receipts import met_signers, verdict_of


def passport(name: str) -> tuple[Passport, Listing]:
    """Return what the file says of itself, and what it holds. Raises ValueError, as `lora_path` and `guard.contents`,
    for a file that is not there or not sound."""
    path = lora_path(name)
    found = guard.contents(path)
    progress = Progress(max(found.size - found.data_start, 1))

    def tick(done: int) -> None:
        progress.update(done)
        comfy.model_management.throw_exception_if_processing_interrupted()

    digest = data_hash(path, tick)
    verdict = verdict_of(found, lambda: digest)
    held = listing(path, found, comfy.model_management.throw_exception_if_processing_interrupted)
    return Passport(path.stem, found.metadata, digest, verdict, met_signers(verdict)), held
