"""What a stack says of the contracts of its rows."""

from __future__ import annotations

import pytest

from lora_core.files.rights import rights_of
from lora_core.trust.contract import Contract
from lora_core.trust.stack_lines import Base, Signed, lines

BASE = Base("sdxl.safetensors", "ab" * 32)


def said(*rows: Signed, base: Base = BASE) -> list[str]:
    return lines(rows, base)


def row(name: str = "ink", strength: float = 1.0, licence: str = "", **fields: object) -> Signed:
    return Signed(name, strength, Contract(licence=licence, **fields), rights_of(licence))


def test_nothing_is_said_of_what_is_in_order() -> None:
    assert said() == said(Signed("a", 1.0), Signed("b", 1.0)) == []
    assert said(row(concept="ink", base="SDXL.safetensors", strength=0.5)) == []


@pytest.mark.parametrize(
    ("name", "digest", "base", "line"),
    [
        ("old-name.safetensors", "ab" * 32, BASE, ""),  # renamed: its hash is the same
        ("sdxl.safetensors", "cd" * 32, BASE, "made for sdxl.safetensors, used on sdxl.safetensors"),
        ("pony.safetensors", "", BASE, "made for pony.safetensors, used on sdxl.safetensors"),
        ("pony.safetensors", "cd" * 32, Base("sdxl.safetensors"), "made for pony.safetensors, used on sdxl"),
        ("pony.safetensors", "cd" * 32, Base(), ""),
        ("", "cd" * 32, BASE, "made for the model cdcdcdcdcd, used on sdxl"),
    ],
)  # fmt: skip
def test_another_base(name: str, digest: str, base: Base, line: str) -> None:
    found = said(row(base=name, base_sha256=digest), base=base)
    assert bool(found) == bool(line) and line in "".join(found)


def test_two_rows_own_the_same() -> None:
    first = row("a", concept="Ink", trigger="inkw, wash")
    assert said(first, row("b", concept="ink")) == ["b: the same concept as a (ink): lower one of them"]
    assert said(first, row("b", trigger="WASH")) == ["b: the same trigger as a (wash): both answer to it"]


def test_strengths() -> None:
    def told(strength: float, recommended: float) -> list[str]:
        return said(Signed("ink", strength, Contract(strength=recommended)))

    assert told(0.8, 0.8) == told(-0.5, 0.8) == told(0.5, -0.8) == []
    assert told(-1.0, 0.8) == ["ink: strength -1 is above the recommended 0.8"]


def test_licences_that_do_not_go_together() -> None:
    found = said(row("a", licence="CC-BY-SA-4.0"), row("b", licence="GPL-3.0"), row("c", licence="CC-BY-NC-4.0"))
    assert found == [
        "pictures of this stack: no commercial use (c), licences that exclude each other (a, b ask for their own "
        "licence on what is made), credit a, b, c"
    ]
    assert said(row("a", licence="CC0-1.0"), row("b", licence="MIT")) == ["pictures of this stack: credit b"]


def test_rows_without_a_contract_are_one_line() -> None:
    bare = [Signed(f"x{number}", 1.0) for number in range(5)]
    assert said(row(), *bare) == ["no contract: x0, x1, x2 and 2 more"]
