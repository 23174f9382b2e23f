"""Shares as people read them."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.percent import percent


@pytest.mark.parametrize(
    ("share", "digits", "said"),
    [(0.941, 2, "94 %"), (0.2, 1, "20 %"), (1.183, 2, "120 %"), (12.3, 1, "1000 %"), (0.00123, 2, "0.12 %"),
     (-0.0345, 1, "-3 %"), (0, 2, "0 %")],
)  # fmt: skip
def test_a_share_has_figures_and_no_power_of_ten(share: float, digits: int, said: str) -> None:
    assert percent(share, digits) == said
