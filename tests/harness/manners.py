"""Tells what nodes cost a page and leave on it: DOM nodes, listeners and heap, counted by the browser itself after a
collection, and the CPU that frames take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from playwright.sync_api import CDPSession

from .browser import FrontEnd

CORE = ("CLIPTextEncode", "KSampler", "CheckpointLoaderSimple", "LoraLoader")  # what ComfyUI's own nodes leave
COLLECTIONS = 3  # what a collection finds to be unused may hold what the next one finds

EMPTY = "async () => await app.loadGraphData({nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4})"
COME_AND_GO = """async ([types, times, together]) => {
  const frames = async (count) => { for (let n = 0; n < count; n++) await new Promise(requestAnimationFrame) }
  const kinds = Array.from({ length: times }, (_, number) => types[number % types.length])
  while (kinds.length) {
    const nodes = kinds.splice(0, together).map((type, place) => {
      const node = LiteGraph.createNode(type)
      node.pos = [(place % 5) * 400, Math.floor(place / 5) * 600]
      app.graph.add(node)
      const rows = node.widgets?.find(({ name }) => name === 'rows')
      if (rows) rows.value = '<lora:a:1>\\n<lora:b:1>'
      return node
    })
    await frames(3)
    for (const node of nodes) app.graph.remove(node)
    await frames(3)
  }
  app.canvas.deselectAll()
}"""


class Counts(NamedTuple):
    nodes: int
    listeners: int
    heap: int  # bytes

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


class Counter:
    """The browser's own counts of a page."""

    def __init__(self, page: FrontEnd) -> None:
        self._page = page
        self._session: CDPSession = page.page.context.new_cdp_session(page.page)
        self._session.send("Performance.enable")
        self._session.send("HeapProfiler.enable")

    def now(self) -> Counts:
        """After what waits for an idle moment has run and garbage is collected."""
        for _ in range(COLLECTIONS):
            self._page.drawn()
            self._session.send("HeapProfiler.collectGarbage")
        found = self.metrics()
        return Counts(int(found["Nodes"]), int(found["JSEventListeners"]), int(found["JSHeapUsedSize"]))

    def metrics(self) -> dict[str, float]:
        return {each["name"]: each["value"] for each in self._session.send("Performance.getMetrics")["metrics"]}

    def left_by(self, types: Iterable[str], times: int, together: int = 20) -> Counts:
        """Return what is left of so many nodes that came and went, of these types in turn."""
        before = self.now()
        self._page.page.evaluate(COME_AND_GO, [list(types), times, together])
        return self.now().since(before)
