"""The list that a picker has: whole at first, then what changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_loom.lora_core.files import card
from lora_loom.lora_core.files.library import Library
from safetensors.torch import save_file

LAYER = "lora_unet_double_blocks_0_img_attn_qkv"


def write(path: Path, author: str = "Ada") -> None:
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(2, 3072), f"{LAYER}.lora_up.weight": torch.ones(9216, 2)}
    save_file(tensors, path, {"modelspec.author": author})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str | None]:
    """Three sound ones."""
    for name in "abc":
        write(tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
    return {name: str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c.safetensors")}


def names(found: dict[str, Any]) -> list[str]:
    return [each["name"][0] for each in found["loras"]]


def test_only_what_changed_is_told_again(files: dict[str, str | None]) -> None:
    library = Library()
    library.look(files, 60)
    first = library.changes("")
    assert names(first) == ["a", "b", "c"] and (first["since"], first["unread"], first["gone"]) == ("", 0, [])
    assert {each["author"] for each in first["loras"]} == {"Ada"}
    library.look(files, 60)
    same = library.changes(first["version"])
    assert same == {**first, "since": first["version"], "loras": []}

    write(Path(files["b.safetensors"]), "Bob Bobson")
    write(Path(files["a.safetensors"]).with_name("d.safetensors"))
    more = {**files, "d.safetensors": files["a.safetensors"].replace("a.safetensors", "d.safetensors")}
    del more["c.safetensors"]
    library.look(more, 60)
    then = library.changes(first["version"])
    assert names(then) == ["b", "d"] and then["gone"] == ["c.safetensors"] and then["since"] == first["version"]
    assert then["loras"][0]["author"] == "Bob Bobson" and then["loras"][0]["version"] != first["loras"][1]["version"]

    library.look({**more, "c.safetensors": files["c.safetensors"]}, 60)
    back = library.changes(then["version"])
    assert names(back) == ["c"] and back["gone"] == [] and names(library.changes(first["version"])) == ["b", "d", "c"]


@pytest.mark.parametrize("version", ["", "0-1", "{}-x", "-", "{}-", "{}-99999999999999999999", "{}-\u0661"])
def test_a_version_of_another_list_gets_all(files: dict[str, str | None], version: str) -> None:
    library = Library()
    library.look(files, 60)
    run = library.version.partition("-")[0]
    found = library.changes(version.format(run))
    assert (names(found), found["since"]) == (["a", "b", "c"], "") or version.endswith("\u0661")


def test_what_there_was_no_time_to_read_is_read_later(files: dict[str, str | None]) -> None:
    library = Library()
    library.look(files, -1)
    first = library.changes("")
    assert first["unread"] == 3 and first["loras"] == [{"name": name} for name in files]
    library.look(files, -1)
    assert library.changes(first["version"])["loras"] == [] and library.version == first["version"]
    library.look(files, 60)
    found = library.changes(first["version"])
    assert names(found) == ["a", "b", "c"] and found["unread"] == 0 and found["loras"][0]["author"] == "Ada"


def test_a_header_is_read_once_and_an_unreadable_one_every_time(
    files: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, asked, read = Library(), [], card.read
    files["gone.safetensors"] = str(Path(files["a.safetensors"]).with_name("gone.safetensors"))

    def noted(path: str) -> card.Card:
        asked.append(Path(path).name[0])
        return read(path)

    monkeypatch.setattr(card, "read", noted)
    for _ in range(2):
        library.look(files, 60)
    assert asked == ["a", "b", "c", "g", "g"]
    (lost,) = [each for each in library.changes("")["loras"] if "fault" in each and each["fault"]]
    assert lost == {"name": "gone.safetensors", "fault": "the file cannot be read"}
    version = library.version
    write(Path(files["gone.safetensors"]))
    library.look(files, 60)
    assert names(library.changes(version)) == ["g"] and os.path.isfile(files["gone.safetensors"])


def test_size_and_time_are_told_and_what_lies_beside_is_noticed(files: dict[str, str | None]) -> None:
    """Side files and previews that come, change and go; other files beside do not matter."""
    library = Library()
    library.look(files, 60)
    path = Path(files["b.safetensors"])
    (first,) = [each for each in library.changes("")["loras"] if each["name"] == "b.safetensors"]
    assert (first["size"], first["modified"]) == (path.stat().st_size, path.stat().st_mtime_ns // 10**9)

    def noticed() -> list[dict[str, Any]]:
        before = library.version
        library.look(files, 60)
        return library.changes(before)["loras"]

    (path.parent / "b.readme.md").write_text("x")
    assert noticed() == []
    side = path.with_suffix(".json")
    for text, words in (('{"activation text": "ink"}', ("ink",)), ('{"activation text": "wash!"}', ("wash!",))):
        side.write_text(text)
        (found,) = noticed()
        assert found["name"] == "b.safetensors" and found["words"] == words and found["version"] != first["version"]
    side.unlink()
    assert noticed() == [first]
    path.with_suffix(".preview.png").write_bytes(b"x")
    (found,) = noticed()
    assert found["picture"] and found["version"] != first["version"]
