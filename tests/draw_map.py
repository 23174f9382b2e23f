"""Draws docs/rooms.svg, the rooms of nodes/bridge on their floors and what each imports, from the imports themselves.

python tests/draw_map.py

An arrow goes from a room to one that its files import, in the colour of the room that it comes from. Between them it
runs behind the rooms that it passes. The colours can be read on white and on black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.comfyui import ROOT
from test_layering import FLOORS, graph_of, pack_sources, room

PICTURE = ROOT / "docs" / "rooms.svg"
BRIDGE = "nodes/bridge/"
WIDTH, EDGE, GAP = 860, 14, 10  # pixels: of the picture, around the house, between rooms side by side
HEIGHT, BETWEEN, STEP = 50, 46, 12  # of a room, between floors, between two arrows at least
OUTSIDE = "#6e7781"


class Look(NamedTuple):
    """Where a room begins and ends, in shares of the width, its colour, and what a person is told of it."""

    left: float
    right: float
    colour: str
    told: str


LOOKS = {
    "check": Look(0, 1, "#8250df", "the GPU check"),
    "health": Look(0, 0.6, "#b35900", "one LoRA examined and repaired"),
    "training": Look(0.55, 1, "#0969da", "a run, from its settings to its files"),
    "merging": Look(0, 0.36, "#1a7f37", "merge, resize, extract"),
    "analysis": Look(0.36, 0.55, "#bc4c00", "what LoRAs do"),
    "quiet": Look(0, 1, "#4d7c0f", "neutral states, and the directions that a run keeps out of"),
    "session": Look(0.64, 1, "#0a7ea4", "a MODEL in training"),
    "stack": Look(0, 0.64, "#bf3989", "LoRAs on a MODEL"),
    "model": Look(0.28, 1, "#9a6700", "a MODEL, CLIP or VAE: its names, weights, text and latents"),
    "systems": Look(0, 0.28, "#6639ba", "Kandinsky, Wuerstchen"),
    "trust": Look(0.21, 1, "#0550ae", "what contracts, signatures and lists say of LoRA files"),
    "host": Look(0.21, 1, "#57606a", "ComfyUI the program: folders, progress, lists, what is saved in pictures"),
    "networks": Look(0, 0.21, "#cf222e", "what ComfyUI lacks"),
}


class Arrow(NamedTuple):
    source: str
    target: str
    x: float


def bridge_floors() -> list[list[str]]:
    """The rooms of the bridge, the highest floor first."""
    floors = [[each.removeprefix(BRIDGE) for each in floor if each.startswith(BRIDGE)] for floor in reversed(FLOORS)]
    return [floor for floor in floors if floor]


def ways() -> list[tuple[str, str]]:
    """Which room of the bridge imports which other one."""
    graph = graph_of(pack_sources())
    pairs = {(room(path), room(target)) for path, targets in graph.items() for target in targets}
    return sorted(
        (one.removeprefix(BRIDGE), other.removeprefix(BRIDGE))
        for one, other in pairs
        if one != other and one.startswith(BRIDGE) and other.startswith(BRIDGE)
    )


def span(name: str) -> tuple[float, float]:
    """Pixels at which a room begins and ends."""
    inside, look = WIDTH - 2 * EDGE + GAP, LOOKS[name]
    return EDGE + look.left * inside, EDGE + look.right * inside - GAP


def arrows(pairs: Sequence[tuple[str, str]]) -> list[Arrow]:
    """Straight down, each as far from the others as may be. Raises ValueError for rooms that are beside each other."""
    placed: list[Arrow] = []
    for source, target in sorted(pairs, key=lambda pair: (_width(*pair), pair)):
        left, right = _common(source, target)
        places = [left + STEP + STEP * number for number in range(int((right - left) / STEP) - 1)]
        if not places:
            raise ValueError(f"{source} imports {target}, which is not below it; change where they are in LOOKS")
        x = max(places, key=lambda place: min([abs(place - each.x) for each in placed] or [0]))
        placed.append(Arrow(source, target, x))
    return placed


def _common(source: str, target: str) -> tuple[float, float]:
    (first, last), (left, right) = span(source), span(target)
    return max(first, left), min(last, right)


def _width(source: str, target: str) -> float:
    left, right = _common(source, target)
    return right - left


def drawn() -> str:
    """The picture as SVG text: nodes at the top, the house of the bridge, lora_core below."""
    floors = bridge_floors()
    tops = {name: 84 + number * (HEIGHT + BETWEEN) for number, floor in enumerate(floors) for name in floor}
    end = max(tops.values()) + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + 94}" width="{WIDTH}"'
        ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        *_box(EDGE, 6, WIDTH - EDGE, 38, OUTSIDE, "nodes", "what a person sees"),
        *_arrow(WIDTH / 2, 44, 68, OUTSIDE),
        f'<rect x="4" y="70" width="{WIDTH - 8}" height="{end - 56}" rx="10" fill="none" stroke="{OUTSIDE}"/>',
        f'<text x="{WIDTH - EDGE}" y="62" font-size="14" text-anchor="end" fill="{OUTSIDE}">nodes/bridge</text>',
        *(line for each in arrows(ways()) for line in _way(each, tops)),
        *(line for name, top in tops.items() for line in _room(name, top)),
        *_arrow(WIDTH / 2, end + 14, end + 44, OUTSIDE),
        *_box(EDGE, end + 46, WIDTH - EDGE, 42, OUTSIDE, "lora_core", "tensors, files and figures, without ComfyUI"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _way(arrow: Arrow, tops: dict[str, float]) -> Iterator[str]:
    yield from _arrow(arrow.x, tops[arrow.source] + HEIGHT, tops[arrow.target], LOOKS[arrow.source].colour)


def _room(name: str, top: float) -> Iterator[str]:
    left, right = span(name)
    yield from _box(left, top, right, HEIGHT, LOOKS[name].colour, name, LOOKS[name].told)


def _arrow(x: float, start: float, end: float, colour: str) -> Iterator[str]:
    yield f'<path d="M{x:g} {start:g}V{end - 7:g}" stroke="{colour}" stroke-width="2.5" fill="none"/>'
    yield f'<path d="M{x - 5:g} {end - 9:g}h10l-5 9z" fill="{colour}"/>'


def _box(left: float, top: float, right: float, height: float, colour: str, name: str, told: str) -> Iterator[str]:
    middle, text = (left + right) / 2, top + height / 2
    yield f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{height:g}" rx="6" fill="{colour}"/>'
    yield f'<g fill="#fff" text-anchor="middle"><text x="{middle:g}" y="{text - 2:g}" font-size="16" font-weight="600">'
    yield f'{name}</text><text x="{middle:g}" y="{text + 15:g}" font-size="13">{told}</text></g>'


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8", newline="\n")
    print(f"{PICTURE.relative_to(ROOT)} is drawn")
