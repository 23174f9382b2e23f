"""Checks what a run tells at its end: sentences, tables and charts that agree with the record they are made of."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lora_loom.lora_core.drawing.plot import PAPER
from lora_loom.lora_core.training import charts
from lora_loom.lora_core.training.bleeding import Bleeding
from lora_loom.lora_core.training.judgement import Verdict
from lora_loom.lora_core.training.record import Point, Record
from lora_loom.lora_core.training.report import Story, report
from lora_loom.lora_core.training.steps import Look, StepResult
from PIL import Image, ImageColor

PICTURES = 6


def story(steps: int = 200, odd: bool = True, validated: bool = True, **more) -> Story:
    """Loss 1 + u that falls by a third; picture 2, when `odd`, is twice as hard as the others."""
    rng, record = random.Random(0), Record()
    for n in range(1, steps + 1):
        index, u = n % PICTURES, rng.random()
        loss = (1 + u) * (1 - n / steps / 3) * (2.0 if odd and index == 2 else 1.0) * rng.uniform(0.9, 1.1)
        kept = 0.01 * n / steps
        if record.take(StepResult(n, loss, 0.3, 1e-4, 0.1, kept, (Look(index, u, loss),)), steps):
            record.windows[-1].sizes = [0.04 * n / steps, 0.01 * n / steps]
    if validated:
        record.base = [1.5, 1.1, 1.9]
        record.points = [Point(n, [loss * (1 - n / steps / 4) for loss in record.base]) for n in (50, 100, 150, 200)]
    losses = [1.5 * (1 - n / steps / 3) * rng.uniform(0.5, 1.5) for n in range(steps)]
    verdict = Verdict("improving", "held-out pictures still improve", 200 if validated else None)
    drawn = [(0.5, 0), (0.1, 0), (0.9, 1)] if validated else []
    names = [f"{n}.png" for n in range(PICTURES)]
    layers = [("blocks.0.attn.q", 0.05)]
    return Story(record, verdict, losses, steps, names, drawn, validated, layers, (2.0, 20.0), **more)


def test_the_report_says_what_the_record_holds() -> None:
    told = report(story(notes=("A note.",)))
    assert told.startswith("Held-out pictures still improve.\nA note.\n")
    assert "Validation: 3 samples with fixed noise, from held-out pictures." in told
    assert "| 0 | 1.5000 | |" in told and "| 200 (best) | 1.1250 | -25.00 % |" in told
    assert "Validation took 2.0 s of 20.0 s (10 %)." in told
    assert "Size of the LoRA: 4 % of the weights of the model." in told
    assert "Size of the LoRA: 1 % of the weights of the text encoders." in told
    assert "Changed most: blocks.0.attn.q 5 %." in told and "Preservation loss at the end: 0.00" in told
    assert "| 0.5 to 0.625 | " in told and "| 1.5000 | 1.1250 |" in told, "validation by noise level"


TWO = Bleeding(("sks", "a trigger that is long"), ((0.2, 0.09, 0.01), (-0.1, 0.3, 0.6)), 4)


def test_concepts_are_told_apart() -> None:
    names = ["sks", "ohwx", *["sks"] * 4]
    told = report(story(concepts=names, bleeding=TWO))
    assert "| sks | 1.3000 | 0.9750 | -25.00 % |\n| ohwx | 1.9000 | 1.4250 | -25.00 % |" in told
    assert (
        "mostly kept apart: for pictures of sks the trigger a trigger that is long does 45 % of what sks does; with no"
        in told
    )
    assert (
        "by the loss of 4 held-out pictures in noise:" in told
        and "| a trigger that is long | 0 % | 100 % | 200 % |" in told
    )
    alone = report(story(concepts=["sks"] * 6))
    assert "concept |" not in alone and "pictures of" not in alone


def test_the_chart_of_concepts_is_as_bright_as_their_shares() -> None:
    panel = np.asarray(charts.draw_bleeding(TWO)).astype(int)
    rows, columns = (
        np.linspace(46, 232, 5).astype(int)[[1, 3]] - 20,
        np.linspace(112, 500, 7).astype(int)[[1, 3, 5]] - 30,
    )
    shown = panel[np.ix_(rows, columns)].sum(-1)
    assert shown[0, 0] == shown[1, 1] == shown[1, 2] == sum(charts._ALL), "all, or more than its own trigger does"
    assert shown[1, 0] == sum(charts._NOTHING) and sum(charts._NOTHING) < shown[0, 2] < shown[0, 1] < shown[0, 0]
    page = charts.draw_charts(story(bleeding=TWO), {})
    assert page.size == (1024, 768) and np.array_equal(np.asarray(page)[512:, :512], panel)
    unlearned = charts.draw_bleeding(Bleeding(("a", "b"), ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), 2))
    assert np.asarray(unlearned).astype(int)[rows[0], columns[0]].sum() == sum(charts._NOTHING)


def test_only_a_picture_that_stands_out_is_named() -> None:
    (line,) = [line for line in report(story()).splitlines() if "unusual" in line]
    assert line.startswith("| 2.png | +")
    assert "unusual" not in report(story(odd=False))


def test_many_pictures_are_cut_in_the_middle() -> None:
    record = Record()
    for n in range(40):
        record.take(StepResult(n + 1, 1.0, 1.0, 1e-4, looks=(Look(n, 0.5, 1 + n / 40),)), 40)
    many = Story(record, Verdict("", "short"), [1.0], 40, [f"{n}.png" for n in range(40)])
    rows = [line for line in report(many).splitlines() if line.startswith("|") and (".png" in line or "..." in line)]
    assert len(rows) == 12 + 1 + 12 and rows[0].startswith("| 39.png") and rows[-1].startswith("| 0.png")


def test_a_run_without_a_step_or_validation_has_a_report() -> None:
    bare = Story(Record(), Verdict("", "nothing was trained"), [], 10, [])
    assert report(bare) == "Nothing was trained."
    assert charts.draw_charts(bare, {}).size == (1024, 512)
    assert "Validation" not in report(story(validated=False))


@pytest.mark.parametrize("validated", [True, False])
def test_charts_use_their_paper_and_nothing_is_clipped(validated: bool) -> None:
    """A margin of two pixels around every panel stays empty."""
    thumbnails = {n: Image.new("RGB", (64, 48), "teal") for n in range(PICTURES)}
    page = np.asarray(charts.draw_charts(story(validated=validated), thumbnails))
    assert page.shape == (512, 1024, 3)
    paper = np.array(ImageColor.getrgb(PAPER))
    for panel in (page[:256, :512], page[:256, 512:], page[256:, :512], page[256:, 512:]):
        inside = np.any(panel != paper, axis=-1)
        assert inside[2:-2, 2:-2].mean() > 0.02
        edges = np.concatenate([inside[:2].ravel(), inside[-2:].ravel(), inside[:, :2].ravel(), inside[:, -2:].ravel()])
        assert not edges.any()


def test_marks_begin_at_the_base_model() -> None:
    found = charts.marks(story().record, best=200)
    assert found.validation[0] == (0, pytest.approx(1.5)) and found.validation[-1] == (200, pytest.approx(1.125))
    assert found.best == 200 and len(found.preservation) == 100
    assert charts.marks(Record(), None).validation == []
