"""Checks what rows say that a LORA_STACK does not carry to other packs."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.stack.foreign_rows import lost
from lora_loom.lora_core.stack.rows import parse

ROWS = parse("<lora:ink:1:blocks=MID=0>\n<lora:oil:1:start=0.5>\n<lora:ada:0.5:end=0.5>\n<lora:plain:1:0.5>")


def test_what_is_lost_is_named_with_who_loses_it() -> None:
    (said,) = lost(ROWS, ["CR Apply LoRA Stack", "Their Loader"])
    assert said.startswith(
        "blocks of ink and start and end of oil, ada have no effect in CR Apply LoRA Stack, Their Loader: "
    )
    (spans,) = lost(ROWS[1:], ["Their Loader"])
    assert spans.startswith("start and end of oil, ada have no effect in Their Loader: ")
    assert lost(ROWS, None) == ["through lora_stack, only nodes of LoRA Loom receive blocks, start, end and masks"]


@pytest.mark.parametrize(
    "text", ["", "<lora:a:1:0.5>", "<lora:a:1:blocks=MID=0:off>", "<lora:a:0:start=0.5>", "<lora:a:1:blocks= >"]
)
def test_nothing_is_said_where_nothing_is_lost(text: str) -> None:
    assert lost(parse(text), ["Their Loader"]) == lost(parse(text), None) == []


def test_nothing_is_said_when_nobody_else_reads_them() -> None:
    assert lost(ROWS, []) == []
