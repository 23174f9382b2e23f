"""Makes words of the events that ComfyUI and the pack send to browsers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .asked import title
from .document import Prompt
from .words import Words, bar, clock


class Progress:
    """How far a prompt is. `runs`: what was last told of the run of each Train LoRA, by node. `outputs`: what nodes
    have shown."""

    def __init__(self, prompt: Prompt, words: Words) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}
        self._prompt, self._words = prompt, words
        self._node, self._begun, self._said, self._bar = "", 0.0, "", ""
        self._heard = {
            "executing": self._executing,
            "executed": self._executed,
            "progress": self._progress,
            "lora_loom.said": self._says,
            "lora_loom.run": self._run,
        }

    def hear(self, event: object, data: Any) -> None:
        """Take an event; what is none of ours is passed over, as are pictures."""
        if isinstance(data, dict) and (take := self._heard.get(event if isinstance(event, str) else "")):
            take(data)

    def _executing(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        if node is not None and str(node) != self._node:
            self._node, self._begun, self._said, self._bar = str(node), time.monotonic(), "", ""
            self._words.moving(self._title())

    def _executed(self, data: Mapping[str, Any]) -> None:
        self.outputs[str(data.get("node"))] = data.get("output") or {}

    def _progress(self, data: Mapping[str, Any]) -> None:
        """Show how far a node is; what it says of itself, as Train LoRA does, in the place of numbers."""
        done, total = data.get("value") or 0, data.get("max") or 0
        if str(data.get("node")) != self._node or not total:
            return
        left = "" if self._said or not done else f"  {self._left(done, total)}"
        said = self._said or f"{done} of {total}"
        self._bar = f"{bar(done, total)} "
        self._words.moving(f"{self._bar}{self._title()}: {said}{left}", now=done >= total)

    def _left(self, done: float, total: float) -> str:
        return f"{clock((time.monotonic() - self._begun) / done * (total - done))} left"

    def _says(self, data: Mapping[str, Any]) -> None:
        """Show it: what is said while a node works moves; what is left on it stays."""
        text, node = str(data.get("text") or ""), str(data.get("node"))
        if data.get("working"):
            self._said = text.partition("\n")[0]
            self._words.moving(f"{self._bar}{self._title()}: {self._said}")
        elif text:
            self._words.line(f"{title(self._prompt, node)}: " + text.replace("\n", "\n    "))

    def _run(self, data: Mapping[str, Any]) -> None:
        self.runs[str(data.get("node"))] = dict(data)

    def _title(self) -> str:
        return title(self._prompt, self._node)
