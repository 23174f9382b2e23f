"""Shows a person how far a node is: the bar, a picture on the node, a line of text, and a working cancel."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ....lora_core.drawing.sheet import stacked

_SAID = "lora_loom.said"  # the event that web/js/told/told.js hears
_PICTURE_EVERY = 1.0  # seconds between pictures; each is sent at once, past the bar's own throttle


class Progress:
    """Progress of the node that is executing now. `update` raises ComfyUI's interrupt when the user cancelled.

    `notes` are lines that stay on the node below whatever is said, `chosen` is what its automatic inputs stand for, and
    `beside` is a picture below every other.
    """

    beside: Image.Image | None = None

    def __init__(self, total: int, notes: Sequence[str] = (), chosen: Mapping[str, str] | None = None):
        self.notes, self.chosen = tuple(notes), dict(chosen or {})
        context = get_executing_context()
        self.node_id, self.prompt_id = (context.node_id, context.prompt_id) if context else (None, None)
        self.bar = comfy.utils.ProgressBar(total, node_id=self.node_id)
        self.pictured = 0.0
        self.begin()

    def begin(self, done: int = 0) -> None:
        """From here on the time is taken; `done` was done before."""
        self.started, self.done_before = time.monotonic(), done

    def picture_due(self) -> bool:
        return time.monotonic() - self.pictured > _PICTURE_EVERY

    def update(self, value: int, total: int | None = None, picture: Image.Image | None = None) -> None:
        if picture is not None:
            self.pictured = time.monotonic()
            if self.beside is not None and self.beside is not picture:
                picture = stacked(picture, self.beside)
        self.bar.update_absolute(value, total, ("JPEG", picture, max(512, *picture.size)) if picture else None)

    def tick(self, value: int, total: int | None = None) -> None:
        """As `update`; a cancel is heeded also where nothing else listens to the bar."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.update(value, total)

    def say(self, text: str) -> None:
        """Show `text` on the node while it works, and the notes."""
        self._tell(text, working=True)

    def end(self, text: str) -> str:
        """Show `text` as what stays on the node, and the notes; returns it all."""
        return self._tell(text, working=False)

    def _tell(self, text: str, working: bool) -> str:
        """ComfyUI's own line of progress does not say which prompt it is about, and goes to every browser."""
        told = "\n".join(filter(None, (text, *self.notes)))
        _send({"prompt_id": self.prompt_id, "node": self.node_id, "chosen": self.chosen}, told, working)
        return told

    def keep(self, note: str) -> None:
        """Show one more note, from now on."""
        self.notes = (note, *self.notes)
        self.say("")

    def corrects(self, note: str, by: str, chosen: Mapping[str, str]) -> None:
        """Show another note in the place of one from now on, and what automatic inputs stand for."""
        self.notes, self.chosen = tuple(by if each == note else each for each in self.notes), dict(chosen)

    def time_left(self, done: int, total: int) -> str:
        seconds = (time.monotonic() - self.started) / max(done - self.done_before, 1) * (total - done)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"


def posted_workflow(node: type[io.ComfyNode]) -> dict[str, Any] | None:
    """The front end's workflow that came with the prompt which runs the node; a program's prompt may have none."""
    pictures = node.hidden.extra_pnginfo if node.hidden else None
    workflow = pictures.get("workflow") if isinstance(pictures, dict) else None
    return workflow if isinstance(workflow, dict) else None


def say_on(node_id: str | None, text: str) -> None:
    """Show `text` as what stays on another node than the one that is executing now, of the same prompt."""
    context = get_executing_context()
    if context:
        _send({"prompt_id": context.prompt_id, "node": node_id, "chosen": {}}, text, working=False)


def _send(about: Mapping[str, object], text: str, working: bool) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None and about["node"] is not None:
        server.send_sync(_SAID, {**about, "text": text, "working": working}, server.client_id)
