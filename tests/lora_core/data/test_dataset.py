"""Folders as people prepare them: formats, orientations, captions, triggers, and files that are none of it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.lora_core.data import dataset
from lora_loom.lora_core.data.captions import preserved_captions
from lora_loom.lora_core.data.contact_sheet import contact_sheet
from lora_loom.lora_core.data.dataset import Dataset
from lora_loom.lora_core.data.decoding import SUFFIXES
from lora_loom.lora_core.data.reading import check_folder, from_folder, from_tensors
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def put(
    folder: Path, name: str, image: Image.Image | None = None, caption: str | bytes | None = "a cat", **options
) -> Path:
    path = folder / name
    (image or Image.new("RGB", (64, 64), RED)).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)
    return path


def load(folder: Path, trigger: str = "", resolution: int = 64, step: int = 16, repeats: int = 1) -> Dataset:
    return from_folder(folder, trigger, resolution, step, repeats)


def only(folder: Path, trigger: str = "") -> dataset.Example:
    (example,) = load(folder, trigger).examples
    return example


def colour(example: dataset.Example, row: int, column: int) -> tuple[int, ...]:
    return tuple((example.pixels[row, column].float() * 255).round().int().tolist())


def captions(data: Dataset) -> list[str]:
    return [example.caption for example in data.examples]


def four_corners(width: int = 64, height: int = 64) -> Image.Image:
    """Red, green / blue, white: tells every rotation and mirroring apart."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def corners(example: dataset.Example) -> list[tuple[int, ...]]:
    bottom, right = example.pixels.shape[0] - 6, example.pixels.shape[1] - 6
    return [colour(example, row, column) for row in (5, bottom) for column in (5, right)]


def same(actual: list[tuple[int, ...]], expected: list[tuple[int, ...]], within: int = 0) -> None:
    assert np.abs(np.array(actual) - np.array(expected)).max() <= within, actual


# --- formats ---


@pytest.mark.parametrize(
    ("name", "options", "within"),
    [
        ("a.png", {}, 0), ("a.PNG", {}, 0), ("a.jpg", {"quality": 95}, 6), ("a.jpeg", {"quality": 95}, 6),
        ("a.webp", {"lossless": True}, 0), ("a.webp", {"quality": 90}, 12), ("a.JPG", {"quality": 95}, 6),
    ],
)  # fmt: skip
def test_formats(tmp_path, name, options, within):
    put(tmp_path, name, four_corners(), **options)
    example = only(tmp_path)
    assert example.pixels.shape == (64, 64, 3) and example.pixels.dtype == torch.float16 and example.size == (64, 64)
    assert example.source == str(tmp_path / name) and example.caption == "a cat"
    same(corners(example), [RED, GREEN, BLUE, WHITE], within)


# EXIF 2.32: what the value says of the stored rows and columns; the corners as one should see them.
TURNS = {
    1: [RED, GREEN, BLUE, WHITE], 2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED], 4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE], 6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED], 8: [GREEN, WHITE, RED, BLUE],
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("turn", TURNS)
def test_exif_orientation(tmp_path, turn, suffix):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    put(tmp_path, f"a.{suffix}", four_corners(128, 64), exif=exif, **options)
    example = only(tmp_path)
    wide = turn < 5
    assert (example.size[0] > example.size[1]) == wide and example.pixels.shape == (*example.size[::-1], 3)
    same(corners(example), TURNS[turn], 6 if suffix == "jpg" else 0)


def test_alpha_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))  # invisible black
    image.paste((0, 0, 255, 128), (32, 32, 64, 64))
    put(tmp_path, "a.png", image)
    same(corners(only(tmp_path)), [WHITE, RED, WHITE, (127, 127, 255)], 1)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_invisible_colour_does_not_bleed_into_the_edge(tmp_path, suffix):
    image = Image.new("RGBA", (256, 256), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 120, 256))
    put(tmp_path, f"a.{suffix}", image, **({"lossless": True} if suffix == "webp" else {}))
    row = (only(tmp_path).pixels[32].float() * 255).round()
    assert bool((row[:, 2] >= 250).all()), "blue or white, and what lies between, is full of blue"


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path, transparent):
    image = four_corners().quantize(4)
    index = image.getpixel((5, 5))
    put(tmp_path, "a.png", image, **({"transparency": index} if transparent else {}))
    same(corners(only(tmp_path)), [WHITE if transparent else RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grayscale(tmp_path, mode):
    image = Image.new("L", (64, 64), 0)
    image.paste(255, (32, 0, 64, 64))
    if mode == "L":
        image.paste(100, (0, 32, 32, 64))
    put(tmp_path, "a.png", image.convert(mode))
    low = (100,) * 3 if mode == "L" else (0,) * 3
    same(corners(only(tmp_path)), [(0, 0, 0), WHITE, low, WHITE])


def png16(path: Path, values: np.ndarray) -> None:
    """A 16-bit PNG of one, three or four channels, from its specification: Pillow cannot write the latter two."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    path.with_suffix(".txt").write_text("deep")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_scaled_not_cut_off(tmp_path, channels):
    values = np.zeros((64, 64, channels), np.uint16)
    values[:32, 32:], values[32:, :32], values[32:, 32:] = 0x1234, 0x8080, 0xFFFF
    if channels in (2, 4):
        values[..., -1] = 0xFFFF
    png16(tmp_path / "a.png", values)
    same(corners(only(tmp_path)), [(0,) * 3, (0x12,) * 3, (0x80,) * 3, WHITE], 1)


def test_cmyk_jpeg(tmp_path):
    put(tmp_path, "a.jpg", four_corners().convert("CMYK"), quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "CMYK"
    same(corners(only(tmp_path)), [RED, GREEN, BLUE, WHITE], 10)


def test_an_animation_gives_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (64, 64), c) for c in (GREEN, RED)]
    put(tmp_path, "a.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert set(corners(only(tmp_path))) == {GREEN}


# --- shapes ---


@pytest.mark.parametrize(
    ("width", "height"),
    [(640, 480), (480, 640), (1000, 1000), (1920, 1080), (300, 900), (900, 250), (65, 64), (33, 32)],
)
def test_every_shape_fills_its_bucket_without_distortion(tmp_path, width, height):
    """A ring drawn round the centre must come out round, whole and in the middle."""
    yy, xx = np.mgrid[:height, :width]
    far = np.hypot(xx - (width - 1) / 2, yy - (height - 1) / 2)
    radius = min(width, height) * 0.3
    put(tmp_path, "a.png", Image.fromarray(((far < radius) * 255).astype(np.uint8)))
    example = only(tmp_path)
    across, down = example.size
    assert example.pixels.shape == (down, across, 3)
    seen = example.pixels[..., 0] > 0.5
    scale = max(across / width, down / height)
    assert seen.any(0).sum() == pytest.approx(2 * radius * scale, abs=2)
    assert seen.any(1).sum() == pytest.approx(2 * radius * scale, abs=2)
    middle = [float(where.nonzero().float().mean()) for where in (seen.any(0), seen.any(1))]
    assert middle == pytest.approx([(across - 1) / 2, (down - 1) / 2], abs=1)


def test_shapes_are_sorted_into_buckets_and_reported(tmp_path):
    for name, size in (("a", (80, 80)), ("b", (200, 100)), ("c", (100, 200)), ("d", (30, 30))):
        put(tmp_path, f"{name}.png", Image.new("RGB", size, RED))
    data = load(tmp_path, "sks", 64, 16, 3)
    assert data.buckets() == {(64, 64): 2, (80, 48): 1, (48, 80): 1}
    assert data.report().splitlines() == [
        "4 captions, one for every picture",
        "4 images x 3 repeats at resolution 64",
        "  bucket 48 x 80: 1", "  bucket 64 x 64: 2", "  bucket 80 x 48: 1",
        "trigger: sks",
    ]  # fmt: skip


# --- captions and trigger ---


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("a cat", "a cat"), (b"\xef\xbb\xbfa cat", "a cat"), ("a cat\r\n", "a cat"),
        ("  a\n cat,\tsitting  ", "a cat, sitting"),
        ("un café, 猫 🐈", "un café, 猫 🐈"), (b"caf\xe9", "café"), ("sks", "sks"),
    ],
)  # fmt: skip
def test_captions(tmp_path, raw, caption):
    put(tmp_path, "a.png", caption=raw)
    assert only(tmp_path).caption == caption


@pytest.mark.parametrize("empty", [None, "", "  \n\t ", b"\xef\xbb\xbf"])
def test_without_a_caption_the_trigger_stands_alone_or_the_picture_is_left_out(tmp_path, empty):
    put(tmp_path, "a.png", caption=empty)
    put(tmp_path, "b.png", caption="a dog")
    assert captions(load(tmp_path, "sks")) == ["sks", "sks, a dog"]
    without = load(tmp_path)
    assert captions(without) == ["a dog"] and without.left_out == (("a.png", "no caption and no trigger word"),)
    assert "left out a.png: no caption and no trigger word" in without.report()


@pytest.mark.parametrize(
    ("trigger", "text", "caption"),
    [
        ("cat", "a dog", "cat, a dog"),
        ("cat", "a cat", "a cat"), ("cat", "Cat, sitting", "Cat, sitting"), ("CAT", "the cat's tail", "the cat's tail"),
        ("cat", "a category", "cat, a category"), ("cat", "bobcat", "cat, bobcat"), ("cat", "cat_1", "cat, cat_1"),
        ("cat", "cats", "cat, cats"), ("ohwx man", "photo of ohwx man.", "photo of ohwx man."),
        ("ohwx man", "ohwx woman", "ohwx man, ohwx woman"), ("c++", "c++ code", "c++ code"),
        ("c++", "c code", "c++, c code"), ("[v]", "a [V] dress", "a [V] dress"), ("s.s", "sks", "s.s, sks"),
        ("é", "café", "é, café"), ("", "a dog", "a dog"),
    ],
)  # fmt: skip
def test_the_trigger_leads_unless_the_caption_holds_it_as_a_word(tmp_path, trigger, text, caption):
    put(tmp_path, "a.png", caption=text)
    assert only(tmp_path, trigger).caption == caption
    (example,) = from_tensors([torch.zeros(8, 8, 3)], [text], trigger, 64, 16, 1).examples
    assert example.caption == caption


@pytest.mark.parametrize(
    ("caption", "trigger", "kept"),
    [
        ("sks, a dog", "sks", ["cat, a dog", "tall man, a dog"]),
        ("SKS and sks", "sks", ["cat and cat", "tall man and tall man"]),
        ("sksy", "sks", ["sksy", "sksy"]), ("a c++ b", "c++", ["a cat b", "a tall man b"]),
    ],
)  # fmt: skip
def test_preserved_captions_name_the_class_in_the_triggers_place(caption, trigger, kept):
    assert preserved_captions(caption, trigger, ["cat", "tall man"]) == kept


def test_preserving_words_are_taken_as_they_are():
    assert preserved_captions("sks dog", "sks", [r"\1 \g<0>"]) == [r"\1 \g<0> dog"]
    assert preserved_captions("sks dog", "sks", []) == []


def test_preservation_needs_words_and_a_trigger(tmp_path):
    put(tmp_path, "a.png")
    plain, triggered = load(tmp_path), load(tmp_path, "sks")
    with pytest.raises(ValueError, match=r"preservation is 0\.5 but preserve has no class word"):
        dataset.check_preservation(triggered, 0.5, [])
    with pytest.raises(ValueError, match=r"preservation is 0\.5 but .* trigger word"):
        dataset.check_preservation(plain, 0.5, ["cat"])
    dataset.check_preservation(triggered, 0.5, ["cat"])
    dataset.check_preservation(plain, 0.0, [])


# --- what is no picture ---


def test_other_files_are_reported_with_the_reason(tmp_path):
    put(tmp_path, "a.png")
    for name in ("b.psd", "notes.md", "orphan.txt", "Other.TXT", ".hidden.gif", "noext", "a_sd.npz"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dead.png").symlink_to(tmp_path / "nowhere.png")
    data = load(tmp_path)
    assert [Path(example.source).name for example in data.examples] == ["a.png"]
    not_image = f"not one of {', '.join(SUFFIXES)}"
    assert dict(data.left_out) == {
        ".hidden.gif": "hidden file or system file", "Other.TXT": "caption without a picture", "b.psd": not_image,
        "a_sd.npz": "cache file of another trainer", "dead.png": "a broken link", "noext": not_image,
        "notes.md": not_image,
        "orphan.txt": "caption without a picture", "folder.png/": "a folder without pictures",
    }  # fmt: skip
    assert len(data.left_out) == len(list(tmp_path.iterdir())) - 2, "every entry but the picture and its caption"
    assert f"left out b.psd, noext, notes.md: {not_image}" in data.report()


def test_two_pictures_share_one_caption_and_names_with_dots_work(tmp_path):
    for name in ("a.png", "a.jpg", "b.v1.png"):
        put(tmp_path, name, caption=f"of {name[0]}")
    data = load(tmp_path)
    assert captions(data) == ["of a", "of a", "of b"] and data.left_out == ()


@pytest.mark.parametrize("use", [load, lambda folder: check_folder(folder, "sks")], ids=["load", "check"])
def test_a_folder_that_does_not_exist(tmp_path, use):
    with pytest.raises(ValueError, match="does not exist; write an absolute path") as caught:
        use(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a.txt", "b.psd"]])
@pytest.mark.parametrize("use", [load, lambda folder: check_folder(folder, "sks")], ids=["load", "check"])
def test_a_folder_without_pictures(tmp_path, use, names):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match="contains no pictures; put .png, .jpg, .jpeg, .webp, .* files") as caught:
        use(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_instead_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(put(tmp_path, "a.png"))


def test_no_caption_at_all_needs_a_trigger(tmp_path):
    put(tmp_path, "a.png", caption=None)
    for use in (load, lambda folder: check_folder(folder, "")):
        with pytest.raises(ValueError, match=r"caption; add \.txt files with the same names, or write a trigger word"):
            use(tmp_path)
    check_folder(tmp_path, "sks")
    assert captions(load(tmp_path, "sks")) == ["sks"]


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_an_unreadable_file_is_named_and_the_rest_is_learned(tmp_path, content):
    put(tmp_path, "broken.png").write_bytes(content)
    for use in (load, lambda folder: check_folder(folder, "")):
        with pytest.raises(
            ValueError, match=r"(picture to train on|can be read): broken\.png is (not a readable picture|empty)"
        ):
            use(tmp_path)
    put(tmp_path, "a.png")
    check_folder(tmp_path, "")
    data = load(tmp_path)
    assert [Path(example.source).name for example in data.examples] == ["a.png"]
    assert [name for name, _ in data.left_out] == ["broken.png"]
    assert data.report().splitlines()[1] == "1 picture left out: broken.png"


@pytest.mark.parametrize("name", ["broken.png", "broken.jpg", "broken.webp"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    path = put(tmp_path, name, Image.fromarray(noise))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    put(tmp_path, "a.png")
    (left,) = load(tmp_path).left_out
    assert left[0] == name and "cannot be read" in left[1]


@pytest.mark.parametrize("at", [20, 45])
def test_a_damaged_png_is_named(tmp_path, at):
    """A flipped byte in the header and in the compressed data."""
    path = put(tmp_path, "broken.png", four_corners())
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(
        ValueError, match=r"picture to train on: broken\.png (cannot be read|is not a readable picture)"
    ):
        load(tmp_path)


def test_pictures_are_known_by_what_they_hold(tmp_path):
    four_corners().save(tmp_path / "a.png", "JPEG", quality=95)
    four_corners().save(tmp_path / "b.jpg", "BMP")
    for name in ("c.bmp", "d.gif", "e.tiff", "f.jfif"):
        four_corners().save(tmp_path / name, "JPEG" if name == "f.jfif" else None)
    for example in (data := load(tmp_path, "sks")).examples:
        same(corners(example), [RED, GREEN, BLUE, WHITE], 6)
    assert len(data.examples) == 6 and data.left_out == ()


# --- what the report begins with ---


def test_the_report_begins_with_missing_captions(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path, f"{name}.png", caption=None if name == "b" else "a dog")
    assert load(tmp_path, "sks").report().startswith("2 captions, 1 picture with only the trigger: b.png\n3 images")
    assert load(tmp_path, "").report().startswith("2 captions, one for every picture\n1 picture left out: b.png\n")
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert load(tmp_path, "sks").report().startswith("no captions: 3 pictures with only the trigger\n3 images")


@pytest.mark.parametrize("trigger", ["sks dog ", " sks dog", "sks dog,", "sks dog\n", "\ufeffsks  dog", "sks\u00a0dog"])
def test_a_pasted_trigger_is_the_trigger(tmp_path, trigger):
    put(tmp_path, "0.png", caption="a photo of SKS dog, close-up")
    put(tmp_path, "1.png", caption="a cat")
    data = load(tmp_path, trigger)
    assert captions(data) == ["a photo of SKS dog, close-up", "sks dog, a cat"] and data.trigger == "sks dog"
    assert data.fingerprint() == load(tmp_path, "sks dog").fingerprint()


# --- parentheses ---


def prompts(data: Dataset) -> list[str]:
    return [example.captions[0] for example in data.examples]


def test_parentheses_are_text(tmp_path):
    """Escaped or not they are the same caption, and text encoders are given them escaped."""
    put(tmp_path, "0.png", caption="miku (vocaloid), a (woman:1.4)")
    put(tmp_path, "1.png", caption=r"miku \(vocaloid\), a \(woman:1.4)")
    for trigger in ("", "miku (vocaloid)", r"miku \(vocaloid\)"):
        data = load(tmp_path, trigger)
        assert captions(data) == ["miku (vocaloid), a (woman:1.4)"] * 2
        assert prompts(data) == [r"miku \(vocaloid\), a \(woman:1.4\)"] * 2
        assert data.trigger == ("miku (vocaloid)" if trigger else "")
    assert preserved_captions(captions(data)[0], data.trigger, ["girl"]) == ["girl, a (woman:1.4)"]


def test_parentheses_are_weights_where_that_is_asked_for(tmp_path):
    put(tmp_path, "0.png", caption=r"miku \(vocaloid\), a (woman:1.4)")
    data = from_folder(tmp_path, "miku (vocaloid)", 64, 16, 1, dataset.Options(caption_weights=True))
    assert captions(data) == prompts(data) == [r"miku \(vocaloid\), a (woman:1.4)"]


def test_identities_without_bare_parentheses_are_those_of_0_1_0(tmp_path):
    """Written down with 0.1.0: captions without parentheses, with escaped ones, and orders of their tags."""
    put(tmp_path, "0.png", four_corners(), caption="a sks dog, red, blue")
    put(tmp_path, "1.png", four_corners(), caption=r"cat \(animal\), x, y, z")
    assert load(tmp_path, "sks").fingerprint() == "3938669fcacdbc45"
    options = dataset.Options(shuffle_tags=True, flip=True, crops=2)
    assert from_folder(tmp_path, "sks", 64, 16, 2, options).fingerprint() == "c75b19ec6ebfd554"
    (tmp_path / "0.txt").write_text("a (sks) dog, red, blue")
    assert load(tmp_path, "sks").fingerprint() != "3938669fcacdbc45"


# --- from tensors ---


def test_tensors_with_a_caption_each_or_one_for_all():
    images = [torch.zeros(40, 40, 3), torch.ones(40, 80, 3)]
    assert captions(from_tensors(images, ["one", "two"], "", 32, 8, 1)) == ["one", "two"]
    shared = from_tensors(images, ["both"], "sks", 32, 8, 2)
    assert captions(shared) == ["sks, both"] * 2 and shared.times() == [2, 2]
    assert [example.source for example in shared.examples] == ["image 1", "image 2"]
    assert [example.size for example in shared.examples] == [(32, 32), (40, 24)]
    assert float(shared.examples[0].pixels.max()) == 0 and float(shared.examples[1].pixels.min()) == 1


def test_tensors_are_clamped_and_their_alpha_flattened():
    wild = torch.full((32, 32, 3), 7.0)
    wild[:16] = -3.0
    clear = torch.zeros(32, 32, 4)
    first, second = from_tensors([wild, clear], ["x"], "", 32, 8, 1).examples
    assert first.pixels.unique().tolist() == [0.0, 1.0] and float(second.pixels.min()) == 1.0


def test_captions_that_do_not_match_are_refused():
    images = [torch.zeros(8, 8, 3)] * 3
    with pytest.raises(ValueError, match="3 images but 2 captions"):
        from_tensors(images, ["a", "b"], "", 64, 16, 1)
    with pytest.raises(ValueError, match="image 2 has an empty caption and there is no trigger word"):
        from_tensors(images, ["a", "  ", "c"], "", 64, 16, 1)
    assert captions(from_tensors(images, ["a", "  ", "c"], "sks", 64, 16, 1)) == ["sks, a", "sks", "sks, c"]


def test_no_tensors_at_all_are_refused():
    with pytest.raises(ValueError):
        from_tensors([], ["a"], "", 64, 16, 1)


# --- identity ---


def test_the_fingerprint_sees_pixels_captions_repeats_order_and_trigger_but_not_the_place(tmp_path):
    def made(name: str, colours=(RED, BLUE), texts=("a b", "b a"), repeats: int = 1, trigger: str = "a") -> str:
        folder = tmp_path / name
        folder.mkdir()
        for i, (fill, text) in enumerate(zip(colours, texts, strict=True)):
            put(folder, f"{i}.png", Image.new("RGB", (64, 64), fill), caption=text)
        return load(folder, trigger, repeats=repeats).fingerprint()

    plain = made("plain")
    others = [made("pixels", (RED, (0, 0, 254))), made("text", texts=("a b", "b a c")), made("repeats", repeats=2),
              made("order", (BLUE, RED), ("b a", "a b")), made("trigger", trigger="b")]  # fmt: skip
    assert plain == made("moved") and len(plain) == 16
    assert len({plain, *others}) == 6


# --- contact sheet ---


@pytest.mark.parametrize("count", [1, 6, 7, 30])
def test_contact_sheet(count):
    text = ["a caption that is longer than one line"]
    data = from_tensors([torch.full((40, 60, 3), 0.9)] * count, text, "", 64, 16, 1)
    sheet = contact_sheet(data)
    columns, rows = min(count, 6), -(-min(count, 24) // 6)
    assert sheet.mode == "RGB" and sheet.size == (columns * 134 + 6, rows * 162 + 6)
    bright = (np.asarray(sheet) == 230).all(axis=2).sum()
    assert bright >= min(count, 24) * data.examples[0].pixels[..., 0].numel()


# --- small resolutions ---


def test_at_a_small_resolution_the_usual_step_is_finer_and_the_report_says_so():
    """At 256 and more nothing has changed: pictures, digests and report are those of the step itself."""
    wide = [torch.linspace(0, 1, 80 * 112 * 3).view(80, 112, 3)]
    (example,) = from_tensors(wide, ["x"], "", 96, 32, 1).examples
    assert example.size == (112, 80) and example.digest == from_tensors(wide, ["x"], "", 96, 16, 1).examples[0].digest
    told = "note on bucket_step: 16 at resolution 96: below 256, multiples of 32 would crop most to squares"
    assert told in from_tensors(wide, ["x"], "", 96, 32, 1).report()
    several = from_tensors(wide, ["x"], "", 96, 32, 1, dataset.Options(resolutions=(96, 256)))
    assert [each.size for each in several.examples] == [(112, 80), (288, 224)]
    assert "bucket_step" not in from_tensors(wide, ["x"], "", 256, 32, 1).report()
