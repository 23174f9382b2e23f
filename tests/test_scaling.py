"""docs/scaling.md says what its code makes of what was counted and measured; the simulator is right where that can be
worked out by hand, and was near enough where it was held against processes."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from benchmarks._calibration import errors
from benchmarks._counting import sizes, work
from benchmarks._real import REAL
from benchmarks._scaling import FAST, FLEETS, Counted, Prediction, shares
from benchmarks._scaling_page import PAGE, Figures, page, sent
from benchmarks._simulator import Fleet, Host, Jitter, Link, Step, Task, finished, on_fleet, on_host
from lora_loom.lora_core.ranks.group import Group
from lora_loom.lora_core.training.meter import OperatorWork

LINK = Link(2e-3, 1e6)
FLEET = Fleet(1, LINK, LINK)
VARIED = Jitter((0.9, 1.0, 1.05, 1.4))


@pytest.fixture(scope="module")
def figures() -> Figures:
    return Figures.stored()


def test_the_page_says_what_was_measured_and_counted(figures: Figures) -> None:
    assert page(figures) == PAGE.read_text("utf-8"), "write it with `dev.py bench scaling --write`"


def test_sizes_are_those_of_the_code_and_of_published_files(figures: Figures) -> None:
    assert figures.families.keys() == REAL.keys()
    for name, counted in figures.families.items():
        assert counted.billions == pytest.approx(REAL[name].billions, rel=0.015), name
    for name in ("SD 1.5", "FLUX.2 klein 4B", "Z-Image", "Wan 2.1 14B"):
        found, stored = sizes(REAL[name]), figures.families[name]
        assert (found["layers"], found["numbers"]) == (stored.layers, stored.numbers), name


def test_work_is_that_of_the_code(figures: Figures) -> None:
    stored = figures.families["SD 1.5"]
    found = work(REAL["SD 1.5"], stored.targets, stored.pixels, (1,))
    assert found["latent"] == stored.latent
    assert OperatorWork(*found["work"]["1"]) == stored.of(1), "count it with `dev.py bench scaling --count`"


def test_steps_of_real_processes_were_predicted(figures: Figures) -> None:
    for name, found in figures.gloo.items():
        off = [*map(abs, errors(found))]
        assert len(off) == 12 and median(off) < 0.12 and max(off) < 0.25, name


def test_more_work_than_was_counted_grows_as_that_did() -> None:
    counted = Counted(
        1.0, "attention", 512, {}, {"attention": 5}, 7, {2: OperatorWork(8, 5, 9), 4: OperatorWork(16, 9, 9)}
    )
    assert counted.of(8) == OperatorWork(32, 17, 9) and counted.of(2).moved == 5
    assert sent(counted, 4) == 30


def test_shares_are_those_of_train_lora() -> None:
    for batch, ranks in ((10, 4), (7, 3), (64, 64)):
        assert shares(batch, ranks) == [len(Group(rank, ranks).share(batch)) for rank in range(ranks)]


def test_a_sum_takes_what_it_takes_by_hand() -> None:
    for ranks in (2, 4, 8, 64):
        zeros, size = np.zeros(ranks), 64e3
        ring = 2 * (ranks - 1) * (LINK.latency + size / ranks / LINK.bandwidth)
        halving = 2 * math.log2(ranks) * LINK.latency + 2 * size * (ranks - 1) / ranks / LINK.bandwidth
        assert FLEET.ring(zeros, size) == pytest.approx(np.full(ranks, ring))
        assert FLEET.halving(zeros, size) == pytest.approx(np.full(ranks, halving))


def test_machines_share_their_link() -> None:
    """A ring crosses each machine's link once; halves that all eight send to other machines cross it together."""
    near, far = Link(0.0, 8e6), Link(0.0, 1e6)
    fleet, zeros, size = Fleet(8, near, far), np.zeros(16), 16e6
    assert fleet.ring(zeros, size).max() == pytest.approx(2 * 15 * 1.0)
    inside, between = 2 * size * (1 / 2 + 1 / 4 + 1 / 8) / 8e6, 2 * size / 16 * 8 / 1e6
    assert fleet.halving(zeros, size) == pytest.approx(np.full(16, inside + between))


@pytest.mark.parametrize("ready", [(1.0,), (0.25, 0.5, 0.75, 1.0), (0.5, 0.8)], ids=len)
@pytest.mark.parametrize("compute", [(0.4, 0.4), (0.4, 0.1, 0.3)], ids=len)
def test_both_ways_agree_where_every_rank_has_a_core(compute: tuple[float, ...], ready: tuple[float, ...]) -> None:
    step, many = Step(compute, 0.01, 48e3, ready), 16
    host = Host(many, LINK.latency, byte=1 / LINK.bandwidth)
    assert on_host(step, host, VARIED, steps=6) == pytest.approx(on_fleet(step, FLEET, VARIED, steps=6))


def test_tasks_share_cores() -> None:
    four = [Task(1.0)] * 4
    assert finished(four, cores=2) == pytest.approx([2.0] * 4)
    assert finished(four, cores=4, slowdown=lambda running: 1 + 0.1 * (running - 1)) == pytest.approx([1.3] * 4)
    copying = finished([Task(1.0, copies=True), Task(1.0)], cores=2, slowdown=lambda running: float(running))
    assert copying == pytest.approx([1.0, 1.5])
    chained = finished([Task(1.0), Task(0.5, (0,), pause=0.25), Task(3.0)], cores=1)
    assert chained == pytest.approx([2.0, 3.25, 4.5])


def test_four_processes_on_two_cores_take_twice_as_long() -> None:
    step = Step((0.4,) * 4, 0.0, 0.0)
    assert on_host(step, Host(2, 0.0, 0.0)) == pytest.approx(0.8)
    assert on_host(step, Host(2, 0.0, 0.0, slow=((1, 1.0), (2, 1.0), (4, 1.25)))) == pytest.approx(1.0)


def test_a_late_rank_keeps_the_others_waiting() -> None:
    even, uneven = Step((0.4,) * 4, 0.0, 4e3), Step((0.4, 0.4, 0.7, 0.4), 0.0, 4e3)
    assert on_fleet(uneven, FLEET) == pytest.approx(on_fleet(even, FLEET) + 0.3)
    assert on_fleet(even, FLEET, VARIED) > on_fleet(even, FLEET) * 1.1


def test_overlap_hides_what_fits_behind_the_rest_of_the_pass() -> None:
    plain, parts = Step((1.0,) * 2, 0.0, 40e3), Step((1.0,) * 2, 0.0, 40e3, (0.25, 0.5, 0.75, 1.0))
    last = 2 * (LINK.latency + 5e3 / LINK.bandwidth)
    assert on_fleet(parts, FLEET, steps=1) == pytest.approx(1.0 + last)
    assert on_fleet(plain, FLEET, steps=1) == pytest.approx(1.0 + 2 * (LINK.latency + 20e3 / LINK.bandwidth))


def test_efficiency_is_that_of_a_rank_by_itself(figures: Figures) -> None:
    counted, exact = figures.families["SDXL"], Prediction(Jitter(), draw=0.0)
    alone = exact.seconds(counted, FAST, "PCIe", 1, 1)
    both = exact.seconds(counted, FAST, "PCIe", 2, 2)
    link = FLEETS["PCIe"].inside
    assert both - alone == pytest.approx(2 * link.latency + counted.bytes / link.bandwidth)
    assert exact.efficiency(counted, FAST, "PCIe", 1, 2) == pytest.approx(alone / both)
    drawing, waiting, summing = exact.lost(counted, FAST, "PCIe", 1, 2)
    assert (drawing, waiting) == (0.0, 0.0) and summing == pytest.approx(counted.bytes / link.bandwidth / both)
