"""Corrections of a weight that are no plain LoRA, one kind to a file."""

from .correction import Correction
from .dora import DoRA
from .placed import placed

KINDS: tuple[type[Correction], ...] = ()

__all__ = ["KINDS", "Correction", "DoRA", "placed"]
