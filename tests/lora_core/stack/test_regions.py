"""Masks on the places of a latent, and how much each has of them."""

from __future__ import annotations

import copy

import pytest
import torch
from lora_loom.lora_core.stack.regions import Region, check_masks, costs, laid, regions_of, shares
from lora_loom.lora_core.stack.rows import parse

LEFT = torch.zeros(64, 128)
LEFT[:, :64] = 1


def of(mask: torch.Tensor, number: int = 1) -> Region:
    return Region.of(mask, number)


def test_rows_name_their_mask() -> None:
    inside, outside, anywhere = parse("<lora:a:1:mask=2>\n<lora:a:1:0.5:mask=-1:off>\n<lora:a>")
    assert (inside.mask, outside.mask, anywhere.mask) == (2, -1, 0)
    assert [row.plain for row in (inside, outside, anywhere)] == [False, False, True]
    placed = inside.changed(region=of(LEFT))
    assert copy.copy(placed).region == placed.region and placed == (*inside,)


@pytest.mark.parametrize("text", ["0", "17", "left", "-17", "1.5", ""])
def test_what_is_no_mask_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"line 1, .*: mask is .*; write the number of a mask, from 1 to 16"):
        parse(f"<lora:a:1:mask={text}>")


def test_regions_are_the_same_when_their_masks_are() -> None:
    made = regions_of([2, 1, -1, 2], {1: LEFT, 2: LEFT.clone()[None]})
    assert made[1] == made[2] != made[-1] and len({*made.values()}) == 2
    assert [made[number].name for number in (1, -1)] == ["mask 1", "outside mask 1"]
    assert torch.equal(made[1].mask + made[-1].mask, torch.ones(1, 64, 128)) and made[1].share == 0.5


def test_a_mask_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match=r"mask=3, but mask3 is not connected \(mask1, mask2 is\)"):
        check_masks([1, 3], {1: LEFT, 2: LEFT})
    with pytest.raises(ValueError, match=r"mask1 is not connected \(no mask is\)"):
        check_masks([-1], {})
    with pytest.raises(ValueError, match=r"mask 1 holds NaN"):
        of(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"mask 1 has the shape \(1, 2, 3, 4\)"):
        of(torch.zeros(1, 2, 3, 4))


def test_places_have_the_mean_of_what_lies_on_them() -> None:
    grey = LEFT.clone()
    grey[:, 60:68] = 0.25
    (row,) = laid(of(grey), (1, 4, 8, 16))[0, :, 0]
    assert torch.equal(row, torch.tensor([1.0] * 7 + [0.625, 0.125] + [0.0] * 7))
    assert laid(of(LEFT), (1, 4, 16, 32)).unique().tolist() == [0.0, 1.0]  # a hard edge stays one, also when enlarged
    assert laid(of(LEFT), (1, 4, 128, 256)).unique().tolist() == [0.0, 1.0]


def test_a_picture_that_is_no_multiple_of_a_place_may_lose_its_edge() -> None:
    assert laid(of(torch.ones(700, 1000)), (1, 4, 87, 125)).shape == (1, 1, 87, 125)
    with pytest.raises(ValueError, match=r"mask 1 is 128 x 64, but the picture has other proportions, 64 x 64 in"):
        laid(of(LEFT), (1, 4, 64, 64))


@pytest.mark.parametrize("shape", [(1, 8, 64), (1, 1280, 1, 1), (1, 8)])
def test_what_has_no_places_is_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"draws nothing that has places"):
        laid(of(LEFT), shape)


def test_pictures_of_a_batch_and_frames_of_a_video() -> None:
    three = torch.stack([LEFT, 1 - LEFT, LEFT])
    assert laid(of(three), (3, 4, 8, 16)).shape == (3, 1, 8, 16)
    assert laid(of(three), (2, 4, 3, 8, 16)).shape == (1, 1, 3, 8, 16)
    assert laid(of(LEFT), (2, 4, 3, 8, 16)).shape == (1, 1, 1, 8, 16)
    later = laid(of(torch.stack([LEFT, *[1 - LEFT] * 4])), (1, 4, 2, 8, 16), frames_each=4)[0, 0]
    assert torch.equal(later[0], 1 - later[1])
    with pytest.raises(ValueError, match=r"has 3 pictures, but the batch has 2; give one, or one for each"):
        laid(of(three), (2, 4, 8, 16))
    with pytest.raises(ValueError, match=r"3 pictures, but the video has 17 frames \(5 in the latent\)"):
        laid(of(three), (1, 4, 5, 8, 16), frames_each=4)


def test_shares_sum_to_one() -> None:
    one, two = torch.tensor([1.0, 1.0, 0.25, 0.0]), torch.tensor([0.0, 1.0, 0.25, 0.0])
    found = shares([one, two])
    assert torch.equal(torch.stack(found), torch.tensor([[1, 0.5, 0.25, 0], [0, 0.5, 0.25, 0], [0, 0, 0.5, 1.0]]))


def test_costs_are_told() -> None:
    left, right, half = of(LEFT), of(LEFT, -1), of(LEFT[:, 16:80], 3)
    assert costs([left, right]) == [
        "2 forwards in each step instead of 1 (one for each mask): sampling takes about 2 times as long"
    ]
    assert costs([left])[0].startswith("2 forwards in each step instead of 1 (1 for masks, 1 for the rest)")
    assert costs([of(torch.ones(4, 4))]) == [] == costs([])
    assert costs([of(torch.zeros(4, 4))]) == ["mask 1 is empty: its LoRAs have no effect"]
    assert "mask 1 and mask 3 share 50 %" in costs([left, half])[1]
