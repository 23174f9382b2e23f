"""Per-block strengths: what a text says about the layers of a model.

    IN=0.5, MID=1, OUT=0            groups of blocks of a UNet; also single ones and ranges, OUT3 and IN4-8
    double.0-9=0, single=0.7        blocks of a transformer, under the names its layers have
    ALL=0, *attn*=1                 everything, then layer names with wildcards
    /single_blocks\\.(7|12)\\./=1     layer names that a regular expression finds
    1,0,0,0,1,1,1,1,1,1,1,1         a vector of A1111's LoRA Block Weight, of 12 or 20 (SDXL), 17 or 26 (SD 1.5) numbers
    style                           a preset of the family; also `style, MID=0.5`

What is said later counts; what is not named stays at 1. Names come from the model and not from the file, so a LoRA that
skips blocks shifts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from math import isfinite

from ..adapter import TEXT_PREFIX

ALL, TEXT, REST = "ALL", "TEXT", "REST"
LIMIT = 20.0
MOST_PARTS = 4

_PREFIX = "diffusion_model."
_UNET = (
    ("IN", re.compile(r"input_blocks\.(\d+)\.")),
    ("MID", re.compile(r"middle_block\.()")),
    ("OUT", re.compile(r"output_blocks\.(\d+)\.")),
)
_BLOCK = re.compile(r"(.*?(?:blocks|layers|refiner))\.(\d+)\.")
_SELECTOR = re.compile(r"(.*?)(?:\.?(\d{1,9})(?:-(\d{1,9}))?)?")


def _numbered(kind: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{kind}{number}" for number in numbers)


VECTORS: Mapping[int, tuple[str, ...]] = {
    12: (TEXT, *_numbered("IN", 4, 5, 7, 8), "MID", *_numbered("OUT", *range(6))),
    17: (TEXT, *_numbered("IN", 1, 2, 4, 5, 7, 8), "MID", *_numbered("OUT", *range(3, 12))),
    20: (TEXT, *_numbered("IN", *range(9)), "MID", *_numbered("OUT", *range(9))),
    26: (TEXT, *_numbered("IN", *range(12)), "MID", *_numbered("OUT", *range(12))),
}
"""Names the blocks that the numbers of a vector are for. The first is the text encoders'; the short ones leave out
blocks that have no attention."""
_LAST_OUT = {12: 8, 17: 11, 20: 8, 26: 11}

PRESETS: Mapping[str, Mapping[str, str]] = {
    "SD 1.5": {
        "composition": "OUT=0",
        "details": "ALL=0, OUT=1",
        "middle": "ALL=0, IN7-8=1, MID=1, OUT3-5=1",
    },
    "SDXL": {
        "content": "ALL=0, OUT0=1",
        "style": "ALL=0, OUT1=1",
    },
    **dict.fromkeys(
        ("FLUX.1 dev", "FLUX.1 schnell", "Chroma", "FLUX.2"),
        {"double": "ALL=0, double=1", "single": "ALL=0, single=1"},
    ),
}
"""Presets by family. SDXL's are the blocks of B-LoRA (arXiv:2403.14572)."""


@dataclass(frozen=True)
class Block:
    """Says where a layer is: `OUT` and 3, `double_blocks` and 7, `MID`, `TEXT` or `REST` without a number."""

    group: str
    number: int | None = None

    def __str__(self) -> str:
        if self.number is None:
            return self.group
        return f"{self.group}{'' if self.group in ('IN', 'OUT') else '.'}{self.number}"


def block_of(layer: str) -> Block:
    """Return the block of a layer, named as `adapter.Adapter` names layers of a model."""
    if layer.startswith(TEXT_PREFIX):
        return Block(TEXT)
    path = layer.removeprefix(_PREFIX)
    for group, pattern in _UNET:
        if found := pattern.match(path):
            return Block(group, int(found[1]) if found[1] else None)
    found = _BLOCK.match(path)
    return Block(found[1], int(found[2])) if found else Block(REST)


def block_names(layers: Iterable[str]) -> list[str]:
    """The names that a text may use for these layers, groups with their range: `IN0-11`, `double.0-18`."""
    numbers: dict[str, list[int]] = {}
    for block in map(block_of, layers):
        numbers.setdefault(block.group, []).extend([] if block.number is None else [block.number])
    return [
        f"{Block(_short(group), min(found))}-{max(found)}" if found and min(found) < max(found)
        else str(Block(_short(group), *found[:1]))
        for group, found in sorted(numbers.items(), key=lambda item: item[0] in (REST, TEXT))
    ]  # fmt: skip


def parts(layers: Iterable[str]) -> dict[str, list[str]]:
    """Return layers by the name that a text has for their part of the model: groups of blocks, `MOST_PARTS` at most, or
    thirds of the only group there is. Text encoders and what lies in no block are no part; none where there is only
    one."""
    groups: dict[str, dict[int, list[str]]] = {}
    for layer in layers:
        block = block_of(layer)
        if block.group not in (TEXT, REST):
            groups.setdefault(block.group, {}).setdefault(block.number or 0, []).append(layer)
    if len(groups) == 1:
        ((group, numbered),) = groups.items()
        return _thirds(group, numbered)
    found = {_short(group): list(chain.from_iterable(numbered.values())) for group, numbered in groups.items()}
    largest = sorted(found, key=lambda name: -len(found[name]))[:MOST_PARTS]
    return {name: found[name] for name in found if name in largest}


def _thirds(group: str, numbered: Mapping[int, list[str]]) -> dict[str, list[str]]:
    numbers, count = sorted(numbered), min(3, len(numbered))
    if count < 2:
        return {}
    cuts = [numbers[i * len(numbers) // count : (i + 1) * len(numbers) // count] for i in range(count)]
    return {
        f"{Block(_short(group), own[0])}{f'-{own[-1]}' if own[1:] else ''}": [each for i in own for each in numbered[i]]
        for own in cuts
    }


def strengths(text: str, layers: Iterable[str], family: str = "") -> dict[str, float]:
    """Return the factor of every layer. Raises ValueError, one sentence with the names that are valid, for a text that
    names anything else."""
    layers = list(layers)
    factors = dict.fromkeys(layers, 1.0)
    for selector, value in _items(text, layers, family):
        found = list(_selected(selector, layers))
        if not found:
            raise ValueError(f"blocks: {selector} is not a block of this model, which has {_listed(layers, family)}")
        factors |= dict.fromkeys(found, value)
    return factors


def _items(text: str, layers: list[str], family: str) -> Iterator[tuple[str, float]]:
    words = [word.strip() for word in _split(text)]
    words = [word for word in words if word]
    if len(words) > 1 and all(_number(word) is not None for word in words):
        yield from _vector(words, layers)
        return
    presets = PRESETS.get(family, {})
    for word in words:
        name, equals, value = word.rpartition("=")
        if not equals and word.lower() in presets:
            yield from _items(presets[word.lower()], layers, family)
        elif not equals:
            raise ValueError(f"blocks: {word!r} is not a preset; write name=strength with one of these names: "
                             f"{_listed(layers, family)}")  # fmt: skip
        elif (number := _number(value)) is None:
            raise ValueError(f"blocks: {value.strip()!r} in {word!r} is not a number from -{LIMIT:g} to {LIMIT:g}")
        else:
            yield name.strip(), number


def _vector(words: list[str], layers: list[str]) -> Iterator[tuple[str, float]]:
    blocks = set(map(block_of, layers))
    last = max((block.number or 0 for block in blocks if block.group == "OUT"), default=None)
    sizes = [size for size in VECTORS if _LAST_OUT[size] == last]
    if len(words) not in sizes:
        wanted = f"{' or '.join(map(str, sizes))} numbers" if sizes else "names of blocks"
        raise ValueError(f"blocks: a vector of {len(words)} numbers does not fit this model; write {wanted}")
    present = set(map(str, blocks))
    for name, word in zip(VECTORS[len(words)], words, strict=True):
        if name in present:
            yield name, _number(word) or 0.0


def _selected(selector: str, layers: list[str]) -> Iterator[str]:
    if len(selector) > 2 and selector.startswith("/") and selector.endswith("/"):
        pattern = _compiled(selector[1:-1])
        return (layer for layer in layers if pattern.search(layer))
    if any(mark in selector for mark in "*?["):
        return (layer for layer in layers if fnmatchcase(layer, selector) or fnmatchcase(layer, _PREFIX + selector))
    return (layer for layer in layers if _names(selector, block_of(layer)))


def _names(selector: str, block: Block) -> bool:
    """Whether `IN`, `in4`, `IN4-8`, `double.0-9`, `M00` or `ALL` means the block."""
    if selector.upper() == ALL:
        return True
    if block.group == "MID" and selector.upper() in ("MID", "M00", "M"):
        return True
    if block.group == TEXT:
        return selector.upper() in (TEXT, "BASE")
    found = _SELECTOR.fullmatch(selector)
    if found is None or found[1].lower() not in (block.group.lower(), _short(block.group).lower()):
        return False
    first, last = found[2], found[3]
    return first is None or (block.number is not None and int(first) <= block.number <= int(last or first))


def _short(group: str) -> str:
    """`double` for `double_blocks`."""
    return group.removesuffix("_blocks")


def _split(text: str) -> list[str]:
    """At commas, semicolons and line ends, but not inside a regular expression."""
    return re.findall(r"(?:/(?:\\.|[^/\n])+/|[^,;\n])+", text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and abs(value) <= LIMIT else None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"blocks: /{pattern}/ is not a valid regular expression ({error})") from None


def _listed(layers: list[str], family: str) -> str:
    names = ", ".join([*block_names(layers), ALL])
    return names + "".join(f", the preset {name}" for name in PRESETS.get(family, {}))
