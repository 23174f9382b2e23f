"""A data set's root, against RFC 6962's own definition."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from lora_core.data.dataset import Dataset
from lora_core.data.reading import from_folder
from lora_core.data.root import contents, leaf, merkle_root, root_of


def by_the_rfc(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1, whose leaves are hashed already."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + by_the_rfc(leaves[:k]) + by_the_rfc(leaves[k:])).digest()


def read_it(folder: Path) -> Dataset:
    return from_folder(folder, "ink", 64, step=16, repeats=1)


def test_the_tree_is_that_of_the_rfc() -> None:
    leaves = [hashlib.sha256(bytes([0, n])).digest() for n in range(70)]
    for count in range(1, 70):
        assert merkle_root(leaves[:count]) == by_the_rfc(leaves[:count]), count
    assert merkle_root([]) == hashlib.sha256().digest()


def test_a_root_is_worked_out_from_files_and_captions_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (40 * number, 90, 10)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a boat {number}")
    found = root_of(read_it(folder))
    leaves = [
        leaf(hashlib.sha256((folder / f"{number}.png").read_bytes()).digest(), f"ink, a boat {number}")
        for number in range(3)
    ]
    assert found == by_the_rfc(sorted(leaves)).hex()
    (folder / "0.png").rename(folder / "z.png")
    (folder / "0.txt").rename(folder / "z.txt")
    assert root_of(read_it(folder)) == found, "names and order are no part of it"
    (folder / "z.txt").write_text("another")
    assert root_of(read_it(folder)) != found


def test_marks_are_counted(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 90, 10)).save(tmp_path / f"{number}.jpg")
    marked = tmp_path / "1.jpg"
    marked.write_bytes(marked.read_bytes() + b"<tdm:reservation>1</tdm:reservation>")
    told = contents(read_it(tmp_path))
    assert (told["count"], told["reserved"]) == (2, {"TDM reservation: 1": 1}) and len(told["root"]) == 64
