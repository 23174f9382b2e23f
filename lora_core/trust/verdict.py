"""Tells what a file's receipt is worth: whether it fits, and what has changed since it was signed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..files.layers import TensorInfo
from .signer import Signer, readable
from .statement import STATEMENT, Statement, Subject, changes, fitting, opened

State = Literal["unsigned", "valid", "edited", "foreign", "forged", "malformed"]
_NAMED = 4  # texts of the header that a sentence names


@dataclass(frozen=True)
class Verdict:
    """`unsigned`: no receipt. `valid`: all is as it was signed. `edited`: texts of the header, which `changed` names,
    are not. `foreign`: the receipt is of other tensors. `forged`: its signature does not fit. `malformed`: it cannot
    be read, and `fault` says why. `signers` are those whose signatures fit.
    """

    state: State
    signers: tuple[Signer, ...] = ()
    statement: Statement | None = None
    changed: tuple[str, ...] = ()
    fault: str = ""

    @property
    def is_signed(self) -> bool:
        """Return whether somebody stands for the tensors of this file."""
        return self.state in ("valid", "edited")

    def sentence(self) -> str:
        """Return what is true of the file, after its name or "It is"; who signed it is said elsewhere."""
        return {
            "unsigned": "not signed",
            "valid": "unchanged since it was signed",
            "edited": f"header changed since it was signed ({self.texts()})",
            "foreign": "its signature is of other weights than are in the file; get the file from its author again",
            "forged": "its signature does not fit what it says; get the file from its author again",
            "malformed": f"its signature cannot be read: {self.fault}; get the file from its author again",
        }[self.state]

    def texts(self) -> str:
        """Return the changed texts by the last parts of their keys."""
        names = [readable(key.removeprefix("modelspec.")) or "?" for key in self.changed]
        more = len(names) - _NAMED
        return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def judged(
    metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo], digest: Callable[[], str]
) -> Verdict:  # fmt: skip
    """Return the verdict on a file, by its header and the sha256 of its data section. `digest` computes that, and is
    asked only when there is a receipt whose signature fits; what the header says of it is never believed."""
    text = metadata.get(STATEMENT)
    if text is None:
        return Verdict("unsigned")
    try:
        found = opened(text)
    except ValueError as error:
        return Verdict("malformed", fault=str(error))
    signers = fitting(found)
    if signers is None:
        return Verdict("forged", statement=found)
    changed = changes(found, Subject(digest(), tensors, metadata))
    if changed is None:
        return Verdict("foreign", signers, found)
    return Verdict("edited" if changed else "valid", signers, found, changed)
