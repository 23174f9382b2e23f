"""What a run takes is held to what was predicted, in one sentence where it is much more."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.training.plan import GB, Need
from lora_loom.lora_core.training.reality import Expected, difference

EXPECTED = Expected(2 * GB, 1.5)


@pytest.mark.parametrize(("held", "seconds"), [(None, 1.5), (2.2 * GB, 4.4), (0.5 * GB, 0.2)])
def test_what_comes_as_predicted_is_not_told(held: float | None, seconds: float) -> None:
    assert difference(EXPECTED, held, seconds) == ""


def test_small_steps_are_not_told() -> None:
    assert difference(Expected(1e6, 0.01), 0.2 * GB, 0.9) == ""


def test_slow_steps_name_what_windows_does() -> None:
    told = difference(EXPECTED, 3.1 * GB, 41.0)
    assert told.startswith(
        "a step takes 41 s where 1.5 s was predicted and holds 3.1 GB beside the weights where 2.0 GB was predicted; "
    )
    assert "Windows moves it to RAM" in told and "raise offload" in told
    assert "Windows" not in difference(EXPECTED, 3.1 * GB, 1.5)
    assert "holds" not in difference(EXPECTED, None, 41.0)


def test_a_step_is_what_lies_beside_weights_and_factors() -> None:
    need = Need(weights=7 * GB, factors=GB, activations=2 * GB, work_space=0.3 * GB, previews=5 * GB)
    assert need.step == pytest.approx(2.4 * GB)
