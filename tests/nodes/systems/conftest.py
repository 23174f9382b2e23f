"""Kandinsky 2.2 on both sides, once for all tests of the room."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.cli_args
import pytest
from harness.kandinsky import System


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.cli_args.args, "fp32_text_enc", True)
        yield System(tmp_path_factory.mktemp("kandinsky"))
