"""A real ComfyUI server in a process of its own, and its HTTP API in plain calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.comfyui import comfyui_path, free_port, server_command
from harness.events import Event, EventListener

ENDS = ("execution_success", "execution_error", "execution_interrupted")
Graph = dict[str, dict[str, Any]]  # API format: {node id: {"class_type": ..., "inputs": {...}}}

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


class RefusedError(AssertionError):
    """The server did not queue the graph; carries what it said about each node."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.error: dict[str, Any] = answer.get("error") or {}
        self.node_errors: dict[str, Any] = answer.get("node_errors") or {}
        super().__init__(json.dumps(answer, indent=1))


class ExecutionError(AssertionError):
    """A node raised, or the run was interrupted; `messages` are the (kind, data) pairs of the history entry."""

    def __init__(self, entry: dict[str, Any], log: str) -> None:
        self.messages = [tuple(message) for message in entry["status"]["messages"]]
        ends = [data for kind, data in self.messages if kind in ("execution_error", "execution_interrupted")]
        self.error: dict[str, Any] = ends[-1] if ends else {}
        where = f"{self.error.get('node_type')} (node {self.error.get('node_id')})"
        what = f"{self.error.get('exception_type', 'interrupted')}: {self.error.get('exception_message', '')}"
        trace = "".join(self.error.get("traceback", []))
        super().__init__(f"{where}: {what}\n{trace}\n--- server log ---\n{log}")


class ComfyServer:
    """`with ComfyServer() as server:` has a server of its own, with a base directory of its own, ready for prompts.

    base: kept afterwards when given (a second server may go on with it), else temporary. arguments: further ComfyUI
    flags. Nodes that call companies' APIs are off, which also keeps the front end from the internet. COMFYUI_FRONT_END
    in the environment names a folder with another release of the front end.
    """

    def __init__(self, base: Path | None = None, arguments: Sequence[str] = (), start_timeout: float = 240) -> None:
        self._temporary = base is None
        self.base = Path(tempfile.mkdtemp(prefix="lora-loom-server-")) if base is None else base
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = uuid.uuid4().hex
        self.events = EventListener(self.url, self.client_id)
        other = os.environ.get("COMFYUI_FRONT_END")
        self._arguments = ("--disable-api-nodes", *(("--front-end-root", other) if other else ()), *arguments)
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        command = server_command(self.base, self.port, self._arguments)
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                command, cwd=comfyui_path(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._until(self._answers, self._start_timeout, "the server did not start")
            self.events.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the process (on Windows at once), and removes the base directory if it is temporary."""
        self._end(subprocess.Popen.terminate)
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def kill(self) -> None:
        """As a power cut would: no clean-up at all runs in the server. The base directory stays until stop()."""
        self._end(subprocess.Popen.kill)

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._process is None:
            return
        how(self._process)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.events.join()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self.base / "server.log"

    def log(self, lines: int | None = None) -> str:
        """Return what the server printed, or its last `lines` lines."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def _answers(self) -> bool:
        self._assert_alive()
        try:
            self.get("/system_stats")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def _assert_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the server is not running; the end of its log:\n{self.log(40)}")

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    def fetch(self, path: str, body: object = None, timeout: float = 60, **query: object) -> bytes:
        """GET, or POST of a JSON body; raises urllib.error.HTTPError."""
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with _OPENER.open(request, timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str, **query: object) -> Any:
        return json.loads(self.fetch(path, **query))

    def post(self, path: str, body: object) -> Any:
        answer = self.fetch(path, body)
        return json.loads(answer) if answer else None

    @cached_property
    def object_info(self) -> dict[str, Any]:
        """Every node as the front end sees it. Lists of files in it are those of the first call."""
        return self.get("/object_info")

    def view(self, image: dict[str, str]) -> bytes:
        """Return the bytes of a file as a history entry names it: filename, subfolder, type."""
        return self.fetch("/view", **image)

    # -- prompts -------------------------------------------------------------------------------------------------------

    def post_prompt(self, graph: Graph, workflow: dict[str, Any] | None = None) -> str:
        """Queues a graph and returns its prompt id; raises RefusedError. With a workflow, as the front end does it."""
        body = {"prompt": graph, "client_id": self.client_id}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            answer = self.post("/prompt", body)
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise RefusedError(json.load(error)) from None
        if answer.get("node_errors"):  # another output of the graph is fine, so the server would run only that
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            raise RefusedError(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry (outputs, status) once the prompt has ended, however it ended; raises TimeoutError."""
        entry: dict[str, Any] = {}

        def ended() -> bool:
            self._assert_alive()
            entry.update(self.get(f"/history/{prompt_id}").get(prompt_id, {}))
            return bool(entry)

        self._until(ended, timeout, "the prompt did not end")
        return entry

    def run(self, graph: Graph, timeout: float = 300, workflow: dict[str, Any] | None = None) -> dict[str, Any]:
        """Queues, waits, and returns the history entry of a success; raises RefusedError or ExecutionError."""
        entry = self.wait(self.post_prompt(graph, workflow), timeout)
        if entry["status"]["status_str"] != "success":
            raise ExecutionError(entry, self.log(20))
        return entry

    def wait_event(self, kind: str, prompt_id: str | None = None, timeout: float = 60) -> Event:
        return self.events.wait(lambda event: event.kind == kind and prompt_id in (None, event.prompt_id), timeout)

    def told(self, kind: str, prompt_id: str) -> list[Event]:
        """Every event of a prompt of this client that has ended, or ends soon. The history may know of the end before
        the socket does, on which what was said comes in order."""
        self.events.wait(lambda event: event.kind in ENDS and event.prompt_id == prompt_id, timeout=300)
        return self.events.all(kind, prompt_id)

    def interrupt(self, prompt_id: str | None = None) -> None:
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def free(self) -> None:
        """Unloads the models and empties the cache of node outputs, so that the next run computes everything."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def _until(self, done: Callable[[], bool], timeout: float, failure: str) -> None:
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() >= end:
                raise TimeoutError(f"{failure} in {timeout:.0f} s; the end of the log:\n{self.log(20)}")
            time.sleep(0.05)
