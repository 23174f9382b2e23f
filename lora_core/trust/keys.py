"""The key that a person signs with, and the keys that are known: trust on first use, as SSH has it.

A folder has `signing_key`, readable by its owner alone; `signing_name.txt`, what the owner calls it; and
`known_signers.txt`, which may be shared: a line for each key, `ed25519 <public key in Base64> <first seen> <name>`.
"""

from __future__ import annotations

import os
import secrets
import stat
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from ..files.save import write_whole
from . import ed25519
from .signer import Signer, alike, readable

KEY, NAME, KNOWN = "signing_key", "signing_name.txt", "known_signers.txt"
_MARK = "lora-loom-ed25519-secret"
MOST_KNOWN, _LARGEST = 10_000, 2**21  # lines, and bytes of the file
Standing = Literal["known", "new", "other key"]


def secret(folder: Path) -> bytes:
    """Return the secret of this machine's key, 32 bytes, which is made when there is none.

    Raises ValueError, with the cure and without what is in it, for a file that others may read, that belongs to
    somebody else, or that is no key; OSError where the disk does not take it.
    """
    path = folder / KEY
    if not path.exists():
        _make(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        _check_rights(file.fileno())
        text = file.read(256)
    mark, _, encoded = text.decode("latin-1").strip().partition(" ")
    try:
        seed = b64decode(encoded, validate=True)
    except ValueError:
        seed = b""
    if mark != _MARK or len(seed) != ed25519.KEY_SIZE:
        raise ValueError(f"{KEY} holds no signing key; put it back from a copy, or delete it, and a new key is made")
    return seed


def own_name(folder: Path) -> str:
    """Return the name that this machine's key goes by; empty where none was chosen."""
    try:
        with open(folder / NAME, encoding="utf-8-sig") as file:
            return readable(file.readline(1024))
    except (OSError, UnicodeDecodeError):
        return ""


def _make(path: Path) -> None:
    """Put a new key where none is. Of two processes that do, one wins, and both use its key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with open(os.open(unfinished, flags, stat.S_IRUSR | stat.S_IWUSR), "wb") as file:
            _check_rights(file.fileno())  # before there is a secret in it
            file.write(f"{_MARK} {b64encode(secrets.token_bytes(ed25519.KEY_SIZE)).decode()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        _put(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _put(unfinished: Path, path: Path) -> None:
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return
    except OSError:  # a disk without links
        if not path.exists():
            os.rename(unfinished, path)


def _check_rights(descriptor: int) -> None:
    """Windows keeps rights in lists that Python does not read: there the file has those of the folder that it is in."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{KEY} is not a regular file; delete it, and a new key is made")
    if os.name == "nt":
        return
    if found.st_uid != os.geteuid():
        raise ValueError(f"{KEY} belongs to another user of this machine; run ComfyUI as that user, or delete the file")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(
            f"{KEY} can be read by other users of this machine (rights {stat.S_IMODE(found.st_mode):o}, not 600): run "
            "chmod 600 on it, and delete it for a new key if somebody may have read it. A disk that keeps no rights "
            "cannot hold it: start ComfyUI with --user-directory on another disk"
        )


@dataclass(frozen=True)
class Known:
    """A line of the file: a key that was seen, when first, and by which name."""

    signer: Signer
    since: str

    def __str__(self) -> str:
        return f"ed25519 {b64encode(self.signer.public).decode()} {self.since} {self.signer.name}".rstrip()


def known(folder: Path) -> list[Known]:
    """Return the keys that are known here. Lines that are no such lines, and what is beyond the bounds, are left
    out."""
    try:
        with open(folder / KNOWN, encoding="utf-8-sig", errors="replace") as file:
            lines = file.read(_LARGEST).splitlines()[:MOST_KNOWN]
    except OSError:
        return []
    return [found for line in lines if (found := _line(line))]


def _line(text: str) -> Known | None:
    parts = text.split(maxsplit=3)
    if len(parts) < 3 or parts[0] != "ed25519":
        return None
    try:
        public, since = b64decode(parts[1], validate=True), date.fromisoformat(parts[2])
    except ValueError:
        return None
    name = readable(parts[3]) if len(parts) > 3 else ""
    return Known(Signer(public, name), since.isoformat()) if len(public) == ed25519.KEY_SIZE else None


@dataclass(frozen=True)
class Met:
    """A signer as this machine knows it: by its `known` line, or by the line of another key of that name."""

    signer: Signer
    standing: Standing
    line: Known | None = None

    def __str__(self) -> str:
        """Return "signed by" and who, with what is to be known of that."""
        if self.standing == "other key" and self.line:
            return (
                f"signed as {self.signer.name}, but with another key ({self.signer.fingerprint}) than the "
                f"{self.line.signer.name} known since {self.line.since} ({self.line.signer.fingerprint}); ask its "
                "author in another way before you trust it"
            )
        if self.standing == "new" or not self.line:
            new = f"{self.signer.fingerprint}, new to this machine"
            return f"signed by {self.signer.name} ({new})" if self.signer.name else f"signed by {new}"
        here = self.line.signer.name or self.signer.name or self.signer.fingerprint
        called = self.signer.name and alike(self.signer.name) != alike(here)
        return f"signed by {here}" + (f" (who calls it {self.signer.name})" if called else "")


def met(signer: Signer, lines: Iterable[Known]) -> Met:
    """Return how a signer stands among known keys. A key is known by its bytes; a name alone is worth nothing."""
    namesake = None
    for each in lines:
        if each.signer.public == signer.public:
            return Met(signer, "known", each)
        if signer.name and each.signer.name and alike(each.signer.name) == alike(signer.name):
            namesake = namesake or each
    return Met(signer, "other key" if namesake else "new", namesake)


def remember(folder: Path, signer: Signer, day: date, own: bool = False) -> None:
    """Add a key to the file unless it is there, or another has its name, or the file is full; one's `own` always, under
    the name that it has now. Raises OSError where the disk does not take it."""
    there = met(signer, lines := known(folder))
    if own and there.line and there.line.signer == signer:
        return
    if not own and (there.standing != "new" or len(lines) >= MOST_KNOWN):
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept = [
        text for text in _texts(folder / KNOWN) if (line := _line(text)) is None or line.signer.public != signer.public
    ]
    since = there.line.since if there.line and there.standing == "known" else day.isoformat()
    write_whole(folder / KNOWN, "\n".join([*kept, str(Known(signer, since)), ""]).encode())


def _texts(path: Path) -> list[str]:
    return path.read_text("utf-8-sig", "replace").splitlines() if path.exists() else _ABOUT


_ABOUT = [
    "# Keys that LoRA files were signed with: kind, public key, first seen, name. Lines of other people can be added.",
    "# Remove a line and its key is new again. A name belongs to the first key that has it.",
]
