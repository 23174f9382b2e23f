"""Corrections of a weight that are no plain LoRA, one kind to a file."""

from .correction import Correction
from .dora import DoRA
from .full import Difference, Replacement
from .glora import GLoRA
from .loha import LoHa
from .lokr import LoKr
from .oft import BOFT, OFT
from .padded import Padded
from .placed import Placed, placed

KINDS: tuple[type[Correction], ...] = (LoHa, LoKr, GLoRA, OFT, Difference, Replacement)

__all__ = ["BOFT", "KINDS", "OFT", "Correction", "Difference", "DoRA", "GLoRA", "LoHa", "LoKr", "Padded", "Placed",
           "Replacement", "placed"]  # fmt: skip
