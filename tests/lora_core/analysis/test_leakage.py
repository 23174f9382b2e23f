"""Leakage from changes that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from lora_loom.lora_core.analysis.leakage import CLASS, CONCEPT, NEUTRAL, PictureChange, change, measured, similarity


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (32, 40, 3)), generator=torch.Generator().manual_seed(seed))


def test_change_of_known_pictures() -> None:
    base, picture = noise(0, 1, 4, 8, 8), noise(1)
    same = change(base, base.clone(), picture, picture.clone())
    assert (same.latent, same.pixels) == (0.0, 0.0) and same.structure == pytest.approx(0, abs=1e-12)
    half = change(base, base * 1.5, picture * 0.5, picture * 0.5 + 0.25)
    assert half.latent == pytest.approx(0.5) and half.pixels == pytest.approx(0.25)
    assert 0 < half.structure < 0.3, "only the brightness differs"
    assert change(base, -base, picture, 1 - picture).structure > 1, "the negative has the opposite structure"


def test_similarity_is_ssim() -> None:
    """By its definition, window by window, at the one scale that a picture of 7 pixels has."""
    one, other = noise(2, 7, 9, 3), noise(3, 7, 9, 3)
    x, y = ((picture.double() @ torch.tensor([0.299, 0.587, 0.114]).double()).numpy() for picture in (one, other))
    scores = []
    for left in range(3):
        a, b = x[:, left : left + 7], y[:, left : left + 7]
        top = (2 * a.mean() * b.mean() + 1e-4) * (2 * ((a - a.mean()) * (b - b.mean())).mean() + 9e-4)
        scores.append(top / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)))
    assert similarity(one, other) == pytest.approx(np.mean(scores), abs=1e-6)
    with pytest.raises(ValueError, match="too small"):
        similarity(one[:5], other[:5])


def test_ratios_and_sentences() -> None:
    found = measured({
        CONCEPT: [PictureChange(0.4, 0.1, 0.5), PictureChange(0.2, 0.3, 0.3)],
        CLASS: [PictureChange(0.03, 0.05, 0.2)],
        NEUTRAL: [PictureChange(0.0, 0.0, 0.0)] * 3,
    })  # fmt: skip
    assert found.changes[CONCEPT] == PictureChange(pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.4))
    assert found.ratio(CLASS) == pytest.approx(0.1) and found.ratio(CLASS, "structure") == pytest.approx(0.5)
    assert found.ratio(NEUTRAL) == 0
    text = found.report()
    assert "prompts without the trigger change by 10% (latent), 25% (pixels), 50% (structure) of" in text
    assert "No leakage: neutral prompts are not changed at all." in text
    assert json.loads(json.dumps(found.figures()))[CLASS]["latent_ratio"] == pytest.approx(0.1)


def test_nothing_changes_and_only_the_rest_changes() -> None:
    none, some = PictureChange(0.0, 0.0, 0.0), PictureChange(0.1, 0.1, 0.1)
    assert measured({CONCEPT: [none], CLASS: [none]}).ratio(CLASS) == 0
    odd = measured({CONCEPT: [none], CLASS: [some]})
    assert odd.ratio(CLASS) == float("inf") and "those with the trigger are not" in odd.report()
    assert json.loads(json.dumps(odd.figures()))[CLASS]["latent_ratio"] is None
    with pytest.raises(ValueError, match="there is none"):
        measured({CONCEPT: [], CLASS: [some]})
