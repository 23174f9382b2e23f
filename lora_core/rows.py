"""Rows of a stack: what one LoRA file is asked to do."""

from __future__ import annotations


class Row(tuple):
    """A LORA_STACK entry as other packs unpack it, `(name, strength, text_strength)`, that knows more.

    `blocks` is the per-block strength text ("" is 1 everywhere); `start` and `end` are shares of sampling in 0..1.
    """

    blocks: str
    start: float
    end: float

    def __new__(
        cls, name: str, strength: float, text_strength: float, blocks: str = "", start: float = 0.0, end: float = 1.0
    ) -> Row:
        row = super().__new__(cls, (name, strength, text_strength))
        row.blocks, row.start, row.end = blocks, start, end
        return row

    @property
    def name(self) -> str:
        return self[0]

    @property
    def strength(self) -> float:
        return self[1]

    @property
    def text_strength(self) -> float:
        return self[2]
