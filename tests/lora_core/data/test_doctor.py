"""The doctor finds what was put wrong, names the file and the cure, and says nothing of what is right."""

from __future__ import annotations

import io
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.lora_core.data import doctor, doctor_captions
from lora_loom.lora_core.data.contact_sheet import marked_sheet
from lora_loom.lora_core.data.dataset import Dataset, Options, combined
from lora_loom.lora_core.data.doctor_pictures import NEAR, cropped_away, enlarged, grouped, near_copies, sharpness
from lora_loom.lora_core.data.reading import from_folder
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

SIDE = 256


@cache
def natural(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Noise with the spectrum of photographs, in colours that go together."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    common, *own = draw.normal(size=(4, *frequency.shape)) + 1j * draw.normal(size=(4, *frequency.shape))
    channels = [np.fft.irfft2((common + 0.3 * each) / frequency**1.2, (height, width)) for each in own]
    values = np.stack([0.5 + 0.18 * channel / channel.std() for channel in channels], -1)
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))


@cache
def portrait(seed: int) -> Image.Image:
    """All of one layout: a dark head and shoulders, not quite in one place, on a light backdrop."""
    draw, scale = np.random.default_rng(seed), SIDE / 512
    backdrop = ImageEnhance.Brightness(ImageEnhance.Contrast(natural(seed)).enhance(0.3)).enhance(1.5)
    x, y, size = (256 + draw.integers(-40, 40)) * scale, (200 + draw.integers(-30, 30)) * scale, draw.uniform(0.85, 1.2)
    size *= scale
    shape = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(shape)
    pen.ellipse((x - 90 * size, y - 120 * size, x + 90 * size, y + 120 * size), fill=255)
    pen.ellipse((x - 200 * size, y + 120 * size, x + 200 * size, y + 600 * size), fill=255)
    backdrop.paste(ImageEnhance.Brightness(natural(seed + 5000)).enhance(0.6), (0, 0), shape)
    return backdrop


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def cropped(image: Image.Image, part: float, x: float, y: float) -> Image.Image:
    width, height = (round(side * part) for side in image.size)
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


COPIES = {
    "recompressed": lambda image: jpeg(image, 30),
    "smaller": lambda image: image.resize((90, 90)),
    "stretched": lambda image: image.resize((SIDE, SIDE * 3 // 4)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "mirrored": ImageOps.mirror,
    "cropped a little": lambda image: cropped(image, 0.95, 0.3, 0.7),
    "cropped": lambda image: cropped(image, 0.9, 0.2, 0.8),
    "mirrored and cropped": lambda image: cropped(ImageOps.mirror(image), 0.92, 0.1, 0.4),
}


def thumbnail(image: Image.Image) -> torch.Tensor:
    small = image.copy()
    small.thumbnail((128, 128), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small))


# --- pictures ---


@pytest.mark.parametrize("kind", [natural, portrait])
@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(kind, name):
    pictures = [kind(seed) for seed in range(8)]
    thumbnails = [thumbnail(image) for each in pictures for image in (each, COPIES[name](each))]
    pairs = near_copies(thumbnails)
    assert [(first, second) for first, second, _ in pairs] == [(2 * i, 2 * i + 1) for i in range(8)]
    assert all(mirrored == ("mirrored" in name) for *_, mirrored in pairs)


@pytest.mark.parametrize("kind", [natural, portrait])
def test_different_pictures_are_no_copies_even_of_one_layout(kind):
    assert near_copies([thumbnail(kind(seed)) for seed in range(40)]) == []
    assert 0.8 < NEAR < 0.9


@pytest.mark.parametrize("kind", [natural, portrait])
@pytest.mark.parametrize("seed", range(4))
def test_sharpness_parts_what_is_in_focus_from_what_is_not(kind, seed):
    def of(image: Image.Image) -> float:
        return sharpness(torch.from_numpy(np.array(image)))

    sharp = kind(seed)
    assert of(sharp) > 10 * doctor.BLURRED
    assert of(jpeg(sharp, 75)) > 5 * doctor.BLURRED
    assert of(sharp.filter(ImageFilter.GaussianBlur(3))) < doctor.BLURRED
    darker = of(ImageEnhance.Contrast(sharp).enhance(0.5))
    assert darker == pytest.approx(of(sharp), rel=0.25), "contrast does not matter"


def test_sizes():
    assert enlarged((100, 100), (64, 64)) == 0.64 and enlarged((32, 64), (64, 64)) == 2
    assert cropped_away((100, 100), (64, 64)) == pytest.approx(0)
    assert cropped_away((300, 100), (200, 100)) == pytest.approx(1 / 3)


# --- whole sets ---


def good_set(folder: Path, count: int = 12) -> Path:
    folder.mkdir(exist_ok=True)
    places = ("on a beach", "in a forest", "at home", "in the city", "by a lake", "on a hill", "in a car", "at night")
    for index in range(count):
        natural(index).save(folder / f"{index:02d}.png")
        caption = f"photo number {index}, {places[index % 8]}"
        (folder / f"{index:02d}.txt").write_text(caption, encoding="utf-8")
    return folder


def read(folder: Path, trigger: str = "sks", **options) -> Dataset:
    return from_folder(folder, trigger, SIDE, 32, 1, Options(**options))


def texts(data: Dataset) -> list[str]:
    return [finding.text for finding in doctor.examine(data)]


def only(data: Dataset) -> str:
    (text,) = texts(data)
    return text


def test_a_good_set_has_no_findings(tmp_path):
    data = read(good_set(tmp_path / "good"))
    assert texts(data) == []
    assert doctor.report(data, []) == "12 pictures, 0 findings: no problem found"
    assert texts(read(tmp_path / "good", resolutions=(256, 128))) == []


def test_a_cancel_is_heeded_at_every_picture(tmp_path):
    data, left = read(good_set(tmp_path)), [9]

    def tick() -> None:
        left[0] -= 1
        if not left[0]:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        doctor.examine(data, tick)
    assert doctor.examine(data, lambda: left.append(1)) == [] and len(left) > 2 * len(data.examples)


def change(folder: Path, name: str, image: Image.Image, **options) -> None:
    image.save(folder / name, **options)


SPOILT = {
    "the same": (
        lambda f: change(f, "03.png", natural(1)),
        "01.png and 03.png are the same picture, which counts 2 times: keep only one",
    ),
    "mirrored": (lambda f: change(f, "03.png", ImageOps.mirror(natural(1))), "01.png and 03.png are mirror images"),
    "near": (lambda f: change(f, "03.png", jpeg(natural(1), 40)), "01.png and 03.png are nearly the same picture"),
    "small": (lambda f: change(f, "03.png", natural(3, 100, 100)), "03.png is smaller .* enlarged up to 2.6 times"),
    "blurred": (
        lambda f: change(f, "03.png", natural(3).filter(ImageFilter.GaussianBlur(4))),
        "03.png is blurred or out of focus",
    ),
    "flat": (lambda f: change(f, "03.png", Image.new("RGB", (256, 256), "teal")), "03.png is almost one colour"),
    "dark": (
        lambda f: change(f, "03.png", ImageEnhance.Brightness(natural(3)).enhance(0.1)),
        "03.png is almost (black|one colour)",
    ),
    "long": (
        lambda f: change(f, "03.png", natural(3, 1200, 300)),
        "03.png is too long or too wide: up to 5.% is cropped",
    ),
    "JPEG": (lambda f: change(f, "x.jpg", natural(99), quality=20), "x.jpg is JPEG of low quality .about 20."),
    "mask": (lambda f: change(f, "01-mask.png", natural(50)), "01-mask.png is named like masks"),
    "junk": (
        lambda f: (f / "03.txt").write_bytes(b"caf\xe9 terrace"),
        "03.txt is not UTF-8 and was read as Windows-1252; save it as UTF-8",
    ),
    "twice": (lambda f: (f / "03.txt").write_text("a dog, red, A dog"), "03.png has the same tag twice .'a dog'"),
    "long text": (lambda f: (f / "03.txt").write_text("word " * 70), "the caption of 03.png is long.* 93 tokens"),
    "trigger": (lambda f: (f / "03.txt").write_text("a tsksy thing"), "'sks' is part of another word .'tsksy'"),
    "left out": (lambda f: (f / "notes.md").write_text("x"), "notes.md was left out: not one of"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_each_fault_is_found_named_and_marked(tmp_path, name):
    folder = good_set(tmp_path / "set")
    spoil, message = SPOILT[name]
    spoil(folder)
    (folder / "x.txt").write_text("one more") if (folder / "x.jpg").exists() else None
    found = doctor.examine(read(folder))
    assert any(re.search(message, finding.text) for finding in found), [f.text for f in found]
    assert len(found) == 1 and found[0].text.endswith(".")
    assert all(finding.mark for finding in found if finding.examples)


def test_many_near_copies_are_one_line(tmp_path):
    folder = good_set(tmp_path / "set")
    for index, quality in ((3, 40), (5, 30), (8, 20)):
        jpeg(natural(1), quality).save(folder / f"{index:02d}.png")
    ImageOps.mirror(natural(2)).save(folder / "09.png")
    found = doctor.examine(read(folder))
    assert [finding.text.split(":")[0] for finding in found] == [
        "01.png, 03.png, 05.png and 08.png are nearly the same picture",
        "02.png and 09.png are mirror images of each other",
    ]
    assert [len(finding.examples) for finding in found] == [4, 2] and {f.mark for f in found} == {"near copy"}
    assert grouped([(0, 1, False), (2, 3, True), (1, 3, False), (5, 6, False)]) == [
        ([0, 1, 2, 3], True),
        ([5, 6], False),
    ]


def test_missing_captions_are_found(tmp_path):
    folder = good_set(tmp_path / "set")
    for name in ("02", "05", "07"):
        (folder / f"{name}.txt").unlink()
    text = only(read(folder))
    assert text.startswith("02.png, 05.png and 07.png have no caption, so everything in them is learned as 'sks': add")
    for path in folder.glob("*.txt"):
        path.unlink()
    assert "and 8 more have no caption" in only(read(folder))


def test_parentheses_are_told_by_what_is_made_of_them(tmp_path):
    folder = good_set(tmp_path / "set")
    (folder / "03.txt").write_text("hatsune miku (vocaloid)")
    told = "parentheses in the caption of 03.png are learned as text: in prompts write \\( and \\)"
    assert told in only(read(folder))
    assert "in the caption of 03.png parentheses are read as weights" in only(read(folder, caption_weights=True))
    (folder / "03.txt").write_text("a (red:1.3) dog")
    assert "the caption of 03.png has weights such as (word:1.2), but" in only(read(folder))
    (folder / "03.txt").write_text(r"hatsune miku \(vocaloid\)")
    assert texts(read(folder, caption_weights=True)) == []


def test_marks_against_learning_are_found(tmp_path):
    folder = good_set(tmp_path / "set")
    xmp = b'<rdf:Description plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"/>'
    natural(3).save(folder / "03.webp", xmp=xmp, lossless=True)
    (folder / "03.png").unlink()
    found = doctor.examine(read(folder))
    assert [(f.urgency, f.mark) for f in found] == [(3, "notAllowed")]
    assert found[0].text.startswith(
        "03.webp is marked as not allowed for training (IPTC Data Mining: DMI-PROHIBITED-AIML"
    )


def test_what_was_left_out_is_told_by_reason(tmp_path):
    folder = good_set(tmp_path / "set")
    (folder / "x.png").write_bytes(b"none")
    (folder / "a.md").write_text("x")
    (folder / "b.md").write_text("x")
    found = [(finding.urgency, finding.text) for finding in doctor.examine(read(folder))]
    assert found[0][0] == 2 and found[0][1].startswith("x.png was left out: is not a readable picture")
    assert found[1][0] == 1 and found[1][1].startswith("a.md and b.md were left out: not one of")


def test_captions_of_the_whole_set(tmp_path):
    folder = good_set(tmp_path / "set")
    for index in range(12):
        (folder / f"{index:02d}.txt").write_text(f"smiling, place {index % 3}, light {index % 4}")
    assert "'smiling' is in 12 of 12 captions, so it is learned as part of 'sks'" in only(read(folder))
    for index in range(12):
        tags = f"place {index % 3}, light {index % 4}, hat {index % 2}, dress {index % 5}"
        (folder / f"{index:02d}.txt").write_text(tags + (", smilling" if index == 3 else ""))
    assert "1 of 15 tags are in only one caption ('smilling')" in only(read(folder))
    for path in folder.glob("*.txt"):
        path.write_text("a dog")
    assert "all 12 captions are the same" in only(read(folder))
    assert any("there is no trigger word" in text for text in texts(read(folder, "")))


def test_few_pictures_and_unbalanced_sets(tmp_path):
    few = read(good_set(tmp_path / "few", 4))
    assert "there are only 4 pictures" in only(few)
    other = read(good_set(tmp_path / "other", 12), "ohwx", weight=6.0)
    found = texts(combined([few, other]))
    assert any("other is used 18.0 times as often as few: raise the weight" in text for text in found)
    alone = texts(read(tmp_path / "other", "dog", class_images=True))
    assert "there are only class images" in alone[0]


def test_the_most_urgent_comes_first_and_the_sheet_is_marked(tmp_path):
    folder = good_set(tmp_path / "set", 30)
    change(folder, "29.png", natural(1))
    (folder / "02.txt").write_text("x, x")
    data = read(folder)
    found = doctor.examine(data)
    assert [finding.urgency for finding in found] == [3, 1]
    text = doctor.report(data, found)
    assert text.startswith("30 pictures, 2 findings, 1 urgent\n1. 01.png and 29.png are the same picture")
    marks = doctor.marks(found)
    assert sorted(sum(marks.values(), [])) == ["copy", "copy", "twice"]
    sheet = np.asarray(marked_sheet(data, marks))
    frames = (sheet == (255, 107, 94)).all(-1)
    assert frames[4:8].any() and frames.sum() == pytest.approx(3 * (4 * 132 * 2 - 16), rel=0.02), "three framed tiles"
    assert not frames[170:].any(), "in the first row"


def test_estimated_tokens_and_words():
    assert doctor_captions.tokens("a photo of a dog, red") == 9
    assert doctor_captions.trigger_inside("cat, a category", "cat") == "category"
    assert doctor_captions.trigger_inside("a cat sat", "cat") == "" == doctor_captions.trigger_inside("x", "")
    assert doctor_captions.has_junk("caf\u00c3\u00a9") and doctor_captions.has_junk("it\u00e2\u20ac\u2122s")
    assert not doctor_captions.has_junk("caf\u00e9, \u732b, na\u00efve, \u00c2ge")
