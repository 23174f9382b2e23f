"""Every way a file can be wrong, one file each, and none of them may reach a tensor."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from harness.links import link
from harness.memory import peak_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.files import formats, guard, header_text
from lora_loom.lora_core.files.guard import UnreadableFileError, UnsafeFileError

UP, DOWN, ALPHA = "a.lora_up.weight", "a.lora_down.weight", "a.alpha"


def entry(shape: list, start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def good() -> dict:
    """A rank-2 layer of a 4 x 8 weight: 4 + 32 + 64 bytes of data."""
    return {ALPHA: entry([], 0, 4), UP: entry([4, 2], 4, 36), DOWN: entry([2, 8], 36, 100)}


def craft(header: dict | bytes | str, data: int | bytes = 100) -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + (b"\x00\x00\x80\x3f" * (data // 4) if isinstance(data, int) else data)


def changed(name: str, **fields: object) -> bytes:
    header = good()
    header[name] = {**header[name], **fields}
    return craft(header)


def conv(up: list, down: list, mid: list | None = None) -> bytes:
    header, filled = {}, 0
    for name, shape in ((UP, up), (DOWN, down), ("a.lora_mid.weight", mid)):
        if shape is not None:
            size = 4 * torch.Size(shape).numel()
            header[name] = entry(shape, filled, filled + size)
            filled += size
    return craft(header, filled)


def renamed(**names: str) -> bytes:
    """`up=...`, `down=...`, `alpha=...`"""
    keys = {UP: names.get("up", UP), DOWN: names.get("down", DOWN), ALPHA: names.get("alpha", ALPHA)}
    return craft({keys[name]: info for name, info in good().items()})


def zipped() -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, buffer)
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


def without(name: str) -> bytes:
    """The other tensors, moved together so that only the missing one is wrong."""
    header, filled = {}, 0
    for key, info in good().items():
        if key != name:
            size = info["data_offsets"][1] - info["data_offsets"][0]
            header[key] = {**info, "data_offsets": [filled, filled + size]}
            filled += size
    return craft(header, filled)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "cut short"),
    "seven bytes": (lambda: b"\x08\0\0\0\0\0\0", "cut short"),
    "header beyond file": (lambda: (5000).to_bytes(8, "little") + b"{}", "claims 5000 bytes"),
    "header beyond cap": (lambda: (150 * 2**20).to_bytes(8, "little") + b"{}", "claims a header of 157286400"),
    "zip under another name": (zipped, "zip archive"),
    "pickle under another name": (lambda: pickle.dumps({"x": list(range(99))}), "Python pickle"),
    "header is a list": (lambda: craft("[]", 0), "does not start with '{'"),
    "space before the header": (lambda: craft(" {}", 0), "does not start with '{'"),
    "byte order mark": (lambda: craft(b"\xef\xbb\xbf{}", 0), "does not start with '{'"),
    "not JSON": (lambda: craft("{nope}", 0), "not JSON"),
    "text after the header": (lambda: craft("{} {}", 0), "not JSON"),
    "not UTF-8": (lambda: craft(b'{"\xff": 1}', 0), "not UTF-8"),
    "deep nesting": (lambda: craft('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", 0), "takes more memory"),
    "duplicate tensor": (lambda: craft(f'{{"{UP}": {{}}, "{UP}": {{}}}}', 0), "twice"),
    "duplicate field": (lambda: craft('{"a": {"dtype": "F32", "dtype": "F16"}}', 0), "'dtype' twice"),
    "NaN in the header": (lambda: craft('{"a": NaN}', 0), "'NaN'"),
    "fraction in a shape": (lambda: changed(UP, shape=[4.0, 2]), "'4.0'"),
    "number of 30 digits": (lambda: craft('{"a": ' + "9" * 30 + "}", 0), "holds the number"),
    "metadata not a table": (lambda: craft({"__metadata__": "x", **good()}), "not a table of text"),
    "metadata not text": (lambda: craft({"__metadata__": {"k": 1}, **good()}), "'k' that is int"),
    "metadata broken Unicode": (lambda: craft({"__metadata__": {"k": "\ud800"}, **good()}), "not valid Unicode"),
    "no tensors": (lambda: craft({}, 0), "no tensors"),
    "entry not a table": (lambda: craft({**good(), UP: [1]}), "other fields than"),
    "entry without dtype": (lambda: craft({**good(), UP: {"shape": [4, 2], "data_offsets": [4, 36]}}), "other fields"),
    "entry with an extra field": (lambda: changed(UP, file="/etc/passwd"), "other fields"),
    "unknown dtype": (lambda: changed(UP, dtype="C64"), "unknown dtype 'C64'"),
    "dtype not text": (lambda: changed(UP, dtype=[]), "unknown dtype"),
    "negative dimension": (lambda: changed(UP, shape=[-4, -2]), "impossible shape"),
    "huge dimension": (lambda: changed(UP, shape=[2**60, 2**60]), "impossible shape"),
    "boolean dimension": (lambda: changed(UP, shape=[True, 8]), "impossible shape"),
    "nine dimensions": (lambda: changed(UP, shape=[1] * 7 + [4, 2]), "impossible shape"),
    "shape not a list": (lambda: changed(UP, shape=8), "impossible shape"),
    "negative offset": (lambda: changed(UP, data_offsets=[-4, 28]), "impossible data_offsets"),
    "boolean offset": (lambda: changed(UP, data_offsets=[False, 32]), "impossible data_offsets"),
    "offsets backwards": (lambda: changed(UP, data_offsets=[36, 4]), "impossible data_offsets"),
    "three offsets": (lambda: changed(UP, data_offsets=[4, 36, 36]), "impossible data_offsets"),
    "size is not shape times dtype": (lambda: changed(UP, shape=[4, 3]), "needs 48"),
    "empty tensor claiming gigabytes": (lambda: changed(UP, shape=[200000, 20000], data_offsets=[4, 4]), "needs 16000"),
    "tensor without data": (lambda: craft({**good(), "b.diff": entry([0, 10**9], 100, 100)}), "holds no data"),
    "overlap": (lambda: craft({ALPHA: entry([], 0, 4), UP: entry([4, 2], 2, 34), DOWN: entry([2, 8], 34, 98)}, 98),
                f"'{UP}' that overlaps '{ALPHA}'"),
    "alias": (lambda: craft({UP: entry([2, 2], 0, 16), DOWN: entry([2, 2], 0, 16)}, 16), "same bytes as"),
    "hole": (lambda: craft({UP: entry([4, 2], 0, 32), DOWN: entry([2, 8], 40, 104)}, 104), "hole of 8 bytes"),
    "trailing bytes": (lambda: craft(good(), 160), "60 trailing bytes"),
    "data cut short": (lambda: craft(good(), 60), "cut short"),
    "control character in a name": (lambda: renamed(up="a\n.lora_up.weight"), "control characters"),
    "bidi override in a name": (lambda: renamed(up="\u202ea.lora_up.weight"), "control characters"),
    "surrogate in a name": (lambda: renamed(up="\udc80.lora_up.weight"), "control characters"),
    "name without characters": (lambda: renamed(up=""), "name of 0 characters"),
    "endless name": (lambda: renamed(up="x" * 2000), "name of 2000 characters"),
    "up without down": (lambda: without(DOWN), f"'{UP}' without the down"),
    "down without up": (lambda: without(UP), f"'{DOWN}' without the up"),
    "up and down spelled differently": (lambda: renamed(down="a.lora_A.weight"), "without the down"),
    "two spellings of one factor": (lambda: craft({**good(), "a.lora_B.weight": entry([4, 2], 100, 132)}, 132),
                                    "which is the same factor"),
    "ranks disagree": (lambda: conv([4, 3], [2, 8]), "factors of different ranks"),
    "rank zero": (lambda: changed(UP, shape=[4, 0], data_offsets=[4, 4]), "holds no data"),
    "kernel on the up factor": (lambda: conv([4, 2, 3, 3], [2, 8, 3, 3]), "kernel above 1x1"),
    "mid of another rank": (lambda: conv([4, 2, 1, 1], [2, 8, 1, 1], [3, 2, 3, 3]), "factors of different ranks"),
    "mid without dimensions": (lambda: conv([4, 2, 1, 1], [2, 8, 1, 1], [2, 2]), "3 to 5 dimensions"),
    "factor of one dimension": (lambda: changed(UP, shape=[8]), "2 to 5 dimensions"),
    "factor of six dimensions": (lambda: changed(UP, shape=[4, 2, 1, 1, 1, 1]), "2 to 5 dimensions"),
    "factor of whole numbers": (lambda: changed(UP, dtype="I32"), "as I32"),
    "alpha is a vector": (lambda: changed(ALPHA, shape=[2], dtype="F16"), "one number"),
    "alpha is a truth value": (lambda: craft({ALPHA: entry([], 0, 1, "BOOL"), UP: entry([4, 2], 1, 33),
                                              DOWN: entry([2, 8], 33, 97)}, bytes(97)), "one number"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(case: str, tmp_path: Path):
    build, fragment = HOSTILE[case]
    path = tmp_path / "suspect.safetensors"
    path.write_bytes(build())
    with pytest.raises(UnsafeFileError) as caught:
        guard.inspect(path)
    message = str(caught.value)
    assert fragment in message
    assert message.startswith("'suspect.safetensors' ") and message.endswith(".") and message.isprintable()
    assert "; " in message, "the cure is missing"


def test_refuses_more_tensors_than_any_lora_has(tmp_path: Path):
    path, size = tmp_path / "many.safetensors", 1500
    tensors = {f"t{i}": entry([size], i * size, (i + 1) * size, "U8") for i in range(header_text.MAX_TENSORS + 1)}
    path.write_bytes(craft(tensors, 0))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + size * len(tensors))
    with pytest.raises(UnsafeFileError, match="lists 20001 tensors"):
        guard.inspect(path)


def test_accepts_a_sound_file(tmp_path: Path):
    path = tmp_path / "good.safetensors"
    path.write_bytes(craft({"__metadata__": {"title": "\u00e9t\u00e9"}, **good()}))
    header = guard.inspect(path)
    assert header.metadata == {"title": "\u00e9t\u00e9"}
    assert header.tensors[UP] == guard.TensorInfo("F32", (4, 2), 4, 36)
    assert header.data_start + 100 == header.size == path.stat().st_size


@pytest.mark.parametrize("build", [
    lambda: conv([4, 2, 1, 1], [2, 8, 3, 3]),
    lambda: conv([4, 2, 1, 1], [2, 8, 1, 1], [2, 2, 3, 3]),
    lambda: conv([4, 2], [2, 8]),
    lambda: conv([4, 2, 1], [2, 8, 5]),
    lambda: conv([64, 18, 1, 1], [18, 2, 3, 3]),
    lambda: renamed(up="\u65e5\u672c.lora_up.weight", down="\u65e5\u672c.lora_down.weight", alpha="\u65e5\u672c.alpha"),
])  # fmt: skip
def test_accepts_honest_shapes(build: Callable[[], bytes], tmp_path: Path):
    path = tmp_path / "good.SAFETENSORS"
    path.write_bytes(build())
    assert guard.inspect(path).tensors


@pytest.mark.parametrize("suffix", [".pt", ".CKPT", ".bin", ".pth", ".pkl"])
def test_refuses_pickles_by_suffix(suffix: str, tmp_path: Path):
    path = tmp_path / f"lora{suffix}"
    path.write_bytes(craft(good()))
    with pytest.raises(UnsafeFileError, match="can run code"):
        guard.inspect(path)


def test_refuses_other_suffixes_and_folders(tmp_path: Path):
    (tmp_path / "lora.txt").write_bytes(craft(good()))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UnsafeFileError, match="not named .safetensors"):
        guard.inspect(tmp_path / "lora.txt")
    with pytest.raises(UnsafeFileError, match="regular file"):
        guard.inspect(tmp_path / "folder.safetensors")
    with pytest.raises(UnreadableFileError, match="'missing.safetensors' cannot be read"):
        guard.inspect(tmp_path / "missing.safetensors")


def test_header_length_that_looks_like_a_pickle(tmp_path: Path):
    """640 is 0x280: the first two bytes of a sound file may be those of a pickle."""
    path = tmp_path / "good.safetensors"
    path.write_bytes(craft(json.dumps(good()).ljust(640)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert guard.inspect(path).data_start == 648


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -2e4])
def test_read_refuses_an_alpha_nobody_means(alpha: float, tmp_path: Path):
    with pytest.raises(UnsafeFileError, match="'a.alpha' to .* outside -10000 to 10000"):
        formats.decode({UP: torch.ones(4, 2), DOWN: torch.ones(2, 8), ALPHA: torch.tensor(alpha)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_read_refuses_values_that_are_not_finite(value: float, dtype: torch.dtype):
    down = torch.ones(2, 8)
    down[1, 3] = value
    with pytest.raises(UnsafeFileError, match=f"NaN or infinite values in '{DOWN}'"):
        formats.decode({UP: torch.ones(4, 2, dtype=dtype), DOWN: down.to(dtype)})


SOUND = craft({"__metadata__": {"title": "x"}, **good()})
HEADER_END = SOUND.index(b"\x00\x00\x80\x3f")


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The sound file with bytes flipped (mostly in the header), cut out or put in."""
    raw = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, HEADER_END) | st.integers(0, len(raw)))
        piece = draw(st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"[", b"]", b",", b":", b"-", b"9", b"true"]))
        raw[place : place + draw(st.integers(0, 3))] = piece
    return bytes(raw)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=mutations())
def test_mutated_bytes_never_surprise(raw: bytes, tmp_path: Path):
    """A header or UnsafeFileError, never another exception, never memory beyond what the bytes account for."""
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(raw)

    def look() -> guard.Header | None:
        with suppress(UnsafeFileError):
            return guard.inspect(path)

    limit = 64 * len(raw) + 100_000
    peak, header = peak_of(look, limit)
    assert peak < limit
    if header is not None:
        assert sum(info.end - info.start for info in header.tensors.values()) == header.size - header.data_start


def test_a_hostile_length_allocates_nothing(tmp_path: Path):
    path = tmp_path / "sparse.safetensors"
    with open(path, "wb") as file:
        file.write((2**33).to_bytes(8, "little") + b"{")
        file.truncate(2**33 + 100)

    def look() -> None:
        with pytest.raises(UnsafeFileError, match="more than the 8388608 allowed"):
            guard.inspect(path)

    assert peak_of(look, 100_000)[0] < 100_000


@pytest.mark.parametrize("name", ["ink", "styles/ink", "styles\\ink", "a.b.c", "\u65e5\u672c", "console", "com10"])
def test_safe_name_keeps_good_names(name: str):
    assert guard.safe_name(name) == name.replace("\\", "/")


@pytest.mark.parametrize("name", [
    "", "/etc/passwd", "\\\\host\\share", "C:\\x", "c:x", "..", "../x", "a/../../x", "a//b", "a/", ".", "...", "a\nb",
    "a\x00", "\u202ex", "con", "NUL.safetensors", "a/com1", "lpt\u00b9.txt", "CONIN$", "a?", "a*b", "a|b", "<x>", '"x"',
    " x", "x ", "x.", "x" * 300, "\udc80",
])  # fmt: skip
def test_safe_name_refuses_the_rest(name: str):
    with pytest.raises(ValueError, match="use a plain name"):
        guard.safe_name(name)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_a_name_never_leaves_its_folder(name: str):
    root = Path.cwd()
    try:
        path = guard.safe_path(root, name)
    except ValueError:
        return
    assert root.resolve() in path.parents


def test_a_link_does_not_lead_out(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "inside").mkdir()
    link(tmp_path / "inside" / "link", tmp_path / "out")
    with pytest.raises(ValueError, match="through a link"):
        guard.safe_path(tmp_path / "inside", "link/x")
