"""Text in the encodings that people have: read when it can be told which, else named, never learned as garbage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lora_loom.lora_core.data.text_files import TextError, decoded, read_text

TEXTS = {
    "utf-8": ["a café", "一只红色的狗", "собака 🐕"],
    "utf-8-sig": ["a dog", "café"],
    "utf-16": ["a red dog in snow", "一只红色的狗"],
    "utf-32": ["a red dog in snow"],
}
GUESSED = {
    "utf-16-le": ["a red dog in snow", "café, a dog", "1girl, 白发"],
    "utf-16-be": ["a red dog in snow", "собака в снегу"],
    "cp1252": ["a café, it’s raining", "Mädchen, größer", "a photo of Zoë",
               "“quoted” – dash"],
    "gbk": ["一只红色的狗", "1girl, 白发, 微笑, solo", "红色的狗"],
    "big5": ["一隻紅色的狗", "藍天白雲下的一座山"],
    "cp932": ["赤い犬が雪の中にいる", "女の子、笑顔"],
    "cp1251": ["собака в снегу", "Москва"],
    "cp949": ["흰 드레스를 입은 소녀가 바닷가에 서 있다"],
}  # fmt: skip
UNKNOWN = {
    "koi8-r": ["собака в снегу"],
    "gbk": ["猫"],  # two bytes that are valid UTF-8, too
    "cp1250": ["žlutý kůň"],
    "utf-16-le": ["一只红色的狗"],
}


def pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(encoding, text) for encoding, texts in table.items() for text in texts]


@pytest.mark.parametrize(("encoding", "text"), pairs(TEXTS))
def test_certain_encodings_are_read_without_a_word(encoding: str, text: str) -> None:
    assert decoded(text.encode(encoding)) == (text.replace("\ufeff", ""), "")


@pytest.mark.parametrize(("encoding", "text"), pairs(GUESSED))
def test_others_are_read_and_named(encoding: str, text: str) -> None:
    found, note = decoded(text.encode(encoding))
    assert found == text and note.startswith("is not UTF-8 and was read as ") and "save it as UTF-8" in note


@pytest.mark.parametrize(("encoding", "text"), pairs(UNKNOWN))
def test_what_cannot_be_told_is_not_read(encoding: str, text: str) -> None:
    with pytest.raises(TextError, match="an unknown encoding; save it as UTF-8"):
        decoded(text.encode(encoding))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(40), "only zeros, as after a power cut"), (b"a dog" + bytes(35), "unknown encoding"),
        (b"\xff\xfea\0b", "is damaged"), (b"{\\rtf1\\ansi a dog}", "is rich text"),
        (bytes(range(256)), "unknown encoding"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "unknown encoding"), (b"\xef\xbb\xbfa\0b", "is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_not_read(data: bytes, why: str) -> None:
    with pytest.raises(TextError, match=why):
        decoded(data)


def test_an_empty_file_and_the_end_mark_of_dos() -> None:
    assert decoded(b"") == decoded(b"\xef\xbb\xbf") == ("", "") and decoded(b"a dog\r\n\x1a") == ("a dog\r\n", "")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "long.txt").write_bytes(b"a" * 2**21)
    os.mkfifo(tmp_path / "pipe.txt") if hasattr(os, "mkfifo") else (tmp_path / "pipe.txt").mkdir()
    for name, why in (("link.txt", "broken link"), ("long.txt", "2.0 MiB"), ("pipe.txt", "not a file")):
        with pytest.raises(TextError, match=why):
            read_text(tmp_path / name)
