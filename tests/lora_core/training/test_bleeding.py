"""How well the concepts of a LoRA are kept apart, by the losses of its pictures under each trigger."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness.toy import CONFIG, Run, Toy
from lora_loom.lora_core.training import bleeding, objective
from lora_loom.lora_core.training.bleeding import LEVELS, Bleeding, Question
from lora_loom.lora_core.training.dropout import is_clear
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.preserving import OPEN

WORDS = ("sks", "ohwx")


def test_levels_are_those_at_which_it_is_open_what_a_picture_shows() -> None:
    toy, found = Toy(), bleeding.levels(Toy())
    assert len(found) == LEVELS and found == sorted(found) and len(set(found)) == LEVELS
    assert not is_clear(toy.snr(toy.sigma(torch.tensor(found))), OPEN).any()

    class Clear(Toy):
        def snr(self, sigma):
            return torch.full_like(sigma, 100.0)

    assert bleeding.levels(Clear()) == [pytest.approx(127 / 128)] * LEVELS


@pytest.fixture(scope="module")
def run() -> Run:
    run = Run(replace(CONFIG, steps=40, learning_rate=5e-3, caption_dropout=0.0))
    run.go()
    return run


def test_a_gain_is_what_the_loss_falls_by(run: Run) -> None:
    """Against the losses written out, of the base and of the LoRA at the same noises."""
    asked = [Question(0, 0, by, told) for by, told in enumerate((0.0, 1.0, -1.0))]
    asked += [Question(5, 1, by, told) for by, told in enumerate((0.0, 5.0, -1.0))]
    ticks: list[int] = []
    factors, of = run.state.factors, (run.config, run.state, run.toy, run.samples)
    with attached(factors.branches):
        found = bleeding.measured(*of, WORDS, asked, lambda: ticks.append(1))
        for each in asked:
            x0, wanted = run.samples[each.picture].latent[None], 0.0
            for level, u in enumerate(bleeding.levels(run.toy)):
                draw = torch.Generator().manual_seed(each.picture * LEVELS + level)
                given = run.toy, x0, torch.randn(x0.shape, generator=draw), run.toy.sigma(torch.tensor([u]))
                with torch.no_grad():
                    own = float(objective.losses(*given, [each.condition], run.config.objective))
                    with factors.silence():
                        base = float(objective.losses(*given, [each.condition], run.config.objective))
                wanted += (base - own) / LEVELS
            assert found.gains[each.of][each.by] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert found.triggers == WORDS and found.pictures == 2 and ticks
    assert found.share(1, 1) == 1.0 and found.share(1, 0) == found.gains[1][0] / found.gains[1][1]


def test_the_verdict_comes_with_its_figure() -> None:
    apart = Bleeding(WORDS, ((0.2, 0.01, 0.1), (-0.03, 0.3, 0.0)), 4)
    assert apart.worst() == (0, 1, pytest.approx(0.05))
    assert (
        apart.sentence() == "The concepts are kept apart: the wrong trigger does at most 5 % of what the right one does"
    )
    assert apart.rows() == [["sks", "100 %", "5 %", "50 %"], ["ohwx", "0 %", "100 %", "0 %"]]
    mostly = replace(apart, gains=((0.2, 0.01, 0.1), (0.12, 0.3, 0.0)))
    said = "for pictures of ohwx the trigger sks does {} % of what ohwx does"
    assert mostly.sentence() == f"The concepts are mostly kept apart: {said.format(40)}"
    bleeds = replace(apart, gains=((0.2, 0.01, 0.15), (0.18, 0.3, 0.0)))
    assert bleeds.sentence().startswith(f"Concepts bleed: {said.format(60)}; choose triggers that are less alike")
    assert bleeds.sentence().endswith(
        "; with no trigger 75 % of sks is there, which keep_apart in Combine LoRA Datasets lowers"
    )
    none = replace(apart, gains=((-0.1, 0.0, 0.0), (0.12, 0.3, 0.0)))
    assert none.sentence().startswith(
        "Not learned: asked with sks, the LoRA is no nearer to its pictures than the base"
    )
    assert none.rows()[0] == ["sks", *["not learned"] * 3] and none.worst() == (1, 0, pytest.approx(0.4))


def test_fewer_pictures_of_each_are_looked_at_where_there_are_many() -> None:
    assert [bleeding.per_concept(count) for count in (2, 3, 8, 32)] == [8, 5, 2, 1]
