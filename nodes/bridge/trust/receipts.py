"""Signs files that are saved, and says of files that are loaded who signed them and what has changed since."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ....lora_core.files import guard
from ....lora_core.files.save import Seal
from ....lora_core.trust.ed25519 import public_key
from ....lora_core.trust.keys import KEY, NAME, Met, known, met, own_name, remember, secret
from ....lora_core.trust.sealing import seal
from ....lora_core.trust.signer import Signer
from ....lora_core.trust.statement import STATEMENT, receipt_hash
from ....lora_core.trust.verdict import Verdict, judged
from ..host.folders import own_folder
from ..host.model_files import lora_hash
from ..host.progress import Progress

log = logging.getLogger("lora_loom")


@dataclass(frozen=True)
class Signing:
    """Holds what signs a file, and the line that says so."""

    seal: Seal
    note: str


def signing(path: Path) -> Signing:
    """Return what signs a file that is going to stand at this path, with this machine's key; the receipt of a file that
    stands there is noted as the one that is replaced. Raises ValueError with the cure when the key cannot be used."""
    folder = own_folder()
    try:
        seed, name = secret(folder), own_name(folder)
        signer = Signer(public_key(seed), name)
        remember(folder, signer, date.today(), own=True)
    except OSError as error:
        raise ValueError(
            f"the key to sign with, {folder.name}/{KEY} in ComfyUI's user folder, cannot be read or made "
            f"({error.strerror or error}); look at the rights of the folder and at its disk"
        ) from None
    hint = "" if name else f"; write a name such as ink@ada into {folder.name}/{NAME} in ComfyUI's user folder"
    return Signing(seal([seed], name, _replaced(path)), f"signed as {signer}{hint}")


def _replaced(path: Path) -> list[str]:
    """Hashes of the receipts of a file; none where there is no sound file."""
    try:
        text = guard.contents(path).metadata.get(STATEMENT) if path.exists() else None
    except ValueError:
        return []
    return [receipt_hash(text)] if text else []


def met_signers(verdict: Verdict) -> list[Met]:
    """Return how this machine knows those who signed a file. Whoever is new, and signed what is in the file, is known
    from now on."""
    folder = own_folder()
    lines = known(folder)
    found = [met(signer, lines) for signer in verdict.signers]
    for each in found if verdict.is_signed else ():
        if each.standing == "new":
            try:
                remember(folder, each.signer, date.today())
            except OSError as error:
                log.warning("the key %s cannot be noted as known: %s", each.signer.fingerprint, error)
    return found


def verdict_of(found: guard.Contents, digest: Callable[[], str]) -> Verdict:
    """Return the verdict on a file's receipt; `digest` computes the sha256 of its data section."""
    return judged(found.metadata, found.tensors, digest)


def lines(name: str, path: Path, metadata: Mapping[str, str]) -> list[str]:
    """Return one line about the signature of a file that is loaded; none of a file that has no signature. Its data is
    hashed once, and again when its size or time changes; LoRA Passport always does."""
    if STATEMENT not in metadata:
        return []
    verdict = verdict_of(guard.contents(path), lambda: lora_hash(name, Progress(1)))
    return [line(path.stem, verdict, met_signers(verdict))]


def line(name: str, verdict: Verdict, signers: Sequence[Met]) -> str:
    """Return who signed a file and what has changed, in one line; a warning where it is not to be believed."""
    if not verdict.is_signed:
        return f"warning: {name}: {verdict.sentence()}"
    alarm = "warning: " if any(each.standing == "other key" for each in signers) else ""
    state = "unchanged" if verdict.state == "valid" else verdict.sentence()
    return f"{alarm}{name}: {' and '.join(map(str, signers))}, {state}"
