"""Runs a workflow from a command line to an exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import asked, document, ranks, start
from .ending import Ending
from .options import Options, read
from .progress import Progress
from .ranks import Rank
from .result import BAD_INPUT, DONE, FAILED, Result, files_of, runs_of
from .run import CancelledError, FailedError, Job
from .trials import combinations
from .words import Words


def main(pack: Path, arguments: Sequence[str]) -> None:
    """Ends the process."""
    options, rank, begun = read(arguments), ranks.this(), time.monotonic()
    command = Command(pack, options, rank, Words(silent=not rank.first, name=rank.name))
    result = command.done()
    result.seconds = round(time.monotonic() - begun, 1)
    result.tell(command.words)
    if options.result and rank.first:
        result.write(options.result)
    _end(result.status)


@dataclass(frozen=True)
class Command:
    """Holds what one process is to do."""

    pack: Path
    options: Options
    rank: Rank
    words: Words
    result: Result = field(default_factory=Result)

    def done(self) -> Result:
        """Do it, and return how it ended, but for the time."""
        result = self.result
        try:
            self._start(document.read(self.options.workflow))
            result.status = DONE
        except ValueError as error:
            result.status, result.problem = BAD_INPUT, str(error)
        except (FailedError, start.StartError) as error:
            result.status, result.problem = FAILED, str(error)
        except CancelledError as cancel:
            result.status, result.problem = cancel.status, str(cancel)
        except KeyboardInterrupt:
            result.status, result.problem = 128 + signal.SIGINT, "nothing was begun"
        return result

    def _start(self, found: dict[str, Any]) -> None:
        comfyui = start.folder_of_comfyui(self.pack, self.options.comfyui)
        self.words.line(f"starting ComfyUI in {comfyui}")
        if not self.rank.first:
            ranks.hush()
        flags = self.options.flags
        with start.started(comfyui, [*flags, *self.rank.flags(flags)]) as server:
            self.words.mind_logging()
            server.loop.run_until_complete(self._run(found, server))

    async def _run(self, found: dict[str, Any], server: Any) -> None:
        import comfy.model_management
        import folder_paths

        await start.load_pack(self.pack)
        known, always = await asked.object_info(server), self.options.settings
        extra = {"extra_pnginfo": {"workflow": found}} if document.is_saved_graph(found) else {}
        for swept in combinations(self.options.sweeps):
            prompt, wrong = document.prompt_of(found, known, [*always, *swept])
            item = await asked.accepted(server, prompt, extra, uuid.uuid4().hex, wrong)
        if self.options.check:
            return self.words.line("nothing is wrong with the workflow")
        _no_bars()
        progress, ending = Progress(prompt, self.words), Ending(comfy.model_management.interrupt_current_processing)
        ending.install()
        since = time.time()
        try:
            await self._execute(Job(server, item, prompt, progress.hear, ending))
        finally:
            self.result.files = files_of(progress.outputs, prompt, since)
            self.result.runs = runs_of(progress.runs, Path(folder_paths.get_output_directory()))

    async def _execute(self, job: Job) -> None:
        import comfy.model_management

        cuda, rank = comfy.model_management.get_torch_device().type == "cuda", self.rank
        with ranks.joined(rank, cuda, self.options.timeout, job.prompt):
            for node in ranks.split_nodes(job.prompt, job.item[4]) if rank.size > 1 else ():
                await job.executed([node])
        if rank.first:
            await job.executed()


def _no_bars() -> None:
    """Samplers draw bars of their own, where ComfyUI lets them."""
    import comfy.utils

    if hasattr(comfy.utils, "PROGRESS_BAR_ENABLED"):
        comfy.utils.PROGRESS_BAR_ENABLED = False


def _end(status: int) -> None:
    """Threads that other packs have left, as servers do, would keep the process from ending."""
    waiting = [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]
    if waiting:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)
