"""One page of the front end for all tests of LoRA Dataset, in either renderer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.browser import FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import Browser

from .pages import CAPTIONS, SIZES, picture


@pytest.fixture(scope="package", params=[False, True], ids=["classic", "nodes2"])
def vue(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="package")
def front(vue: bool, browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    with FrontEnd(browser, server, vue=vue) as opened:
        yield opened
        assert opened.errors == [] and opened.external == []


@pytest.fixture
def folder(server: ComfyServer, vue: bool, request: pytest.FixtureRequest) -> Path:
    """A folder of its own for each test, so that none finds what another has changed."""
    path = server.base / "input" / f"e2e_page_{request.node.originalname}_{vue}"
    path.mkdir(parents=True)
    for name, text in CAPTIONS.items():
        (path / name).write_bytes(picture(SIZES[name]))
        if text:
            (path / name).with_suffix(".txt").write_text(text)
    return path
