"""Checks in both renderers that nodes of ours leave nothing on the page when they go, and stay silent in the console.

The front end itself keeps things of nodes that are gone: on the canvas those of each text field, in Nodes 2.0 those of
each node and widget. What its own nodes leave is measured in the same way; ours may leave that, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from harness.browser import FrontEnd
from harness.manners import CORE, EMPTY, Counter
from harness.server import ComfyServer
from playwright.sync_api import Browser

TIMES = 200
LISTENERS = 20  # of the whole page that come and go, as with a message that is shown for a while
PIECES = 8  # elements of ours on a node with a text field, which the front end keeps whole
FIELDS = """(types) => types.map(type => LiteGraph.createNode(type).widgets ?? [])
  .map(widgets => widgets.filter(each => each.element?.tagName === 'TEXTAREA').length)"""
PARTS = """(types) => types.map(type => LiteGraph.createNode(type)).map(node => 1 + (node.widgets ?? [])
  .filter(each => !each.hidden && !each.options.hidden && !each.options.advanced).length).reduce((sum, n) => sum + n)"""


@pytest.fixture(scope="module")
def types(server: ComfyServer) -> list[str]:
    return [name for name in server.object_info if name.startswith("LoraLoom_")]


def opened(
    browser: Browser, server: ComfyServer, vue: bool, types: Sequence[str]
) -> Iterator[tuple[FrontEnd, Counter]]:
    """A page on which one of each node has been: the first makes what stays for all. Nothing of ours is in its console
    in the end."""
    with FrontEnd(browser, server, vue=vue) as page:
        said: list[str] = []
        page.page.on("console", lambda message: said.append(f"{message.text} {message.location}"))
        page.page.evaluate(EMPTY)
        counter = Counter(page)
        counter.left_by([*types, *CORE], len(types) + len(CORE))
        yield page, counter
        assert page.errors == [] and [text for text in said if "loom" in text.lower()] == []


@pytest.fixture(scope="module")
def classic(browser: Browser, server: ComfyServer, types: list[str]) -> Iterator[tuple[FrontEnd, Counter]]:
    yield from opened(browser, server, False, types)


@pytest.fixture(scope="module")
def vue(browser: Browser, server: ComfyServer, types: list[str]) -> Iterator[tuple[FrontEnd, Counter]]:
    yield from opened(browser, server, True, types)


def test_nodes_without_text_fields_leave_nothing(classic: tuple[FrontEnd, Counter], types: list[str]) -> None:
    page, counter = classic
    plain = [name for name, fields in zip(types, page.page.evaluate(FIELDS, types), strict=True) if not fields]
    left = counter.left_by(plain, TIMES)
    assert len(plain) > 8 and left.nodes < TIMES / 4 and left.listeners < LISTENERS


def test_nodes_with_text_fields_leave_what_those_of_the_front_end_leave(
    classic: tuple[FrontEnd, Counter], types: list[str]
) -> None:
    page, counter = classic
    fields = dict(zip(types, page.page.evaluate(FIELDS, types), strict=True))
    written = [name for name in types if fields[name]]
    of_a_field = counter.left_by(["CLIPTextEncode"], 40).nodes / 40
    times = TIMES // len(written) * len(written)
    left = counter.left_by(written, times)
    expected = sum(fields[name] for name in written) / len(written) * of_a_field + PIECES
    assert left.nodes <= expected * times + TIMES / 4 and left.listeners < LISTENERS


def test_in_nodes_2_they_leave_what_those_of_the_front_end_leave(
    vue: tuple[FrontEnd, Counter], types: list[str]
) -> None:
    """For each node and widget that is shown."""
    page, counter = vue
    core = counter.left_by(CORE, 5 * len(CORE))
    ours = counter.left_by(types, len(types))
    parts, own = 5 * page.page.evaluate(PARTS, CORE), page.page.evaluate(PARTS, types)
    assert ours.nodes / own < 1.3 * core.nodes / parts + 5
    assert ours.listeners / own < 1.3 * core.listeners / parts + 2
