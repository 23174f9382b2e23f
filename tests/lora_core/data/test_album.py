"""The page of pictures and captions: what it shows of a folder, what it changes there, and what it never does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.links import link
from lora_loom.lora_core.data import edits
from lora_loom.lora_core.data.album import Album, digest
from lora_loom.lora_core.data.buckets import bucket_sizes, fit, frame, nearest_bucket
from lora_loom.lora_core.data.edits import ChangedError, put_back, take_out, write_caption
from lora_loom.lora_core.data.inspection import Frames, Reading, copies, look
from lora_loom.lora_core.data.places import places, read_only
from lora_loom.lora_core.data.reading import from_folder
from PIL import Image


def put(folder: Path, *names: str, size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.effect_noise(size, 90).convert("RGB").save(folder / name)
    return folder


def album(folder: Path, trigger: str = "", **reading) -> Album:
    return Album(folder, Reading(trigger, **reading), [folder.parent])


def write(folder: Path, name: str, text: str, was: str | None = None) -> None:
    found = album(folder)
    write_caption(found, name, text, found.shown(name).was if was is None else was)


def words(folder: Path, name: str, **reading) -> list[str]:
    return [mark for mark, _ in album(folder, **reading).shown(name).marks]


# -- captions ----------------------------------------------------------------------------------------------------------


def test_a_caption_is_written_where_the_node_reads_it(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "b.png", "c.png")
    (folder / "b.caption").write_text("old")
    (folder / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "listed"}')
    assert album(folder).shown("c.png").caption == "listed" and album(folder).shown("c.png").was == ""
    for name, text in (("a.png", "  \u00e9t\u00e9, <b>x</b>\nsecond line "), ("b.png", "new"), ("c.png", "own")):
        write(folder, name, text)
    data = from_folder(folder, "", 64, 16, 1)
    assert [each.caption for each in data.examples] == ["\u00e9t\u00e9, <b>x</b> second line", "new", "own"]
    assert (folder / "b.caption").read_text() == "new\n" and not (folder / "b.txt").exists()
    assert album(folder).shown("a.png").caption == "\u00e9t\u00e9, <b>x</b>\nsecond line"
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*"))


def test_two_pictures_of_one_name_get_captions_of_their_own(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "a.jpg")
    write(folder, "a.png", "png")
    assert album(folder).shown("a.jpg").caption == ""
    (folder / "a.txt").write_text("both")
    assert album(folder).together("a.jpg") == ["a.jpg", "a.png"] == sorted(album(folder).together("a.png"))


def test_a_caption_that_was_changed_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png")
    before = album(folder).shown("a.png").was
    (folder / "a.txt").write_text("by somebody else")
    with pytest.raises(ChangedError):
        write(folder, "a.png", "mine", before)
    assert (folder / "a.txt").read_text() == "by somebody else"
    write(folder, "a.png", "mine")
    assert album(folder).shown("a.png").was == digest(folder / "a.txt") != before
    write(folder, "a.png", "")
    assert (folder / "a.txt").read_text() == "" and words(folder, "a.png") == ["no caption"]


def test_nothing_is_written_over_that_cannot_be_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "b.png")
    (folder / "a.txt").write_bytes(b"\0\0\0")
    (folder / "b.txt").mkdir()
    with pytest.raises(ValueError, match=r"only zeros.*was not written over"):
        write(folder, "a.png", "mine")
    with pytest.raises(ValueError, match="is not a file"):
        write(folder, "b.png", "mine")
    assert (folder / "a.txt").stat().st_size == 3
    (folder / "a.txt").unlink()
    with pytest.raises(ValueError, match="70000 characters"):
        write(folder, "a.png", "x" * 70000)


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder, outside = put(tmp_path / "set", "a.png", "b.png"), put(tmp_path / "outside", "o.png")
    (outside / "o.txt").write_text("keep")
    link(folder / "a.txt", outside / "o.txt")
    with pytest.raises(ValueError, match="is a link"):
        write(folder, "a.png", "x")
    link(folder / "_removed", outside)
    with pytest.raises(ValueError, match="_removed is not a folder"):
        take_out(album(folder), "b.png")
    link(tmp_path / "linked", outside)
    for action in (
        lambda: write(tmp_path / "linked", "o.png", "x"),
        lambda: take_out(album(tmp_path / "linked"), "o.png"),
    ):
        with pytest.raises(ValueError, match="reached through a link"):
            action()
    assert sorted(path.name for path in outside.iterdir()) == ["o.png", "o.txt"]
    assert (outside / "o.txt").read_text() == "keep"


@pytest.mark.skipif(os.name == "nt", reason="Windows takes two dots back before it looks for links")
def test_two_dots_go_up_from_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    link(tmp_path / "near", tmp_path / "far" / "deep")
    assert read_only(tmp_path / "near" / ".." / "beside", [tmp_path]) == "it is reached through a link"


def test_a_caption_keeps_every_letter_and_no_control(tmp_path: Path) -> None:
    put(tmp_path / "set", "a.png")
    text = "\u68ee\u3000\u6797, \u0645\u06cc\u200c\u062e, \U0001f469\u200d\U0001f33e, a\u00a0b\tc\nd"
    write(tmp_path / "set", "a.png", f"{text}\0\x1b")
    assert (tmp_path / "set" / "a.txt").read_text(encoding="utf-8") == f"{text}\n"


def test_a_folder_elsewhere_is_only_shown(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png")
    elsewhere = Album(folder, Reading(), [tmp_path / "input"])
    assert "outside" in elsewhere.locked(folder) and elsewhere.shown("a.png").name == "a.png"
    with pytest.raises(ValueError, match="outside ComfyUI's input and datasets folders"):
        write_caption(elsewhere, "a.png", "x", "")
    with pytest.raises(ValueError, match="outside ComfyUI's input and datasets folders"):
        take_out(elsewhere, "a.png")
    assert read_only(tmp_path / "input" / ".." / "set", [tmp_path / "input"])
    assert os.listdir(folder) == ["a.png"]


# -- taking out --------------------------------------------------------------------------------------------------------


def test_a_picture_is_taken_out_with_its_files_and_put_back(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "b.png", "a-mask.png")
    (folder / "a.txt").write_text("one")
    before = sorted(path.name for path in folder.iterdir())
    moves = take_out(album(folder, masks="auto"), "a.png")
    assert sorted(path.name for path in (folder / "_removed").iterdir()) == ["a-mask.png", "a.png", "a.txt"]
    assert album(folder).names() == ["b.png"]
    assert ("_removed/", "2 pictures that were taken out") in album(folder).left_out
    put(folder, "a.png")
    with pytest.raises(ValueError, match=r"already a file a\.png"):
        put_back(moves)
    again = take_out(album(folder), "a.png")
    assert [there.name for _, there in again] == ["a (2).png"]
    put_back(moves)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == before
    with pytest.raises(ValueError, match="nothing to put back"):
        put_back(moves)


def test_what_is_anothers_too_stays(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "a.jpg")
    (folder / "a.txt").write_text("both")
    take_out(album(folder), "a.png")
    assert album(folder).shown("a.jpg").caption == "both"


def test_a_move_that_fails_leaves_all_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = put(tmp_path / "set", "a.png"), os.rename
    (folder / "a.txt").write_text("one")

    def fails(here: Path, there: Path) -> None:
        if str(here).endswith("a.txt"):
            raise OSError(13, "denied")
        real(here, there)

    monkeypatch.setattr(edits.os, "rename", fails)
    with pytest.raises(OSError, match="denied"):
        take_out(album(folder), "a.png")
    assert {"a.png", "a.txt"} <= set(os.listdir(folder))


# -- marks -------------------------------------------------------------------------------------------------------------


def test_captions_are_marked_as_the_doctor_does(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", *(f"{name}.png" for name in "abcd"))
    for name, text in (("a", "sks"), ("b", "a sks dog, dog, dog"), ("c", "skster on a (red) bench")):
        (folder / f"{name}.txt").write_text(text)
    found = [words(folder, f"{name}.png", trigger="sks") for name in "abcd"]
    assert found == [["trigger alone"], ["twice"], ["( )", "trigger"], ["no caption"]]
    ((_, told),) = album(folder).shown("d.png").marks
    assert told.endswith("it is left out.")
    assert words(folder, "d.png", trigger="dog", class_images=True) == []


def test_pictures_are_marked_and_framed_as_they_are_trained(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "wide.png", size=(300, 70))
    put(folder, "small.png", size=(20, 20))
    put(folder, "a.png")
    Image.open(folder / "a.png").save(folder / "b.png")
    (folder / "broken.png").write_bytes(b"no picture")
    looks = {path.stem: look(path, Frames(64, 16), "off") for path in sorted(folder.glob("*.png"))}
    assert [mark for mark, _ in looks["small"].marks] == ["small"]
    assert "cropped" in [mark for mark, _ in looks["wide"].marks] and looks["wide"].size == (300, 70)
    assert "not a readable picture" in looks["broken"].fault
    ((mark, _, paths),) = copies(list(looks.values()))
    assert mark == "copy" and [Path(path).name for path in paths] == ["a.png", "b.png"]
    left, top, width, height = looks["wide"].frame
    assert (top, height) == (0, 1) and 2 * left + width == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("size", [(300, 70), (64, 64), (101, 97), (70, 300), (33, 31)])
def test_the_frame_is_what_is_cut(size: tuple[int, int]) -> None:
    ramp = Image.linear_gradient("L").resize(size).convert("RGB")
    bucket = nearest_bucket(size, bucket_sizes(64, 16))
    left, top, width, height = frame(size, bucket)
    box = (left * size[0], top * size[1], (left + width) * size[0], (top + height) * size[1])
    cut, told = fit(ramp, bucket), ramp.resize(bucket, Image.Resampling.LANCZOS, box=box)
    assert abs(sum(cut.getpixel((5, 2))) - sum(told.getpixel((5, 2)))) <= 9


# -- folders to choose from --------------------------------------------------------------------------------------------


def test_folders_with_pictures_are_listed(tmp_path: Path) -> None:
    one, two = tmp_path / "input", tmp_path / "datasets"
    put(one / "b" / "10_dog", "a.png", "b.jpg")
    put(one / "A", "a.png")
    put(one / "clipspace", "a.png")
    put(one / "A" / "_removed", "a.png")
    put(one / ".hidden", "a.png")
    put(two / "A", "a.png", "b.png")
    (one / "empty").mkdir()
    link(one / "linked", two)
    found, whole = places([one, two, tmp_path / "gone"])
    assert [(each.name, each.pictures) for each in found] == [("A", 1), ("b", 2), ("b/10_dog", 2)] and whole
