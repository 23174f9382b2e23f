"""The guard in front of a corpus of broken and hostile files: a sentence for each, nothing built of them, no crash."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from harness.hostile import IN_THE_NUMBERS, MUTATIONS, SOUND, mutants, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.files import formats, guard
from lora_loom.lora_core.files.guard import UnsafeFileError

CORPUS = list(mutants())
MEGABYTE = 2**20


def test_the_corpus_is_large_and_every_mutant_its_own() -> None:
    assert len(CORPUS) >= 400 and len({raw for _, raw, _ in CORPUS}) == len(CORPUS)
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
        tracemalloc.start()
        try:
            with pytest.raises(UnsafeFileError) as caught:
                (formats.read if kind in IN_THE_NUMBERS else guard.inspect)(path)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        message = str(caught.value)
        assert re.search(words, message), what
        assert message.isprintable() and message.endswith(".") and len(message) < 700, what
        assert peak < 3 * len(raw) + MEGABYTE, what


BOMBS = {  # how a header begins, what is repeated in it, and how it ends
    "lists": (b'{"a":[', b"[],", b"0]}"),
    "tables": (b'{"a":[', b"{},", b"0]}"),
    "numbers": (b'{"a":[', b"1,", b"0]}"),
    "texts": (b'{"a":[', b'"' + b"x" * 98 + b'",', b"0]}"),
    "entries": (b"{", b'"":"",', b'"a":""}'),
    "entries of lists": (b"{", b'"\\"a[":[1],', b'"a":""}'),
    "tables in tables": (b"", b'{"a":', b"1"),
    "lists in lists": (b'{"a":', b"[", b""),
    "backslashes": (b'{"a":"', b"\\\\", b'"}'),
    "quotes": (b'{"a":', b'"', b"}"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_headers_made_to_swell(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that Python's objects would take twenty times the room of; all limits are an eighth, to save time."""
    monkeypatch.setattr(guard, "MAX_HEADER", guard.MAX_HEADER // 8)
    monkeypatch.setattr(guard, "_MOST_OF", {mark: most // 8 for mark, most in guard._MOST_OF.items()})
    path, (start, piece, end) = tmp_path / "bomb.safetensors", BOMBS[kind]
    path.write_bytes(packed(start + piece * ((guard.MAX_HEADER - 40) // len(piece)) + end, b""))
    tracemalloc.start()
    with pytest.raises(UnsafeFileError):
        guard.inspect(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * guard.MAX_HEADER


def test_the_largest_header_within_the_limits(tmp_path: Path) -> None:
    """As many entries as are allowed, each as short as it can be: the most memory for its length."""
    path = tmp_path / "limit.safetensors"
    entries = b",".join(b'"%x":""' % number for number in range(guard.MAX_ENTRIES - 1))
    path.write_bytes(packed(b'{"__metadata__":{' + entries + b"}}", b""))
    tracemalloc.start()
    with pytest.raises(UnsafeFileError, match="no tensors"):
        guard.inspect(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * MEGABYTE


def test_the_outline_reads_strings_as_json_does(tmp_path: Path) -> None:
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
    raw = bytearray(packed(json.dumps(header).encode("utf-8"), sound.data()))
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
