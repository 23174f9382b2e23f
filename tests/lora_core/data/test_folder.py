"""Folders as other tools leave them: where captions may be, and that every file is used or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_loom.lora_core.data.dataset import Dataset
from lora_loom.lora_core.data.folder import files
from lora_loom.lora_core.data.reading import check_folder, from_folder
from PIL import Image


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 64), (sum(name.encode()) % 256, 80, 120)).save(folder / name)
    return folder


def load(folder: Path, trigger: str = "", repeats: int = 1, **options) -> Dataset:
    return from_folder(folder, trigger, 64, 16, repeats, **options)


def captions(data: Dataset) -> dict[str, str]:
    return {Path(example.source).name: example.caption for example in data.examples}


def names(data: Dataset) -> set[str]:
    return {name for name, _ in data.left_out}


# --- beside the picture ---


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "A.txt", "a.png.txt", "a.caption", "a.png.caption", "A.PNG.Txt"])
def test_names_of_caption_files(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / name).write_text("a dog")
    assert captions(data := load(tmp_path)) == {"a.png": "a dog"} and data.left_out == ()
    check_folder(tmp_path, "")


def test_the_nearest_name_counts_and_others_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    for name in ("a.caption", "a.png.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    data = load(tmp_path)
    assert captions(data) == {"a.png": "a.txt"}
    assert data.left_out == tuple((n, "a.png has its caption in another file") for n in ("a.caption", "a.png.txt"))
    (tmp_path / "a.txt").write_text(" ")
    assert captions(load(tmp_path)) == {"a.png": "a.png.txt"}


def test_a_caption_in_the_spelling_of_another_picture_is_its_own(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "B.png", "b.png")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell small from capital letters")
    (tmp_path / "b.txt").write_text("small")
    assert captions(load(tmp_path, "sks")) == {"a.png": "sks", "B.png": "sks", "b.png": "sks, small"}


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes(bytes(40))
    (tmp_path / "b.txt").write_bytes("caf\u00e9".encode("cp1252"))
    data = load(tmp_path, "sks")
    assert captions(data) == {"a.png": "sks", "b.png": "sks, caf\u00e9"}
    report = data.report()
    assert report.startswith("1 caption, 1 picture with only the trigger: a.png\n")
    assert "note on a.txt: contains only zeros, as after a power cut; write it again: not read" in report
    assert "note on b.txt: is not UTF-8 and was read as Windows-1252" in report
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ValueError, match="no(ne| image).*caption.*a.txt contains only zeros"):
        check_folder(tmp_path, "")
    with pytest.raises(ValueError, match="no image has a caption.*a.txt contains only zeros"):
        load(tmp_path)


# --- listed in one file ---

RECORDS = [{"file_name": "a.png", "text": "of a"}, {"file_name": "sub/b.png", "text": "of b"}]
LISTS = {
    "metadata.jsonl": "\n".join(map(json.dumps, RECORDS)),
    "captions.jsonl": '\ufeff{"image_path": "C:\\\\sets\\\\a.png", "caption": "of a"}\n\n'
    '{"image_path": "/x/b.png", "caption": "of b"}',
    "metadata.json": json.dumps(RECORDS),
    "captions.json": json.dumps({"a.png": "of a", "b": "of b"}),
    "meta_cap.json": json.dumps({"/x/a": {"caption": "of a"}, "/x/b.png": {"tags": "of b"}}),
    "dataset.json": json.dumps(
        {"images": [{"image": "a.png", "captions": ["of a", "other"]}, {"image": "b.png", "prompt": "of b"}]}
    ),
    "metadata.csv": 'file_name,text\na.png,of a\nb.png,"of b"\n',
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_captions(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_text(LISTS[name], encoding="utf-8")
    assert captions(data := load(tmp_path)) == {"a.png": "of a", "b.png": "of b"} and data.left_out == ()
    check_folder(tmp_path, "")
    (tmp_path / "a.txt").write_text("beside it")
    assert captions(load(tmp_path)) == {"a.png": "beside it", "b.png": "of b"}
    (tmp_path / "b.txt").write_text("beside it")
    assert load(tmp_path).left_out == ((name, "not needed: every picture has its own caption file"),)


def test_tags_follow_captions_as_in_sd_scripts(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "meta.json").write_text('{"a": {"caption": "a dog", "tags": ["red", "big"]}}')
    assert captions(load(tmp_path)) == {"a.png": "a dog, red, big"}


def test_a_file_of_one_picture_is_asked_for_its_caption_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.json").write_text('{"caption": "a dog", "width": 64, "tags": ["x"]}')
    (tmp_path / "b.json").write_text('{"prompt": "masterpiece", "description": "<p>buy it</p>", "tags": ["x"]}')
    data = load(tmp_path, "sks")
    assert captions(data) == {"a.png": "sks, a dog", "b.png": "sks"}
    assert data.left_out == (("b.json", "contains no caption for a picture in this folder"),)


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "is not valid JSONL"), ('{"file_name": "a.png"}', "contains no caption for"),
     ("[" * 99999, "is not valid JSONL"),
     ('"x"\n5\nnull', "contains no caption for"), ('{"file_name": 5, "text": {"a": 1}}', "contains no caption for")],
)  # fmt: skip
def test_lists_that_are_none_are_told(tmp_path: Path, text: str, why: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    data = load(tmp_path, "sks")
    told = dict((*data.left_out, *data.notes))
    assert captions(data) == {"a.png": "sks"} and why in told["metadata.jsonl"]


# --- folders in it ---


def test_folders_below_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path / "more" / "deep", "b.png", "c.png")
    put(tmp_path / "10_sks dog", "d.png")
    (tmp_path / "logs").mkdir()
    (tmp_path / ".git").mkdir()
    data = load(tmp_path, "sks")
    assert captions(data) == {"a.png": "sks"} and len(data.groups) == 1
    assert dict(data.left_out)["more/"].startswith("a subfolder with 2 pictures: use another")
    assert names(data) == {"more/", "10_sks dog/", "logs/", ".git"}


def test_folders_as_sd_scripts_has_them(tmp_path: Path) -> None:
    """Repeats are multiplied, and the words stand in for captions."""
    put(tmp_path / "10_sks dog", "a.png", "b.png")
    (tmp_path / "10_sks dog" / "a.txt").write_text("on a beach")
    (tmp_path / "10_sks dog" / "a_sd.npz").write_text("x")
    put(tmp_path / "5_sks_cat", "c.png")
    put(tmp_path / "others", "d.png")
    (tmp_path / "notes.md").write_text("x")
    check_folder(tmp_path, "")
    data = load(tmp_path, repeats=2)
    assert captions(data) == {"a.png": "on a beach", "b.png": "sks dog", "c.png": "sks cat"}
    assert [group.repeats for group in data.groups] == [20, 10] and data.times() == [20, 20, 10]
    assert names(data) == {"10_sks dog/a_sd.npz", "notes.md", "others/"}
    assert data.report().startswith("1 caption, 2 pictures with only the folder's name: b.png, c.png\n")
    assert "  80.0% 10_sks dog: 2 images x 20 repeats x 1" in data.report()
    assert captions(load(tmp_path, "sks")) == {"a.png": "sks, on a beach", "b.png": "sks dog", "c.png": "sks cat"}


def test_one_of_those_folders_alone_is_a_plain_one(tmp_path: Path) -> None:
    """As in 0.1.0: its repeats are those of the node, and the report says what the name means to others."""
    folder = put(tmp_path / "10_sks dog", "a.png")
    data = load(folder, "sks")
    assert data.times() == [1] and captions(data) == {"a.png": "sks"}
    assert (
        "note on 10_sks dog: other trainers read 10 repeats of 'sks dog' from this name, but repeats is 1"
        in data.report()
    )
    assert "note" not in load(folder, "sks", repeats=10).report()


def test_a_folder_of_folders_says_where_the_pictures_are(tmp_path: Path) -> None:
    put(tmp_path / "front", "a.png", "b.png")
    put(tmp_path / "img" / "10_dog", "c.png")
    for use in (load, lambda folder: check_folder(folder, "sks")):
        with pytest.raises(ValueError, match=r"contains no pictures, only its subfolders do: front \(2\), img \(1\)"):
            use(tmp_path)


def test_what_is_watched_is_all_that_may_be_read(tmp_path: Path) -> None:
    put(tmp_path / "10_dog", "a.png")
    put(tmp_path / "more", "b.png")
    found = {path.relative_to(tmp_path).as_posix() for path in files(tmp_path)}
    assert found == {"10_dog", "10_dog/a.png", "more"} and files(tmp_path / "gone") == []
