"""Measures what our nodes cost a page of the front end, in both renderers: CPU of a frame, what is left when they go.

A frame is one in which the view moves, so that everything is drawn. Its CPU is the time that the page's main thread has
worked, which other programs do not lengthen; "over" is over the empty graph. "All threads" are those of the page's
process: without a GPU they paint. Of nodes that came and went, DOM nodes, listeners and heap are counted after garbage
is collected, beside those of the front end's own nodes, which it does not let go of either.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))

from harness.browser import FrontEnd, open_browser  # noqa: E402
from harness.manners import CORE, EMPTY, Counter  # noqa: E402
from harness.server import ComfyServer  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402

STACKS = 50
STEPS = 10_000
SCALES = (0.3, 1)  # with all of them in view; with what is in view as it is worked with
ADD = """async ([type, count, rows, scale]) => {
  for (let place = 0; place < count; place++) {
    const node = LiteGraph.createNode(type)
    node.pos = [(place % 10) * 420, Math.floor(place / 10) * 340]
    app.graph.add(node)
    const field = node.widgets.find(each => each.name === 'rows')
    if (field) { field.value = rows; field.callback?.(rows) }
  }
  app.canvas.ds.scale = scale
}"""
MOVE = """async ([frames, steps]) => {
  const view = app.canvas.ds
  const node = String(app.graph.nodes[0]?.id ?? '')
  const dispatch = (name, detail) => app.api.dispatchCustomEvent(name, detail)
  for (let frame = 0; frame < frames; frame++) {
    view.offset[0] = 100 + 60 * Math.sin(frame / 7)
    app.canvas.setDirty(true, true)
    if (steps) {
      const step = Math.round((frame + 1) * steps / frames)
      const about = { prompt_id: 'bench', node }
      const text = `step ${step} of ${steps}, loss 0.1234, 1:02:03 left`
      dispatch('lora_loom.said', { ...about, text, working: true })
      dispatch('lora_loom.run', { ...about, id: 'bench', state: 'running', step, total: steps, loss: 0.1234 })
    }
    await new Promise(requestAnimationFrame)
  }
}"""
ROWS = "\n".join(f"<lora:styles/a_long_name_of_a_lora_{number}:0.8:1.0>" for number in range(6))


class Cost(NamedTuple):
    """Milliseconds of CPU for a frame."""

    main: float
    all: float


def frame(page: FrontEnd, counter: Counter, frames: int, steps: int = 0) -> Cost:
    before = counter.metrics()
    page.page.evaluate(MOVE, [frames, steps])
    after = counter.metrics()
    return Cost(*(1000 * (after[name] - before[name]) / frames for name in ("ThreadTime", "ProcessTime")))


def told(values: Sequence[float]) -> str:
    return f"{min(values):.1f} - {median(values):.1f} - {max(values):.1f}"


def costs(page: FrontEnd, counter: Counter, rounds: int, frames: int) -> None:
    """Prints the cost of a frame, least, median and most of the rounds."""
    page.page.route("**/jobs/bench", lambda route: route.fulfill(json={}))  # no prompt that the server knows
    graphs: dict[str, tuple[str, int, int]] = {
        "empty graph": ("", 0, 0),
        f"{STACKS} core LoraLoader": ("LoraLoader", STACKS, 0),
        f"{STACKS} Load LoRA Stack of 6 rows": ("LoraLoom_LoadLoraStack", STACKS, 0),
        f"Train LoRA, {STEPS} steps": ("LoraLoom_TrainLora", 1, STEPS),
    }
    for scale in SCALES:
        empty = 0.0
        print(f"  at {scale:.0%}", flush=True)
        for name, (kind, count, steps) in graphs.items():
            page.page.evaluate(EMPTY)
            page.page.evaluate(ADD, [kind, count, ROWS, scale])
            page.still()
            frame(page, counter, 20)
            found = [frame(page, counter, frames, steps) for _ in range(rounds)]
            main = [cost.main for cost in found]
            empty = empty or median(main)
            over, every = told([value - empty for value in main]), told([cost.all for cost in found])
            print(f"  {name:36} {told(main):>20} ms   over {over:>20} ms   all threads {every:>20} ms", flush=True)


def remains(counter: Counter, times: int, types: Sequence[str]) -> None:
    """Prints what each node leaves when so many came and went."""
    counter.left_by([*types, *CORE], len(types) + len(CORE))
    for name in [*CORE, *types]:
        left = counter.left_by([name], times)
        nodes, listeners, heap = left.nodes / times, left.listeners / times, left.heap / times / 1024
        print(f"  {name:28} {nodes:7.1f} DOM nodes {listeners:6.1f} listeners {heap:7.1f} kB", flush=True)


def on_page(browser: Browser, server: ComfyServer, vue: bool, then: Callable[[FrontEnd, Counter], None]) -> None:
    with FrontEnd(browser, server, vue=vue) as page:
        page.page.evaluate(EMPTY)
        then(page, Counter(page))
        if page.errors:
            print("  in the console:", *page.errors, sep="\n    ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--times", type=int, default=200, help="how often each node comes and goes")
    choices = parser.parse_args()
    with ComfyServer() as server, open_browser() as browser:
        ours = [name for name in server.get("/object_info") if name.startswith("LoraLoom_")]
        for vue in (False, True):
            print(f"{'Nodes 2.0' if vue else 'classic'}: CPU of a frame, least - median - most", flush=True)
            on_page(browser, server, vue, lambda page, counter: costs(page, counter, choices.rounds, choices.frames))
            print(f"left of each node after {choices.times} came and went", flush=True)
            on_page(browser, server, vue, lambda page, counter: remains(counter, choices.times, ours))


if __name__ == "__main__":
    main()
