"""A workflow as the front end saves it, turned into what POST /prompt takes, as headless.py does."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

from harness.inprocess import alias_pack

if "lora_loom" not in sys.modules:  # in a script
    alias_pack()

from lora_loom.console.workflow import names, saved  # noqa: E402
from lora_loom.console.workflow.prompt import convert  # noqa: E402


def workflow_to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Raises ValueError for what cannot be converted. Titles are left out."""
    now = datetime.now()
    done = convert(saved.read(workflow), object_info, now)
    names.fill(done, now)
    if done.problems:
        raise ValueError("\n".join(done.problems))
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in done.prompt.items()}
