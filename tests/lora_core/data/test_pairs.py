"""Pairs of liked and disliked pictures: found by name or by caption, and what is said of those that are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.data.contact_sheet import contact_sheet
from lora_loom.lora_core.data.dataset import PLAIN, Dataset, Options, combined
from lora_loom.lora_core.data.pairs import paired, partners, report, side_by_side
from lora_loom.lora_core.data.reading import from_folder, from_tensors
from lora_loom.lora_core.data.task import LearnPreference
from PIL import Image

Pictures = Mapping[str, tuple[str, str, tuple[int, int]]]  # colour, caption and size by name
SQUARE, WIDE = (64, 64), (96, 48)


def read(folder: Path, pictures: Pictures, options: Options = PLAIN, resolution: int = 64) -> Dataset:
    folder.mkdir()
    for name, (colour, caption, size) in pictures.items():
        Image.new("RGB", size, colour).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption)
    return from_folder(folder, "", resolution, 16, 1, options)


def both(tmp_path: Path, liked: Pictures, disliked: Pictures, beta: float = 500.0) -> Dataset:
    return paired(read(tmp_path / "liked", liked), read(tmp_path / "disliked", disliked), LearnPreference(beta))


def pairs(data: Dataset) -> list[tuple[str, str]]:
    return [(Path(each.source).name, Path(each.partner.source).name) for each in data.examples]


def test_pictures_of_one_name_are_pairs(tmp_path: Path) -> None:
    liked = {"a.png": ("red", "a cat", SQUARE), "b.png": ("blue", "a dog", WIDE), "c.png": ("lime", "a cow", SQUARE),
             "d.png": ("white", "a hen", SQUARE), "e.png": ("gray", "a fox", SQUARE)}  # fmt: skip
    disliked = {"b.jpg": ("navy", "ugly", WIDE), "a.png": ("pink", "ugly", SQUARE), "d.png": ("black", "ugly", WIDE),
                "e.png": ("gray", "ugly", SQUARE), "f.png": ("red", "ugly", SQUARE)}  # fmt: skip
    data = both(tmp_path, liked, disliked)
    assert pairs(data) == [("a.png", "a.png"), ("b.png", "b.jpg")]
    assert [each.caption for each in data.examples] == ["a cat", "a dog"]
    assert [each.size for each in partners(data).examples] == [each.size for each in data.examples]
    assert dict(data.left_out) == {
        "c.png": "no disliked picture has its name", "f.png": "no liked picture has its name",
        "d.png": "it is 64 x 64 and its partner 80 x 48 after cropping; give both one shape",
        "e.png": "its partner is the same picture",
    }  # fmt: skip
    told = report(data).splitlines()
    assert told[0] == "2 pairs, found by name; captions are those of the liked pictures"
    assert "left out c.png: no disliked picture has its name" in told
    assert contact_sheet(side_by_side(data)).width > contact_sheet(data).width


def test_pictures_of_one_caption_and_size_are_pairs_where_no_name_is(tmp_path: Path) -> None:
    liked = {"1.png": ("red", "a cat", SQUARE), "2.png": ("blue", "a cat", SQUARE), "3.png": ("lime", "a dog", SQUARE)}
    disliked = {"x.png": ("red", "a cat", SQUARE), "y.png": ("navy", "a cat", SQUARE), "z.png": ("red", "a dog", WIDE),
                "w.png": ("gold", "a cat", SQUARE)}  # fmt: skip
    data = both(tmp_path, liked, disliked)
    assert pairs(data) == [("1.png", "w.png"), ("2.png", "x.png")], "of others, and each once"
    assert dict(data.left_out) == {
        "3.png": "no other disliked picture of its caption and size is left",
        "y.png": "no other liked picture of its caption and size is left",
        "z.png": "no other liked picture of its caption and size is left",
    }
    assert report(data).startswith("2 pairs, found by caption and size, as no name is in both sets; ")


def test_connected_images_are_pairs_by_number() -> None:
    images = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    liked, disliked = (from_tensors(part, ["a cat"], "", 64, 16, 1) for part in images.split(2))
    data = paired(liked, disliked, LearnPreference(500))
    assert [(each.source, each.partner.source) for each in data.examples] == [("image 1",) * 2, ("image 2",) * 2]


def test_both_are_mirrored_and_taken_at_every_resolution_alike(tmp_path: Path) -> None:
    one, other = {"a.png": ("red", "a cat", SQUARE)}, {"a.png": ("blue", "a cat", SQUARE)}
    liked = read(tmp_path / "liked", one, Options(flip=True, resolutions=(48, 64)))
    data = paired(liked, read(tmp_path / "disliked", other, Options(resolutions=(48, 64))), LearnPreference(500))
    assert [(each.size, each.partner.size) for each in data.examples] == [((48, 48),) * 2, ((64, 64),) * 2]
    assert partners(data).examples[0].num_views == data.examples[0].num_views == 2


def test_what_is_paired_and_how_strongly_is_told_apart(tmp_path: Path) -> None:
    one, other = {"a.png": ("red", "a cat", SQUARE)}, {"a.png": ("blue", "a cat", SQUARE)}
    liked, disliked = read(tmp_path / "liked", one), read(tmp_path / "disliked", other)
    third = read(tmp_path / "third", {"a.png": ("gold", "a cat", SQUARE)})
    found = [
        paired(liked, disliked, LearnPreference(500)),
        paired(liked, disliked, LearnPreference(501)),
        paired(liked, third, LearnPreference(500)),
        paired(disliked, liked, LearnPreference(500)),
    ]
    assert len({each.fingerprint() for each in [liked, *found]}) == 5
    assert combined([found[0], found[2]]).task == found[0].task
    for others in (liked, found[1]):
        with pytest.raises(ValueError, match="cannot be combined: one run learns one thing"):
            combined([found[0], others])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(crops=2), "has crops, which would show other parts of the two; set crops to 0"),
        (Options(class_images=True), "has class images, which pairs do not use; switch class_images off"),
    ],
)
def test_sets_that_pairs_cannot_be_made_of(tmp_path: Path, options: Options, said: str) -> None:
    liked = read(tmp_path / "liked", {"a.png": ("red", "a cat", SQUARE)})
    disliked = read(tmp_path / "disliked", {"a.png": ("blue", "a cat", SQUARE)}, options)
    with pytest.raises(ValueError, match=f"the data set of disliked pictures {said}"):
        paired(liked, disliked, LearnPreference(500))


def test_sets_without_a_pair(tmp_path: Path) -> None:
    liked = read(tmp_path / "liked", {"a.png": ("red", "a cat", SQUARE)})
    with pytest.raises(
        ValueError, match="there is no pair of a liked picture and a disliked picture .a.png: its partner"
    ):
        paired(liked, liked, LearnPreference(500))
    other = read(tmp_path / "other", {"b.png": ("red", "a dog", SQUARE)})
    with pytest.raises(ValueError, match="a.png: no other disliked picture of its caption and size is left"):
        paired(liked, other, LearnPreference(500))
    larger = read(tmp_path / "larger", {"a.png": ("blue", "a cat", SQUARE)}, resolution=96)
    with pytest.raises(ValueError, match="liked pictures are read at resolution 64 and the disliked pictures at 96"):
        paired(liked, larger, LearnPreference(500))
    pairs_already = paired(liked, read(tmp_path / "blue", {"a.png": ("blue", "a cat", SQUARE)}), LearnPreference(500))
    with pytest.raises(ValueError, match="the data set of liked pictures is made of pairs already"):
        paired(pairs_already, other, LearnPreference(500))
