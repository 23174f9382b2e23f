"""A run is compared with what was predicted; one sentence tells where it takes much more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lora_loom.lora_core.training.plan import GB, Need
from lora_loom.lora_core.training.reality import Expected, Seen, difference

EXPECTED = Expected(2 * GB, 1.5)


@pytest.mark.parametrize(("held", "seconds"), [(None, 1.5), (2.2 * GB, 4.4), (0.5 * GB, 0.2)])
@pytest.mark.parametrize("used", [None, 11.9 * GB])
def test_what_comes_as_predicted_is_not_told(held: float | None, seconds: float, used: float | None) -> None:
    """A GPU that is full, as torch's cache makes it, is no trouble while steps are as fast as they should be."""
    assert difference(EXPECTED, Seen(held, seconds, used, 12 * GB)) == ""


def test_small_steps_are_not_told() -> None:
    assert difference(Expected(1e6, 0.01), Seen(0.2 * GB, 0.9)) == ""


@pytest.mark.parametrize("spills", [True, False])
def test_a_slow_step_on_a_full_gpu_names_windows_where_it_is_windows(spills: bool) -> None:
    assert difference(EXPECTED, Seen(3.1 * GB, 41.0, 11.8 * GB, 12 * GB, spills)) == (
        "training is slow because GPU memory is full: a step takes 41 s (1.5 s predicted) and uses 3.1 GB besides the "
        "weights (2.0 GB predicted); 11.8 of 12.0 GB of GPU memory are in use; "
        + "Windows then moves data to RAM, which is slow; " * spills
        + "close other programs, or raise offload or lower batch_size or resolution"
    )


@pytest.mark.parametrize("offloaded", [True, False])
def test_a_slow_step_beside_room_is_not_laid_on_memory(offloaded: bool) -> None:
    told = difference(replace(EXPECTED, offloaded=offloaded), Seen(2.0 * GB, 41.0, 6 * GB, 12 * GB))
    assert told.startswith("training is slower than predicted: a step takes 41 s (1.5 s predicted); 6.0 of 12")
    assert "Windows" not in told and "batch_size" not in told and "another program uses the GPU" in told
    assert ("read from disk again" in told) == offloaded


def test_a_slow_step_where_nothing_is_told_of_memory() -> None:
    told, on_windows = (difference(EXPECTED, Seen(None, 41.0, spills=spills)) for spills in (False, True))
    assert "memory may be full: close other programs" in told and "raise offload" in told
    assert "uses" not in told and "memory may be full: Windows" in on_windows


def test_a_step_that_holds_more() -> None:
    assert difference(EXPECTED, Seen(3.1 * GB, 1.5, 11.9 * GB, 12 * GB)) == (
        "training needs more memory than predicted: a step uses 3.1 GB besides the weights (2.0 GB predicted); "
        "if memory runs out, raise offload or lower batch_size or resolution"
    )


def test_a_step_is_what_lies_beside_weights_and_factors() -> None:
    need = Need(weights=7 * GB, factors=GB, activations=2 * GB, work_space=0.3 * GB, previews=5 * GB)
    assert need.step == pytest.approx(2.4 * GB)
