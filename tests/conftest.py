"""Every test sees a real ComfyUI, but those of lora_core and of console/workflow, which need none; without one no other
test runs, rather than being skipped."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

sys.path.append(str(Path(__file__).resolve().parent))  # for `harness`; last, so that it hides nothing

from harness.browser import FrontEnd, browser_or_skip  # noqa: E402
from harness.inprocess import PRETEND, alias_pack, load_comfyui  # noqa: E402
from harness.server import ComfyServer  # noqa: E402
from harness.verified import VerifiedTable  # noqa: E402

# Ranks of the first are forks of this process, and compute gradients only while no device has had one here. The others
# take long: as the last ones they would keep others waiting.
FIRST = ("test_shared_runs.py", "test_types.py", "test_harness.py")
PURE = [Path(__file__).resolve().parent / folder for folder in ("lora_core", "console/workflow")]

alias_pack()
if PRETEND:
    load_comfyui()  # before torch is imported


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-readme", action="store_true", help="write the README's table of what this run verified")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(VerifiedTable(config))
    if PRETEND:
        from pretend.ring import RINGS, Selection

        config.pluginmanager.register(Selection(RINGS[PRETEND], config))


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> None:
    """Before a module is imported."""
    if isinstance(collector, pytest.Module) and not any(map(collector.path.is_relative_to, PURE)):
        load_comfyui()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


def pytest_unconfigure() -> None:
    if load_comfyui.cache_info().currsize:
        shutil.rmtree(load_comfyui(), ignore_errors=True)


@pytest.fixture(scope="session")
def comfy_base() -> Path:
    """The base directory of the ComfyUI in this process: its input, output, models/loras."""
    return load_comfyui()


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """One real server for all tests that only need some server."""
    with ComfyServer() as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Open a browser for one module only: while Playwright runs, asyncio.run() does not work. Continuous integration
    must have one."""
    with browser_or_skip() as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["litegraph", "vue"])
def front_end(request: pytest.FixtureRequest, browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    """A page of the front end on `server`; each test that asks for it runs once in either renderer."""
    with FrontEnd(browser, server, vue=request.param) as page:
        yield page
