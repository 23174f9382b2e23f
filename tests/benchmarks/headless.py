"""The same run of the demo's base from headless.py, from a server, and from headless.py as two processes of torchrun.

`start` is from the command to the first step: ComfyUI and the packs imported, the models read, captions and pictures
encoded. `whole` is to the end of the command; for the server, to the answer that the prompt has ended. `ms a step` is
that between the first step and the last. `same bytes`: the tensors of the saved LoRA are those of headless.py, or by
how much they differ at most. Each way has a folder of its own, with nothing kept of earlier runs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import arguments, begin, table
from benchmarks._commands import STORED, commands
from demo import shapes
from harness.comfyui import free_port
from harness.headless import Headless, training
from harness.server import ComfyServer
from safetensors import safe_open

ALONE, SERVER, TWO = "headless.py", "server", "headless.py, two processes"
PICTURES, BATCH = 8, 4


@dataclass(frozen=True)
class Took:
    """Seconds from the start, and the LoRA."""

    first: float
    last: float
    whole: float
    lora: dict[str, torch.Tensor]

    def seconds(self, steps: int) -> dict[str, float]:
        found = {"start": self.first, "whole": self.whole, "step": (self.last - self.first) / (steps - 1)}
        return {name: round(value, 4) for name, value in found.items()}


class Clock:
    """Sees when a run logs its steps."""

    def __init__(self, base: Headless, steps: int):
        self.base, self.wanted, self.begun = base, steps, time.perf_counter()
        self.first = self.last = 0.0

    def look(self) -> bool:
        """Return whether all steps are logged."""
        time.sleep(0.01)
        seen, now = self.base.steps(), time.perf_counter() - self.begun
        self.first = self.first or (now if seen else 0.0)
        self.last = now
        return seen >= self.wanted

    def took(self) -> Took:
        (path,) = (self.base.base / "models" / "loras").glob("headless*.safetensors")
        with safe_open(path, "pt") as file:
            lora = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        return Took(self.first, self.last, time.perf_counter() - self.begun, lora)


def by_command(base: Headless, steps: int, launcher: Sequence[str] = ()) -> Took:
    clock = Clock(base, steps)
    with base.begun(prompt(steps), launcher=launcher) as process:
        while not clock.look() and process.poll() is None:
            pass
        ended = base.ended(process)
        if ended.status:
            raise RuntimeError(ended.err)
        return clock.took()


def by_server(base: Headless, steps: int) -> Took:
    clock = Clock(base, steps)
    with ComfyServer(base.base) as server:
        asked = server.post_prompt(prompt(steps))
        while not clock.look():
            pass
        server.wait(asked)
        return clock.took()


def by_two(base: Headless, steps: int) -> Took:
    port = str(free_port())
    place = ["--nnodes", "1", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", port]
    return by_command(base, steps, ["-m", "torch.distributed.run", *place])


def prompt(steps: int) -> dict:
    return training("hearts", steps, batch_size=BATCH)


WAYS: dict[str, Callable[[Headless, int], Took]] = {ALONE: by_command, SERVER: by_server, TWO: by_two}


@contextmanager
def folder():
    with tempfile.TemporaryDirectory() as place:
        base = Headless(Path(place) / "base")
        shapes.write_dataset(base.base / "input" / "hearts", "heart", PICTURES, 64, 0)
        yield base


def likeness(found: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    if found.keys() != other.keys():
        return "other layers"
    most = max(float((found[name] - other[name]).abs().max()) for name in found)
    return "yes" if most == 0 else f"differs by {most / max(float(each.abs().max()) for each in found.values()):.1g}"


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--keep", action="store_true", help=f"store the figures in {STORED.name}")
    parser.add_argument("--steps", type=int, default=200, help="of the run (%(default)s)")
    options = begin(parser)
    rows, first = [], None
    for index in range(options.rounds):
        for name, way in WAYS.items():
            with ExitStack() as undo:
                took = way(undo.enter_context(folder()), options.steps)
            first = first or took.lora
            same = likeness(took.lora, first)
            rows.append({"way": name, **took.seconds(options.steps), "same": same})
            print(index + 1, *rows[-1].values(), flush=True)
    found = {"steps": options.steps, "batch": BATCH, "rows": rows}
    table(f"{options.steps} steps of batch {BATCH} on the demo's base", *commands(found))
    if options.keep:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
