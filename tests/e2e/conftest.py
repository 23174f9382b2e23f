"""A browser for all of these tests, and a page for all of a file, in either renderer of the front end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.browser import FrontEnd, browser_or_skip
from harness.server import ComfyServer
from playwright.sync_api import Browser


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-prompts", action="store_true", help="store what the browser sends for the hard graphs")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Open one for all of these tests, none of which calls asyncio.run."""
    with browser_or_skip() as opened:
        yield opened


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def vue(request: pytest.FixtureRequest) -> bool:
    """Whether the page is in the renderer of "Nodes 2.0"."""
    return request.param


@pytest.fixture(scope="module")
def front(vue: bool, browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    """A page that may use the clipboard. In the end there is no error in its console, and it has asked nobody else."""
    with FrontEnd(browser, server, vue=vue) as opened:
        opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield opened
        assert opened.errors == [] and opened.external == []
