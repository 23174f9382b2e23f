"""Many requests at once, as a page that is asked by many, or by one who means no good."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from aiohttp import web
from lora_loom.nodes.bridge.host.desk import Desk


def test_one_thread_answers_and_a_long_queue_is_sent_away() -> None:
    running, most, threads = 0, 0, set()

    def slow(question: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threads.add(threading.current_thread().name)
        time.sleep(0.002)
        running -= 1
        return question.upper()

    async def crowd() -> list:
        desk = Desk("test")
        first = await asyncio.gather(*(desk.ask(slow, f"a{number}") for number in range(300)), return_exceptions=True)
        return [*first, await desk.ask(slow, "after")]

    *answers, after = asyncio.run(crowd())
    refused = [each for each in answers if isinstance(each, web.HTTPServiceUnavailable)]
    assert (len(answers) - len(refused), most, len(threads), after) == (64, 1, 1, "AFTER")
    assert answers[:64] == [f"A{number}" for number in range(64)] and refused[0].headers["Retry-After"] == "1"


def test_a_fault_leaves_no_place_taken() -> None:
    def broken(question: str) -> None:
        raise OSError(question)

    async def ask() -> None:
        desk = Desk("test")
        for _ in range(200):
            with pytest.raises(OSError, match="x"):
                await desk.ask(broken, "x")

    asyncio.run(ask())
