"""A workflow's file, and the prompt that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .workflow import check, names, saved, settings
from .workflow.check import Problem
from .workflow.prompt import Converted, Prompt, convert


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError for what is no workflow."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; give the path of a workflow") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); export the workflow again") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} has no workflow in it; export the workflow again")
    return found


def is_saved_graph(document: Mapping[str, Any]) -> bool:
    """A graph as the browser saves it; else it is in the API format."""
    return saved.is_saved(document)


def prompt_of(
    document: Mapping[str, Any],
    object_info: Mapping[str, Any],
    changes: Sequence[str] = (),
    now: datetime | None = None,
) -> tuple[Prompt, list[Problem]]:
    """Return what the browser would post, with the changes (`12.steps=500`) in it, and all that is wrong with it.

    object_info: as /object_info of this ComfyUI gives it. Raises ValueError for what is no workflow.
    """
    now = now or datetime.now()
    if is_saved_graph(document):
        done = convert(saved.read(document), object_info, now)
    else:
        done = Converted(_exported(document))
    wrong = [Problem(text) for text in (*done.problems, *settings.apply(changes, done, object_info))]
    names.fill(done, now)
    return done.prompt, wrong + check.problems(done, object_info)


def _exported(document: Mapping[str, Any]) -> Prompt:
    """A copy of a file in the API format. Raises ValueError for a node that has no class."""
    inner = document.get("prompt")
    prompt = inner if isinstance(inner, dict) else document
    for key, node in prompt.items():
        inputs = node.get("inputs") or {} if isinstance(node, dict) else None
        if not isinstance(inputs, dict) or not isinstance(node.get("class_type"), str):
            raise ValueError(f"node {key} has no class_type; export the workflow again, with Workflow > Export (API)")
    return {key: {**node, "inputs": dict(node.get("inputs") or {})} for key, node in prompt.items()}
