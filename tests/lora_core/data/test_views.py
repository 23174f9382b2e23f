"""Variants of a picture and its caption: further crops, mirror images, masks, orders of tags, several resolutions."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.lora_core.data.buckets import numbers
from lora_loom.lora_core.data.captions import shuffled
from lora_loom.lora_core.data.dataset import Dataset, Options, combined
from lora_loom.lora_core.data.reading import check_folder, from_folder, from_tensors
from PIL import Image


def ramp(width: int, height: int) -> Image.Image:
    """Red tells the column and green the row, as parts of the whole."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).round().astype(np.uint8))


def put(folder: Path, name: str, image: Image.Image, caption: str = "a, b, c, d") -> Path:
    image.save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder / name


def load(folder: Path, resolution: int = 64, trigger: str = "", repeats: int = 1, **options) -> Dataset:
    return from_folder(folder, trigger, resolution, 16, repeats, Options(**options))


def seen(pixels: torch.Tensor) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the part of a ramp that a view shows, from its middle lines."""
    red, green = pixels[32, :, 0].float(), pixels[:, 32, 1].float()
    return float(red[0]), float(green[0]), float(red[-1]), float(green[-1])


# --- crops and mirror images ---


def test_without_options_nothing_changes(tmp_path):
    put(tmp_path, "a.png", ramp(100, 80))
    plain = from_folder(tmp_path, "", 64, 16, 1)
    (example,), (view,) = plain.examples, plain.examples[0].views()
    assert view.pixels is example.pixels and view.mask is None
    assert (example.num_views, example.captions) == (1, (example.caption,))
    assert load(tmp_path).fingerprint() == plain.fingerprint() and load(tmp_path).report() == plain.report()


@pytest.mark.parametrize("shape", [(400, 400), (600, 400), (400, 640), (64, 64), (40, 30)])
def test_further_crops_are_a_little_closer_and_aside_and_not_stretched(tmp_path, shape):
    put(tmp_path, "a.png", ramp(*shape))
    (example,) = load(tmp_path, crops=8).examples
    views = list(example.views())
    assert len(views) == example.num_views == 9
    left, top, right, bottom = seen(views[0].pixels)
    boxes = [seen(view.pixels) for view in views[1:]]
    for l, t, r, b in boxes:  # noqa: E741
        across, down = (r - l) / (right - left), (b - t) / (bottom - top)
        assert 0.84 < across < 1.0 and 0.84 < down < 1.0
        assert across == pytest.approx(down, abs=0.03)
        assert abs((l + r) - (left + right)) / 2 < 0.13 * (right - left)
        assert abs((t + b) - (top + bottom)) / 2 < 0.13 * (bottom - top)
    assert len({tuple(round(v, 2) for v in box) for box in boxes}) > 5
    again = [view.pixels for view in load(tmp_path, crops=8).examples[0].views()]
    assert all(torch.equal(view.pixels, other) for view, other in zip(views, again, strict=True))


def test_further_crops_show_what_the_centre_crop_cuts_off(tmp_path):
    put(tmp_path, "a.png", ramp(1000, 400))
    (example,) = load(tmp_path, crops=8).examples
    edges = [seen(view.pixels) for view in example.views()]
    assert min(box[0] for box in edges) < edges[0][0] - 0.01 or max(box[2] for box in edges) > edges[0][2] + 0.01


def test_crops_depend_on_the_picture(tmp_path):
    first = ramp(400, 400)
    put(tmp_path, "a.png", first)
    put(tmp_path, "b.png", Image.fromarray(np.asarray(first) // 2))
    one, other = load(tmp_path, crops=2).examples
    assert one.crops.boxes != other.crops.boxes


def test_each_view_is_followed_by_its_mirror_image(tmp_path):
    put(tmp_path, "a.png", ramp(200, 200))
    (example,) = load(tmp_path, crops=1, flip=True).examples
    views = [view.pixels for view in example.views()]
    assert len(views) == example.num_views == 4
    assert torch.equal(views[1], views[0].flip(1)) and torch.equal(views[3], views[2].flip(1))
    assert not torch.equal(views[0], views[2])


# --- masks ---


def halves(size: tuple[int, int], left: int, right: int) -> Image.Image:
    mask = Image.new("L", size, right)
    mask.paste(left, (0, 0, size[0] // 2, size[1]))
    return mask


def test_transparency_is_a_mask(tmp_path):
    image = ramp(128, 128)
    image.putalpha(halves((128, 128), 255, 0))
    put(tmp_path, "a.png", image)
    put(tmp_path, "b.png", ramp(64, 64))
    masked, whole = load(tmp_path, masks="alpha").examples
    assert whole.mask is None and masked.mask.shape == (64, 64) and masked.mask.dtype == torch.uint8
    assert masked.mask[:, :28].min() == 255 and masked.mask[:, 36:].max() == 0
    assert "masks: 1 of 2" in load(tmp_path, masks="auto").report()
    assert all(example.mask is None for example in load(tmp_path).examples)
    with pytest.raises(ValueError, match="masks is '?-?alpha'? but no picture has a transparent part"):
        (tmp_path / "a.png").unlink()
        load(tmp_path, masks="alpha")


@pytest.mark.parametrize("masks", ["-mask files", "auto"])
def test_mask_files(tmp_path, masks):
    put(tmp_path, "a.jpg", ramp(128, 128))
    put(tmp_path, "b.png", ramp(128, 128))
    halves((64, 64), 255, 0).save(tmp_path / "a-mask.png")
    check_folder(tmp_path, "", masks)
    data = load(tmp_path, masks=masks)
    assert [Path(example.source).name for example in data.examples] == ["a.jpg", "b.png"] and not data.left_out
    assert data.examples[0].mask[:, :28].min() == 255 and data.examples[1].mask is None


def test_masks_move_with_their_picture(tmp_path):
    """The picture shows its own mask: white where it is white."""
    mask = Image.new("L", (300, 200), 0)
    mask.paste(255, (90, 40, 170, 160))
    put(tmp_path, "a.png", mask.convert("RGB"))
    mask.save(tmp_path / "a-mask.png")
    (example,) = load(tmp_path, masks="-mask files", crops=4, flip=True).examples
    views = list(example.views())
    assert len(views) == 10 and len(example.masks()) == 10
    for view, alone in zip(views, example.masks(), strict=True):
        assert torch.equal(view.mask, alone)
        assert (view.pixels[..., 0].float() - view.mask / 255).abs().mean() < 0.01
        assert 0.1 < view.mask.float().mean() / 255 < 0.6


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (128, 128), 0), "a-mask.png masks out the whole picture"),
        (Image.new("L", (128, 64), 255), "the mask a-mask.png is 128 x 64 but its picture is 128 x 128"),
    ],
)
def test_masks_that_cannot_be_meant(tmp_path, mask, message):
    put(tmp_path, "a.jpg", ramp(128, 128))
    mask.save(tmp_path / "a-mask.png")
    with pytest.raises(ValueError, match=message):
        load(tmp_path, masks="auto")


def test_mask_files_that_are_asked_for_must_be_there(tmp_path):
    put(tmp_path, "a.jpg", ramp(64, 64))
    check_folder(tmp_path, "", "auto")
    with pytest.raises(ValueError, match="none of the 1 images in .* has a mask; put x-mask.png beside x.jpg"):
        check_folder(tmp_path, "", "-mask files")


# --- captions ---


def test_orders_of_tags():
    orders = shuffled("sks, a, b, c", keep=1, count=6)
    assert set(orders) == {", ".join(("sks", *rest)) for rest in permutations("abc")}
    assert orders[0] == "sks, a, b, c" and orders == shuffled("sks, a, b, c", 1, 6)
    assert len(shuffled("sks, a, b, c", 1, 3)) == 3 and len(shuffled("sks, a, b, c", 0, 24)) == 24
    assert shuffled("sks, a, b, c", 4, 9) == ("sks, a, b, c",)
    assert shuffled("a photo of a dog", 1, 4) == ("a photo of a dog",)
    assert shuffled("sks, a, a", 1, 8) == ("sks, a, a",), "the same words are no other order"


def test_tags_are_shuffled_behind_the_trigger(tmp_path):
    put(tmp_path, "a.png", ramp(64, 64), "a, b, c")
    (example,) = load(tmp_path, trigger="sks", shuffle_tags=True, caption_variants=5).examples
    assert example.caption == example.captions[0] == "sks, a, b, c" and len(example.captions) == 5
    assert all(caption.startswith("sks, ") for caption in example.captions)


# --- resolutions, roles, sets ---


def test_each_picture_at_each_resolution(tmp_path):
    put(tmp_path, "a.png", ramp(300, 300))
    put(tmp_path, "b.png", ramp(300, 150))
    data = load(tmp_path, resolutions=(96, 64))
    assert [example.size for example in data.examples] == [(64, 64), (96, 96), (80, 48), (128, 64)]
    assert (data.resolution, data.num_pictures()) == (96, 2)
    assert "\n2 images x 1 repeats at resolution 64, 96\n" in data.report()


def test_numbers():
    assert numbers("resolutions", " 512, 768,") == (512, 768) and numbers("resolutions", "") == ()
    with pytest.raises(ValueError, match="resolutions is '512; 768'; write whole numbers"):
        numbers("resolutions", "512; 768")


def test_class_images_have_a_class_word_and_no_trigger(tmp_path):
    put(tmp_path, "a.png", ramp(64, 64), "on a beach")
    ramp(64, 64).save(tmp_path / "b.png")
    data = load(tmp_path, trigger="dog", class_images=True)
    assert [example.caption for example in data.examples] == ["dog, on a beach", "dog"]
    assert data.trigger == "" and data.role == "class" and data.groups[0].role == "class"
    assert "class images" in data.report()


def test_sets_are_combined_with_their_own_settings(tmp_path):
    for name, count in (("dog", 2), ("cat", 3), ("animals", 4)):
        (tmp_path / name).mkdir()
        for index in range(count):
            put(tmp_path / name, f"{index}.png", ramp(64 + index, 64), "x")
    dog = load(tmp_path / "dog", trigger="sks dog", repeats=10)
    cat = load(tmp_path / "cat", trigger="ohwx cat", weight=2.5, repeats=4)
    animals = load(tmp_path / "animals", trigger="animal", class_images=True, weight=0.5, resolution=96)
    data = combined([dog, cat, animals])
    assert data.times() == [10.0] * 2 + [10.0] * 3 + [0.5] * 4
    assert data.trigger == "sks dog, ohwx cat" and data.role == "concept" and data.resolutions == (64, 96)
    report = data.report()
    assert report.splitlines()[1].startswith("9 images in 3 sets at resolution 64, 96")
    assert "38.5% dog: 2 images x 10 repeats x 1, trigger sks dog" in report
    assert "3.8% animals: 4 images x 1 repeats x 0.5, class images" in report
    assert len({combined(each).fingerprint() for each in ([dog], [cat], [dog, cat], [cat, dog], [dog, animals])}) == 5
    assert combined([dog]).fingerprint() == dog.fingerprint()
    with pytest.raises(ValueError, match="no data set is connected"):
        combined([])


def test_the_fingerprint_sees_every_option(tmp_path):
    image = ramp(100, 100)
    image.putalpha(halves((100, 100), 255, 9))
    put(tmp_path, "a.png", image)
    options = [
        {}, {"flip": True}, {"crops": 1}, {"crops": 2}, {"shuffle_tags": True}, {"weight": 2.0}, {"masks": "alpha"},
        {"shuffle_tags": True, "keep_tokens": 2}, {"shuffle_tags": True, "caption_variants": 3}, {"class_images": True},
        {"resolutions": (64, 96)},
    ]  # fmt: skip
    assert len({load(tmp_path, **each).fingerprint() for each in options}) == len(options)
    assert load(tmp_path, keep_tokens=3, caption_variants=9).fingerprint() == load(tmp_path).fingerprint()


def test_connected_pictures_take_options_too():
    image = torch.rand(64, 64, 4)
    image[:, :32, 3], image[:, 32:, 3] = 1, 0
    data = from_tensors(
        [image], ["a, b"], "", 64, 16, 1, Options(masks="alpha", flip=True, shuffle_tags=True, keep_tokens=0)
    )
    (example,) = data.examples
    assert example.captions == ("a, b", "b, a") and example.num_views == 2
    assert Counter(example.masks()[1].unique().tolist()) == {0: 1, 255: 1}
