"""The texts in our scripts that a person reads, as far as they can be told from names and codes."""

from __future__ import annotations

import re
from collections.abc import Iterator

TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
    |(?P<regex>(?<=[(,=:\[!&|?{};\s])/(?![/*\s])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n])+/[a-z]*(?=[\s).,;]))
    |(?P<plain>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<tick>`)""",
    re.VERBOSE | re.DOTALL,
)
MEANT = re.compile(r"(?:\b(?:word|phrase)\(|[=!]==)\s*$")  # looked up, or compared with what is no text
LISTED = re.compile(r"\[[^\[\]]*\](?=\.includes\()")
WORDS = re.compile(r"^(?=.*[a-z])[^\W\d_][^\W\d_]+[.?!]?$|[^\W\d_]{2,}[,:;.]? [^\W_]|[^\W_]%? [^\W\d_]{2,}")
CODE = re.compile(r"^[a-z][\w$-]*$|^[\w$]*[a-z][A-Z]\w*$|[{}\[\]<>=#/]|loom-|--|^\W*\.|px\b|^pi |-gradient|\bM\d")
HOLE = "0"


def untold(script: str) -> list[str]:
    """The texts that look as if a person read them and go through neither `word` nor `phrase`; a hole is a 0."""
    texts = _texts(LISTED.sub("", script))
    return [text for text in texts if WORDS.search(text) and not CODE.search(text)]


def _texts(script: str) -> Iterator[str]:
    """The string and template literals, those within templates too, but for what is looked up or compared."""
    at = 0
    while found := TOKEN.search(script, at):
        at, before = found.end(), script[max(0, found.start() - 99) : found.start()]
        text, inner = found[0][1:-1], []
        if found.lastgroup == "tick":
            text, inner, at = _template(script, at)
        if found.lastgroup in ("plain", "tick") and not MEANT.search(before):
            yield text
        for each in inner:
            yield from _texts(each)


def _template(script: str, at: int) -> tuple[str, list[str], int]:
    """The text of a template from behind its first tick, what is in its holes, and where it ends."""
    text, inner = "", []
    while script[at] != "`":
        if script.startswith("${", at):
            end = _closing(script, at + 2)
            inner.append(script[at + 2 : end])
            text, at = text + HOLE, end + 1
        else:
            step = 2 if script[at] == "\\" else 1
            text, at = text + script[at : at + step], at + step
    return text, inner, at + 1


def _closing(script: str, at: int) -> int:
    """Where the brace is that closes a hole."""
    depth = 1
    while depth:
        if script[at] == "`":
            at = _template(script, at + 1)[2]
        else:
            depth += {"{": 1, "}": -1}.get(script[at], 0)
            at += 1
    return at - 1
