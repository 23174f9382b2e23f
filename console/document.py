"""A workflow's file, and the prompt that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]  # {node id: {"class_type": ..., "inputs": {...}, "_meta": {"title": ...}}}


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
    return isinstance(document.get("nodes"), list)


def prompt_of(document: Mapping[str, Any], object_info: Mapping[str, Any], settings: Sequence[str]) -> Prompt:
    """Return what the browser would post, with the settings (`12.steps=500`) in it.

    object_info: as /object_info of this ComfyUI gives it. Raises ValueError with everything that is wrong at once, a
    line each.
    """
    if is_saved_graph(document):
        raise ValueError("this is a saved graph; export it in the API format")
    if settings:
        raise ValueError("--set is not known yet")
    return {key: dict(node) for key, node in document.items()}
