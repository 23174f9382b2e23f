"""Reference pictures: where they are found, what is said where one is missing, and what they add to an example."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.lora_core.data.dataset import Dataset, Options
from lora_loom.lora_core.data.folder import files
from lora_loom.lora_core.data.places import Place, places
from lora_loom.lora_core.data.reading import check_folder, from_folder, from_tensors
from PIL import Image

PLAIN = (80, 80)


def picture(path: Path, size: tuple[int, int] = PLAIN, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def targets(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names or ("a.png", "b.png")):
        picture(folder / name, seed=number)
    return folder


def load(folder: Path, **options) -> Dataset:
    return from_folder(folder, "ohwx", 64, 16, 1, Options(**options))


def test_folders_with_the_same_stems_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    targets(folder)
    for number, place in enumerate(("control_2", "control_1")):
        picture(folder / place / "a.jpg", (96, 48), 10 + number)
        picture(folder / place / "b.png", seed=20 + number)
    data, plain = load(folder), load(folder, references=False)
    assert [[each.size for each in example.references] for example in data.examples] == [
        [(80, 48), (80, 48)], [(64, 64), (64, 64)],
    ]  # fmt: skip
    first, second = data.examples[0].references
    assert first.digest != second.digest and not torch.equal(first.pixels, second.pixels)
    assert data.left_out == () and "references: 2 for each of all pictures" in data.report()
    assert data.fingerprint() != plain.fingerprint() and not plain.examples[0].references
    with Image.open(folder / "control_1" / "b.png") as shown:
        wanted = np.asarray(shown.resize((64, 64), Image.Resampling.LANCZOS)) / 255
    assert np.abs(data.examples[1].references[0].pixels.numpy() - wanted).max() < 1e-3
    held = [path.relative_to(folder).as_posix() for path in files(folder)]
    assert "control_1/a.jpg" in held, "another reference is read again"
    assert places([tmp_path])[0] == [Place("edits", 2)], "and no data set to choose"


def test_beside_the_picture_and_in_sets_of_a_folder(tmp_path: Path) -> None:
    targets(tmp_path / "2_dog", "a.png", "a_ref1.png", "a_ref2.png", "b.png", "b_ref1.png")
    data = load(tmp_path)
    assert [(Path(each.source).name, len(each.references)) for each in data.examples] == [("a.png", 2), ("b.png", 1)]
    assert data.left_out == () and "references: 1 to 2 for each" in data.report()


def test_a_picture_with_a_caption_of_its_own_and_a_folder_of_other_names_are_none(tmp_path: Path) -> None:
    targets(tmp_path, "a.png", "a_ref1.png")
    (tmp_path / "a_ref1.txt").write_text("one more")
    picture(tmp_path / "control" / "other.png")
    data = load(tmp_path)
    assert [len(each.references) for each in data.examples] == [0, 0]
    assert [name for name, _ in data.left_out] == ["control/"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["control/a.png"], "1 of 2 pictures has no reference in control: b.png"),
        (["control_1/a.png", "control_1/b.png", "control_2/b.png"], "no reference in control_2: a.png"),
        (["a_ref1.png"], "1 of 2 pictures has no reference beside it (name_ref1.png): b.png"),
        (["a_ref1.png", "b_ref1.png", "b_ref3.png"], "b_ref3.png has no _ref2 before it"),
    ],
)
def test_a_missing_reference(tmp_path: Path, names: list[str], said: str) -> None:
    targets(tmp_path, "a.png", "b.png", *names)
    for call in (lambda: load(tmp_path), lambda: check_folder(tmp_path, "ohwx")):
        with pytest.raises(ValueError) as error:
            call()
        assert said in str(error.value)
    assert load(tmp_path, references=False).examples
    check_folder(tmp_path, "ohwx", with_references=False)


def test_an_unreadable_reference_costs_its_picture_and_is_named(tmp_path: Path) -> None:
    targets(tmp_path, "a.png", "b.png", "control/a.png", "control/c.png")
    (tmp_path / "control" / "b.png").write_bytes(b"no picture")
    data = load(tmp_path)
    assert ("control/c.png", "a reference without a picture of its name") in data.left_out
    assert [Path(each.source).name for each in data.examples] == ["a.png"]
    assert "its reference control/b.png is not a readable picture" in data.report()


def test_views_have_references_that_are_mirrored_with_them(tmp_path: Path) -> None:
    targets(tmp_path, "a.png", "control/a.png")
    (example,) = load(tmp_path, flip=True).examples
    (plain,), (mirrored,) = example.references_of_views()
    assert torch.equal(plain.flip(1), mirrored) and not torch.equal(plain, mirrored)
    assert example.digest != load(tmp_path).examples[0].digest
    with pytest.raises(ValueError, match="crops is 2, but pictures with references are not cropped"):
        load(tmp_path, crops=2)


def test_connected_images(tmp_path: Path) -> None:
    images = torch.rand(2, 80, 80, 3, generator=torch.Generator().manual_seed(0))
    tall = torch.rand(2, 96, 48, 3, generator=torch.Generator().manual_seed(1))
    data = from_tensors(images, ["x"], "", 64, 16, 1, beside=[tall, images.flip(0)])
    assert [[each.size for each in example.references] for example in data.examples] == [[(48, 80), (64, 64)]] * 2
    with pytest.raises(ValueError, match="2 images but 1 references; connect one reference for each image"):
        from_tensors(images, ["x"], "", 64, 16, 1, beside=[tall[:1]])


def test_without_references_nothing_changes(tmp_path: Path) -> None:
    """What version 0.1.0 made of a folder, by its own arithmetic."""
    (example,) = load(targets(tmp_path, "a.png")).examples
    pixels = (example.pixels.float() * 255).round().byte().numpy()
    assert example.digest == hashlib.sha256(pixels.tobytes() + b"ohwx").hexdigest()
