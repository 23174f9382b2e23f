"""The guard in front of a corpus of broken and hostile files: a sentence for each, nothing built of them, no crash."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.hostile import IN_THE_NUMBERS, MUTATIONS, SOUND, Sound, mutants, packed
from harness.memory import peak_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.files import formats, guard, header_text
from lora_loom.lora_core.files.guard import UnsafeFileError

CORPUS = list(mutants())
MEGABYTE = 2**20


def test_the_corpus_is_large_and_every_mutant_its_own() -> None:
    assert (len(CORPUS), len(MUTATIONS)) == (645, 67)
    assert len({raw for _, raw, _ in CORPUS}) == len(CORPUS)
    assert {kind.partition(",")[0] for kind, _, _ in CORPUS} == MUTATIONS.keys()


@pytest.mark.parametrize("name", SOUND)
def test_what_the_mutants_are_made_of_is_sound(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.safetensors"
    path.write_bytes(packed(SOUND[name].header(), SOUND[name].data()))
    assert formats.read(path).layers


@pytest.mark.parametrize("kind", MUTATIONS)
def test_every_mutant_is_refused_for_what_it_is(kind: str, tmp_path: Path) -> None:
    """Before a tensor is touched, unless only the numbers tell, and within the memory of the file."""
    path = tmp_path / "mutant.safetensors"
    for what, raw, words in CORPUS:
        if what.partition(",")[0] != kind:
            continue
        path.write_bytes(raw)
        read, limit = formats.read if kind in IN_THE_NUMBERS else guard.inspect, max(len(raw), guard.SMALL)
        peak, message = peak_of(partial(refusal, path, read), limit)
        assert re.search(words, message), what
        assert message.isprintable() and message.endswith(".") and len(message) < 700, what
        assert peak < limit, what


def repeated(start: bytes, piece: bytes, end: bytes) -> bytes:
    return start + piece * ((LENGTH - len(start) - len(end)) // len(piece)) + end


def numbered(piece: bytes, start: bytes = b"{", end: bytes = b"}") -> bytes:
    return start + b",".join(piece % {b"n": number} for number in range(LENGTH // (len(piece) + 1))) + end


LENGTH = 50_000
ABOUT = b'{"__metadata__":{"k":"'
TENSOR = b'"a%(n)d":{"dtype":"U8","shape":[900],"data_offsets":[%(n)d000,%(n)d900]}'
BOMBS = {  # headers that grow when they are read
    "lists": repeated(b'{"a":[', b"[],", b"0]}"),
    "tables": repeated(b'{"a":[', b"{},", b"0]}"),
    "entries in a list": repeated(b'{"a":[', b'{"a":1},', b"0]}"),
    "numbers": repeated(b'{"a":[', b"1000,", b"0]}"),
    "texts": repeated(b'{"a":[', b'"xy",', b"0]}"),
    "entries": repeated(b"{", b'"":"",', b'"a":""}'),
    "entries of lists": numbered(b'"\\"a[%(n)x":[300]'),
    "tables in tables": repeated(b"", b'{"a":', b"1"),
    "lists in lists": repeated(b'{"a":', b"[", b""),
    "backslashes": repeated(b'{"a":"', b"\\\\", b'"}'),
    "quotes": repeated(b'{"a":', b'"', b"}"),
    "metadata": numbered(b'"%(n)x":"%(n)x"', b'{"__metadata__":{', b"}}"),
    "metadata with emoji": numbered(b'"%(n)x":"\xf0\x9f\x98\x80"', b'{"__metadata__":{', b"}}"),
    "long text": repeated(ABOUT, b"x", b'"}}'),
    "long text, escapes": repeated(ABOUT, b'a\\"', b'"}}'),
    "long text, one emoji": repeated(ABOUT + b"\xf0\x9f\x98\x80", b"x", b'"}}'),
    "long text, one escaped emoji": repeated(ABOUT, b"x", b'\\ud83d\\ude00"}}'),
    "long text, emoji and an escape": repeated(ABOUT + b"\xf0\x9f\x98\x80", b"x", b'\\u732b"}}'),
    "long text, Chinese beside it": repeated(ABOUT, b"x", '","t":"\u4e2d"}}'.encode()),
    "many escaped emoji": numbered(b'"%(n)x":"\\ud83d\\ude00"', b'{"__metadata__":{', b"}}"),
    "long text, Chinese": repeated(ABOUT, "\u4e2dxx".encode(), b'"}}'),
    "tensors": numbered(TENSOR),
    "tensors, spaced": numbered(TENSOR.replace(b",", b", ")),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_no_header_takes_more_memory_than_its_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file just large enough for it not to be refused at once, which is the worst; `text` is 20 times as long."""
    monkeypatch.setattr(guard, "SMALL", MEGABYTE)  # to save time
    path = tmp_path / "bomb.safetensors"
    raw = BOMBS[kind] if "text" not in kind else BOMBS[kind].replace(b"x" * 9, b"x" * 180)
    size = max(len(raw) + 8, MEGABYTE)
    path.write_bytes(packed(raw, b""))
    while "more memory" in refusal(path):
        size += size // 10
        with open(path, "r+b") as file:
            file.truncate(size)
        assert size < 130 * len(raw)
    assert peak_of(partial(refusal, path), size)[0] < size


def refusal(path: Path, read: Callable[[Path], Any] = guard.inspect) -> str:
    with pytest.raises(UnsafeFileError) as caught:
        read(path)
    return str(caught.value)


def test_files_with_much_metadata_are_read(tmp_path: Path) -> None:
    """2 MiB of tags, as a trainer that counts them writes it, beside 3 MiB of factors."""
    tags = json.dumps({f"{number}_\u4e2d": {f"tag {n}": n for n in range(2000)} for number in range(65)})
    sizes = {"lora_unet_a.lora_up.weight": [96_000, 8], "lora_unet_a.lora_down.weight": [8, 96_000]}
    sound = Sound({name: ("F16", shape) for name, shape in sizes.items()}, {"ss_tag_frequency": tags[: 2 * MEGABYTE]})
    path = tmp_path / "tags.safetensors"
    path.write_bytes(packed(sound.header(), sound.data()))
    assert guard.inspect(path).metadata == sound.metadata and len(tags) > 2 * MEGABYTE


@pytest.mark.parametrize("size", [2_200_000, 1_100_000])
@pytest.mark.parametrize("character", ["a", "\u00e9", "\u732b", "\U0001f431", "\u732b\U0001f431"])
@pytest.mark.parametrize("spelled", ["as it is", "escaped", "both"])
def test_one_wide_character_does_not_make_a_sound_header_too_large(
    character: str, spelled: str, size: int, tmp_path: Path
) -> None:  # fmt: skip
    """A cover picture and tags of 1 MB in a small LoRA, wherever the character is; read as it was written, within the
    memory that was judged to be enough, and not judged to be thrice what it takes."""
    path, cover = tmp_path / "a.safetensors", "A" * 1_040_000
    for about in ({"ssmd_cover_images": cover, "modelspec.title": character}, {"ss_tag_frequency": character + cover},
                  {"ss_tag_frequency": cover + character, "modelspec.title": "\u00fc"}):  # fmt: skip
        sound = Sound(
            {f"{character}.lora_up.weight": ("F16", [size // 12, 4]), f"{character}.lora_down.weight": ("F16", [4, 8])},
            about,
        )
        text = json.dumps(sound.header(), separators=(",", ":"), ensure_ascii=spelled == "escaped")
        text = text.replace('{"__meta', '{"\\u005f_meta') if spelled == "both" else text
        text = text.replace("modelspec", "m\\u00f6delspec") if spelled == "both" else text
        path.write_bytes(packed(text.encode(), sound.data()))
        wanted = {key.replace("modelspec", "m\u00f6delspec") if spelled == "both" else key: about[key] for key in about}
        judged = guard._text_size(text.encode())
        peak, header = peak_of(partial(guard.inspect, path), judged + 50_000)
        assert header.metadata == wanted and list(header.layers) == [character]
        assert peak < judged + 50_000 and (judged < 3 * peak or spelled == "both")


def test_no_metadata_is_none(tmp_path: Path) -> None:
    """`null`, as the safetensors library reads it."""
    header = {"__metadata__": None} | {name: entry for name, entry in SOUND["kohya"].header().items() if name[0] != "_"}
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed(header, SOUND["kohya"].data()))
    assert guard.inspect(path).metadata == {} and formats.read(path).layers


def test_a_header_reads_the_same_however_it_is_spaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick way for what the safetensors library writes and the general one agree, on sound files and mutants."""
    path, ways = tmp_path / "x.safetensors", (header_text._as_usual, lambda *_: None)
    sound = [packed(each.header(), each.data()) for each in SOUND.values()]
    for raw in [*sound, *(raw for _, raw, _ in CORPUS[::2])]:
        path.write_bytes(raw)
        found = []
        for way in ways:
            monkeypatch.setattr(header_text, "_as_usual", way)
            try:
                found.append(guard.inspect(path))
            except UnsafeFileError as error:
                found.append(str(error))
        assert found[0] == found[1] and (isinstance(found[0], guard.Header) or raw not in sound)


@pytest.mark.parametrize("name", SOUND)
def test_sound_headers_are_read_the_quick_way(name: str) -> None:
    """With metadata and without, padded with spaces as the library does it."""
    for metadata in (SOUND[name].metadata, None):
        header = SOUND[name].header()
        if metadata is None:
            del header["__metadata__"]
        text = packed(header, b"")[8:].decode() + "   "
        found = header_text._as_usual(text, json.JSONDecoder())
        assert found and found.metadata == (metadata or {}) and list(found.tensors) == list(SOUND[name].tensors)


def test_strings_are_read_as_json_does(tmp_path: Path) -> None:
    """Brackets and quotes in names and metadata are text."""
    names = ['a["[[', "b\\\\", 'c\\"{', "d:::[1,[2", "e]}"]
    header = {"__metadata__": {name: json.dumps([[[name]]] * 300) for name in names}}
    for number, name in enumerate(names):
        for at, end in enumerate((".lora_up.weight", ".lora_down.weight")):
            start = 8 * (2 * number + at)
            header[name + end] = {"dtype": "F32", "shape": [1, 2] if at else [2, 1], "data_offsets": [start, start + 8]}
    path = tmp_path / "odd.safetensors"
    path.write_bytes(packed(header, bytes(8 * 2 * len(names))))
    assert len(guard.inspect(path).tensors) == 2 * len(names)


@st.composite
def scrambled(draw: st.DrawFn) -> bytes:
    """A sound file with values of its header replaced by anything that JSON can say, or with bytes changed."""
    sound = SOUND[draw(st.sampled_from(sorted(SOUND)))]
    header = sound.header()
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    anything = plain | st.lists(plain, max_size=4) | st.dictionaries(st.text(max_size=6), plain, max_size=3)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(header)))
        if isinstance(header[key], dict) and header[key] and draw(st.booleans()):
            header[key][draw(st.sampled_from(sorted(header[key])))] = draw(anything)
        else:
            header[draw(st.text(max_size=12)) or key] = draw(anything)
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    raw = bytearray(packed(json.dumps(header, separators=separators).encode("utf-8"), sound.data()))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(raw)))
        raw[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(raw)


@settings(max_examples=200, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(raw=scrambled())
def test_scrambled_files_never_surprise(raw: bytes, tmp_path: Path) -> None:
    """An adapter whose numbers are finite, or one of our refusals; nothing else."""
    path = tmp_path / "scrambled.safetensors"
    path.write_bytes(raw)
    try:
        adapter = formats.read(path)
    except (UnsafeFileError, formats.UnsupportedWeightsError):
        return
    for layer in adapter.layers.values():
        assert torch.isfinite(layer.lora_A.float()).all() and torch.isfinite(layer.lora_B.float()).all()
