"""Runs a workflow from a command line to an exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import asked, document, start
from .ending import Ending
from .options import Options, read
from .progress import Progress
from .result import BAD_INPUT, DONE, FAILED, Result, files_of, runs_of
from .run import CancelledError, FailedError, executed
from .sweep.trials import Swept, trials
from .words import Words


def main(pack: Path, arguments: Sequence[str]) -> None:
    """Ends the process."""
    options, words, begun = read(arguments), Words(), time.monotonic()
    if options.sweeps and not options.check:
        sys.exit(_sweep(pack, options, words))
    result = _result(pack, options, words)
    result.seconds = round(time.monotonic() - begun, 1)
    result.tell(words)
    if options.result:
        result.write(options.result)
    _end(result.status)


def _sweep(pack: Path, options: Options, words: Words) -> int:
    from .sweep.conductor import sweep  # brings torch, which ComfyUI wants to set up itself

    return sweep(pack, options, words)


def _result(pack: Path, options: Options, words: Words) -> Result:
    result = Result()
    try:
        found = document.read(options.workflow)
        comfyui = start.folder_of_comfyui(pack, options.comfyui)
        words.line(f"starting ComfyUI in {comfyui}")
        with start.started(comfyui, options.flags) as server:
            words.mind_logging()
            server.loop.run_until_complete(_run(pack, options, found, server, words, result))
        result.status = DONE
    except ValueError as error:
        result.status, result.problem = BAD_INPUT, str(error)
    except (FailedError, start.StartError) as error:
        result.status, result.problem = FAILED, str(error)
    except CancelledError as cancel:
        result.status, result.problem = cancel.status, str(cancel)
    except KeyboardInterrupt:
        result.status, result.problem = 130, "nothing was begun"
    return result


async def _run(
    pack: Path, options: Options, found: dict[str, Any], server: Any, words: Words, result: Result
) -> None:  # fmt: skip
    import comfy.model_management
    import folder_paths

    await start.load_pack(pack)
    known = await asked.object_info(server)
    for swept in _swept(options):
        settings = [*options.settings, *swept]
        await asked.accepted(server, document.prompt_of(found, known, settings), {}, uuid.uuid4().hex)
    prompt = document.prompt_of(found, known, options.settings)
    extra = {"extra_pnginfo": {"workflow": found}} if document.is_saved_graph(found) else {}
    item = await asked.accepted(server, prompt, extra, uuid.uuid4().hex)
    if options.check:
        return
    _no_bars()
    progress, ending = Progress(prompt, words), Ending(comfy.model_management.interrupt_current_processing)
    ending.install()
    since = time.time()
    try:
        await executed(server, item, prompt, progress.hear, ending)
    finally:
        result.files = files_of(progress.outputs, prompt, since)
        result.runs = runs_of(progress.runs, Path(folder_paths.get_output_directory()))


def _swept(options: Options) -> list[list[str]]:
    """The settings of each run of a sweep, to be checked."""
    swept = [Swept.read(each) for each in options.sweeps]
    return [trial.settings for trial in trials(b"", (), swept)] if swept else []


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
