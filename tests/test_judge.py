"""The judge of `dev.py bench learn`: true pictures score high, pictures without the concept low, wherever they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks._concepts import CONCEPTS, Concept
from benchmarks._judge import judge, lab, segment
from demo.shapes import draw

each_concept = pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.word)


@each_concept
def test_the_true_picture_anywhere_is_what_was_asked_for(concept: Concept) -> None:
    (scene,) = concept.scenes(1, "test")
    drawn = concept.layers(replace(scene, x=0.1, y=-0.07, size=0.63)).picture()
    verdict = judge(drawn, replace(scene, x=-0.1, y=0.1, size=0.7), concept)
    assert verdict.overlap > 0.85 and verdict.colour < 0.5 and verdict.error < 3


@each_concept
def test_a_picture_in_known_words_is_not(concept: Concept) -> None:
    (scene,) = concept.scenes(1, "test")
    verdict = judge(draw(concept.plain(scene), 96, 96), scene, concept)
    if concept.word == "navy":
        assert verdict.overlap > 0.85 and verdict.colour > 20  # the right shape in the wrong colour
    else:
        assert verdict.overlap < 0.8
    assert verdict.error > 4


@each_concept
def test_half_the_concept_is_half_the_overlap(concept: Concept) -> None:
    (scene,) = concept.scenes(1, "test")
    layers = concept.layers(scene)
    masks = layers.masks.clone()
    masks[layers.concept, ::2] = 0
    halved = replace(layers, masks=masks).picture()
    assert judge(halved, scene, concept).overlap == pytest.approx(0.5, abs=0.12)


def test_lab_is_that_of_the_colour_atlas() -> None:
    found = lab(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([[100, 0, 0], [53.24, 80.09, 67.2], [32.3, 79.19, -107.86]]), atol=0.1)


@each_concept
def test_every_layer_is_found_again(concept: Concept) -> None:
    (scene,) = concept.scenes(1, "test")
    layers = concept.layers(scene)
    assert (segment(layers.picture(), layers) == layers.labels()).float().mean() > 0.97
