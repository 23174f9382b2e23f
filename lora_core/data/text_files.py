"""Text files in whatever encoding they were written: read when it can be told, never as garbage."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable
from pathlib import Path

_LARGEST = 2**20
_MARKS = {  # byte order marks; UTF-32's first, which begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_SURE, _AHEAD = 0.85, 0.1  # share of usual characters, and how far the next best must be behind
_HANGUL_ROWS = 8  # characters from which on it is no chance that Chinese text keeps to the rows of Korean
_CURE = "save it as UTF-8"


class TextError(ValueError):
    """Says why a text file cannot be read, without its name."""


def read_text(path: Path, most: int = _LARGEST) -> tuple[str, str]:
    """Return the text, and what to tell of its encoding: nothing where that is certain. Raises TextError."""
    try:
        if not path.is_file():
            raise TextError("is a broken link" if path.is_symlink() else "is not a file")
        if (size := path.stat().st_size) > most:
            raise TextError(f"is a file of {size / 2**20:.1f} MiB, which is too long for a caption file")
        with open(path, "rb") as file:
            return decoded(file.read())
    except OSError as error:
        raise TextError(f"cannot be read: {error.strerror or error}") from error


def decoded(data: bytes) -> tuple[str, str]:
    """As `read_text`."""
    if data and not data.strip(b"\0"):
        raise TextError("contains only zeros, as after a power cut; write it again")
    if data.startswith(b"{\\rtf"):
        raise TextError("is rich text (RTF); save it as plain text, UTF-8")
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return _sound(_strictly(data, encoding)), ""
    text = _strictly(data, "utf-8") if b"\0" not in data else None
    if text is not None and not _odd(text) and not _doubtful(text):
        return text.rstrip("\x1a"), ""
    return _guessed(data)


def _doubtful(text: str) -> bool:
    """Whether it is accented letters without any plain one: two bytes of GBK may be valid UTF-8."""
    letters = [each for each in text if each.isalpha()]
    return bool(letters) and all("\x80" <= each < "\u0300" for each in letters)


def _guessed(data: bytes) -> tuple[str, str]:
    """By which encoding gives the largest share of characters that are usual in it."""
    found = {name: _share(data, encoding, usual) for name, (encoding, usual) in _ENCODINGS.items()}
    (name, best), (_, second) = sorted(found.items(), key=lambda each: -each[1])[:2]
    if best < _SURE or best - second < _AHEAD:
        raise TextError(f"has an unknown encoding; {_CURE}")
    text = _sound(_strictly(data, _ENCODINGS[name][0]))
    return text, f"is not UTF-8 and was read as {name}; {_CURE} to be sure"


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _sound(text: str | None) -> str:
    if text is None or _odd(text):
        raise TextError(f"is damaged: a part of it is not text; {_CURE}")
    return text.rstrip("\x1a")  # DOS ends files with it


def _odd(text: str, kinds: tuple[str, ...] = ("Cc", "Cs")) -> bool:
    """Whether there are characters that no text has: control codes, or of other `kinds`."""
    return any(unicodedata.category(each) in kinds for each in text.rstrip("\x1a") if not each.isspace())


def _share(data: bytes, encoding: str, usual: Callable[[str], float]) -> float:
    text = _strictly(data, encoding)
    return 0.0 if text is None or _odd(text, ("Cc", "Cs", "Cn", "Co")) else usual(text)


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _foreign(text: str) -> str:
    return "".join(each for each in text if each > "\x7f")


def _rows(encoding: str, *ranges: tuple[int, int]) -> Callable[[str], float]:
    """Whether characters of two bytes begin with bytes that common ones do."""

    def usual(text: str) -> float:
        coded = [each.encode(encoding) for each in _foreign(text)]
        return _mean([len(each) == 2 and any(low <= each[0] <= high for low, high in ranges) for each in coded])

    return usual


def _korean(text: str) -> float:
    sure = 1 + _AHEAD if len(_foreign(text)) >= _HANGUL_ROWS else 0.5
    return sure * _rows("cp949", (0xB0, 0xC8))(text)


def _japanese(text: str) -> float:
    """EUC-JP shares its rows with GBK and is told by kana."""
    kana = any("\u3041" <= each <= "\u30fe" for each in text)
    return _rows("euc_jp", (0xA1, 0xA1), (0xA4, 0xA5), (0xB0, 0xCF))(text) if kana else 0.0


def _western(text: str) -> float:
    """Letters with accents stand between plain ones, and marks beside them."""
    found = []
    for index, each in enumerate(text):
        if each > "\x7f":
            around = text[max(index - 1, 0) : index] + text[index + 1 : index + 2]
            found.append(any(other <= "\x7f" for other in around) and (each.isalpha() or each in _MARKS_OF_PRINT))
    return _mean(found)


def _cyrillic(text: str) -> float:
    """Words are of small letters, but for their first."""
    words = "".join(each if each.isalpha() else " " for each in text).split()
    found = [word[1:] for word in words if _foreign(word)]
    return _mean([each.islower() and not each.isascii() for word in found for each in word])


def _wide(text: str) -> float:
    """UTF-16 without a mark, told by the zeros of plain letters: in another order of bytes they are the second halves
    of characters from anywhere. Text without any plain letter is left to others."""
    if min(text, default="\xff") > "\x7f":
        return 0.0
    known = _mean([any(low <= ord(each) <= high for low, high in _SCRIPTS) for each in text])
    return known if sum(ord(each) % 256 == 0 for each in text) <= 0.3 * len(text) else 0.0


_MARKS_OF_PRINT = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u20ac\xb0\xab\xbb\xbf\xa1"
_SCRIPTS = (
    (0, 0x24F), (0x370, 0x52F), (0x2010, 0x2026), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xFF00, 0xFFEF),
)  # fmt: skip
_ENCODINGS: dict[str, tuple[str, Callable[[str], float]]] = {
    "UTF-16 without a mark": ("utf-16-le", _wide),
    "UTF-16 (big-endian) without a mark": ("utf-16-be", _wide),
    "GBK": ("gb18030", _rows("gb18030", (0xA1, 0xA3), (0xB0, 0xD7))),
    "Big5": ("cp950", _rows("cp950", (0xA1, 0xA1), (0xA4, 0xC6))),
    "Shift-JIS": ("cp932", _rows("cp932", (0x81, 0x83), (0x88, 0x97))),
    "EUC-JP": ("euc_jp", _japanese),
    "Korean (EUC-KR)": ("cp949", _korean),
    "Windows-1252": ("cp1252", _western),
    "Windows-1251": ("cp1251", _cyrillic),
}
