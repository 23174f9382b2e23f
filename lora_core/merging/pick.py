"""Layers by their names: which to keep, and which to leave out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..training.targets import summary


@dataclass(frozen=True)
class Pick:
    """Patterns as of fnmatch, each of which a part of the name may match; without any to `keep`, all are kept that none
    to `drop` hits."""

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    @classmethod
    def of(cls, keep: str, drop: str) -> Pick:
        """From texts with patterns between commas or on lines of their own."""
        return cls(_patterns(keep), _patterns(drop))

    def takes(self, name: str) -> bool:
        return (not self.keep or _hit(name, self.keep)) and not _hit(name, self.drop)

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError when a pattern hits no name, or when nothing is left, with what there is."""
        names = list(names)
        for pattern in (*self.keep, *self.drop):
            if not any(_hit(name, (pattern,)) for name in names):
                raise ValueError(f"no layer has {pattern!r} in its name; there are {summary(names)}")
        if not any(map(self.takes, names)):
            raise ValueError(f"keep and drop select none of the {len(names)} layers; there are {summary(names)}")


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip())


def _hit(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, f"*{pattern}*") for pattern in patterns)
