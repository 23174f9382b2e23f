"""What is asked of the server of runs that is no question is refused, and is no fault of the server."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from lora_loom.nodes.bridge.training import run_routes


def statuses(path: str, bodies: list[tuple[bytes, str]]) -> list[int]:
    """Of POSTs of bodies of a content type each."""

    async def asked() -> list[int]:
        routes, app = web.RouteTableDef(), web.Application()
        run_routes.serve_by(routes)
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            return [
                (await client.post(path, data=body, headers={"Content-Type": kind})).status for body, kind in bodies
            ]

    return asyncio.run(asked())


@pytest.mark.parametrize("what", ["use", "delete", "pause"])
def test_a_post_is_json_or_refused(what: str) -> None:
    plain, told = (b"{}", "text/plain"), (b"{}", "application/json")
    found = statuses(f"/lora_loom/runs/gone-00000001/{what}", [plain, (b"", "application/octet-stream"), told])
    assert found == [415, 415, 409 if what == "pause" else 404]


def test_a_body_that_is_no_json_is_no_fault_of_the_server() -> None:
    kinds = [(body, "application/json") for body in (b"", b"[" * 100_000, b"\xff", b"{", b"7")]
    found = statuses("/lora_loom/runs/gone-00000001/use", [*kinds, (b"{}", "application/json; charset=nobody")])
    assert set(found) == {404}
