"""Draws workflows/*.jpg from workflows/*.json in the real front end; arguments: names of workflows, else all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `harness`

from harness.browser import FrontEnd, open_browser  # noqa: E402
from harness.comfyui import ROOT  # noqa: E402
from harness.server import ComfyServer  # noqa: E402

WIDTH = 1200


def main(names: list[str]) -> None:
    paths = [path for path in sorted(ROOT.glob("workflows/*.json")) if not names or path.stem in names]
    with ComfyServer() as server, open_browser() as browser, FrontEnd(browser, server, vue=True) as page:
        for path in paths:
            page.load_workflow(json.loads(path.read_text(encoding="utf-8")))
            page.screenshot_graph(path.with_suffix(".jpg"), width=WIDTH)
            print(path.with_suffix(".jpg").relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
