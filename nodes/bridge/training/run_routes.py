"""Answers what the front end asks the server of runs: what there are, how they went, and what to do with one.

Only runs whose folders are listed are answered, by their names among these; no path leaves the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import ETag, web
from server import PromptServer

import nodes as comfy_nodes

from ....lora_core.files.faults import UnreadableFileError, UnsafeFileError
from ....lora_core.runs import sheets, taking
from ....lora_core.runs.found_run import FoundRun
from ....lora_core.runs.registry import Registry
from ..host.desk import SAFE, Desk, RefusedError, Route, of_json
from ..host.folders import loras_folder, runs_folder, without_paths
from . import run_progress

_SECONDS = 1.0  # of reading per answer; the front end asks again for the rest
_MOST_POINTS = 1000
_SIDE = 256  # pixels
_KEPT = {**SAFE, "Cache-Control": "private, no-cache"}  # it may be kept, and is asked for by its tag

_desk, _picture_desk, _file_desk = Desk("runs"), Desk("run_pictures"), Desk("run_files")
_sheets = sheets.Sheets()
_registries: dict[tuple[str, Path], Registry] = {}


def serve_by(routes: web.RouteTableDef) -> None:
    one = "/lora_loom/runs/{id:[^/]+}"
    routes.get("/lora_loom/runs")(runs)
    routes.get(one)(_answering(_desk, _details))
    routes.get(f"{one}/log")(_answering(_desk, _log, "from"))
    routes.get(f"{one}/workflow")(_answering(_desk, _workflow))
    routes.get(f"{one}/charts")(charts)
    routes.get(one + "/preview/{step}/{number}")(preview)
    routes.post(f"{one}/use")(of_json(use))
    routes.post(f"{one}/delete")(of_json(_answering(_file_desk, _delete)))
    routes.post(f"{one}/pause")(of_json(_answering(_desk, _pause)))


async def runs(request: web.Request) -> web.Response:
    """All runs, the newest first, and what goes on now; without the list for who has it as it is (`since`)."""
    return await _desk.json(_listed, request.query.get("since", ""))


async def use(request: web.Request) -> web.Response:
    try:
        asked = await request.json()
    except (ValueError, LookupError, RecursionError):  # of a body that is no text, too
        asked = None
    return await _file_desk.json(_use, request.match_info["id"], asked)


async def preview(request: web.Request) -> web.Response:
    asked = request.match_info["step"], request.match_info["number"], request.query.get("side", "")
    step, number, side = (_whole(text) for text in asked)
    return await _pictured(request, _preview, "image/jpeg", step, number, side or _SIDE)


async def charts(request: web.Request) -> web.Response:
    return await _pictured(request, _charts, "image/png")


def _answering(desk: Desk, answer: Callable[..., Any], *asked: str) -> Route:
    """A route that answers with the run's id and what is asked of it."""

    async def route(request: web.Request) -> web.Response:
        return await desk.json(answer, request.match_info["id"], *(request.query.get(name, "") for name in asked))

    return route


async def _pictured(
    request: web.Request, answer: Callable[..., sheets.Tagged | None], kind: str, *question: Any
) -> web.Response:
    """A picture, or 304 for a browser that has it: one of a step changes when a run starts over, and else never."""
    known = [tag.value for tag in request.if_none_match or ()]
    found = await _picture_desk.ask(answer, known, request.match_info["id"], *question)
    if found is None:
        return web.Response(status=404, headers=SAFE)
    tag, body = found
    response = web.Response(status=200 if body else 304, body=body, content_type=kind, headers=_KEPT)
    response.etag = ETag(tag)
    return response


def _listed(since: str) -> dict[str, Any]:
    registry = _registry()
    unread, live = registry.look(_SECONDS), run_progress.running()
    told = [_with_origin(each) for each in registry.summaries({each.id for each in live})]
    version = sha256(json.dumps(told).encode()).hexdigest()[:16]
    news = {} if since == version else {"runs": told}
    return {"version": version, "unread": unread, "live": [each.told() for each in live], **news}


def _details(name: str) -> dict[str, Any]:
    run = _found(name)
    told = _registry().summary(run, run_progress.live(name) is not None)
    return _with_origin({**told, **run.details()})


def _log(name: str, start: str) -> dict[str, Any]:
    told = _registry().log(_found(name), _whole(start), _MOST_POINTS, _SECONDS)
    live = run_progress.live(name)
    return {**told, "validation": live.validation()} if live else told


def _workflow(name: str) -> dict[str, Any]:
    if workflow := _found(name).workflow():
        return workflow
    raise RefusedError(404, "this run has no workflow: it was begun by a program, or by an older version")


def _use(name: str, asked: Any) -> dict[str, str]:
    """Without a step, the LoRA that came out."""
    run, step = _found(name, "files"), asked.get("step") if isinstance(asked, dict) else asked
    if step is not None and type(step) is not int:
        raise RefusedError(400, "step is to be a number")
    source = run.lora(step)
    if source is None:
        what = "a LoRA" if step is None else f"the LoRA of step {step}"
        saved = ", ".join(map(str, run.loras())) or "none"
        raise RefusedError(404, f"{run.name} has not kept {what}; saved steps: {saved}")
    wanted = run.name if step is None else f"{run.name}_step_{step}"
    try:
        return {"name": taking.copy(source, loras_folder(), wanted)}
    except (UnsafeFileError, UnreadableFileError, ValueError) as error:
        raise RefusedError(409, without_paths(str(error))) from error
    except OSError as error:
        raise RefusedError(507, f"the LoRA was not copied: {error.strerror or 'the disk refuses'}") from error


def _delete(name: str) -> dict[str, Any]:
    run = _found(name, "files")
    if run_progress.live(name):
        raise RefusedError(409, f"{run.name} is training now; stop it first")
    try:
        taking.remove(run.path)
    except ValueError as error:
        raise RefusedError(409, str(error)) from error
    except OSError as error:
        raise RefusedError(409, f"{run.name} was not deleted: {error.strerror or 'the disk refuses'}") from error
    return {"deleted": name}


def _pause(name: str) -> dict[str, Any]:
    live = run_progress.live(name)
    if live is None or not _interrupted(live.prompt_id):
        raise RefusedError(409, "this run is not training now")
    return {"prompt_id": live.prompt_id}


def _interrupted(prompt: str | None) -> bool:
    """Interrupt that prompt, and no other; False when it does not run."""
    queue = PromptServer.instance.prompt_queue
    if hasattr(queue, "interrupt_if_running"):
        return queue.interrupt_if_running(prompt)
    with queue.mutex:  # or the next prompt may begin meanwhile, and be the one that is interrupted
        running = any(item[1] == prompt for item in queue.currently_running.values())
        if running:
            comfy_nodes.interrupt_processing()
    return running


def _preview(known: list[str], name: str, step: int, number: int, side: int) -> sheets.Tagged | None:
    run = _registry("pictures").find(name)
    path = run and run.sheet(step)
    return _sheets.picture(path, number, side, known) if path else None


def _charts(known: list[str], name: str) -> sheets.Tagged | None:
    run = _registry("pictures").find(name)
    path = run and run.charts()
    return sheets.whole(path, known) if path else None


def _registry(thread: str = "runs") -> Registry:
    """That of a thread, as none is for several; of the folder of runs that there is now."""
    return _registries.setdefault((thread, runs_folder()), Registry(runs_folder()))


def _found(name: str, thread: str = "runs") -> FoundRun:
    if run := _registry(thread).find(name):
        return run
    raise RefusedError(404, "this run is not there any more")


def _with_origin(told: dict[str, Any]) -> dict[str, Any]:
    return {**told, **run_progress.known_of(told["id"])}


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0
