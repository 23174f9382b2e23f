"""Files that are not what they say: sound LoRA files of every spelling, each broken in every way we know.

A `Sound` is a file taken apart; a mutation of `MUTATIONS` makes bytes of it that are wrong in one respect, and says by
which words the guard must refuse them. A further way to be hostile is one more row.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "BOOL": 1, "F64": 8, "F8_E4M3": 1}
Entry = dict[str, Any]


@dataclass
class Sound:
    """Names, shapes and types of tensors; the data are ones."""

    tensors: dict[str, tuple[str, list[int]]]
    metadata: dict[str, str] = field(
        default_factory=lambda: {"ss_network_dim": "4", "modelspec.title": "\u00e9t\u00e9"}
    )

    def header(self) -> dict[str, Any]:
        found: dict[str, Any] = {"__metadata__": dict(self.metadata)}
        filled = 0
        for name, (dtype, shape) in self.tensors.items():
            size = prod(shape) * SIZES[dtype]
            found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [filled, filled + size]}
            filled += size
        return found

    def data(self) -> bytes:
        ones = {"F32": b"\0\0\x80?", "F16": b"\0<", "BF16": b"\x80?", "U8": b"\1", "BOOL": b"\1", "I32": b"\1\0\0\0",
                "F8_E4M3": b"8"}  # fmt: skip
        return b"".join(ones[dtype] * prod(shape) for dtype, shape in self.tensors.values())


def packed(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    """As the safetensors library spells a header, without spaces."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def _layer(name: str, up: str, down: str, size: tuple[int, int, int], dtype: str, alpha: bool) -> dict:
    rows, rank, columns = size
    found = {f"{name}{down}": (dtype, [rank, columns]), f"{name}{up}": (dtype, [rows, rank])}
    return found | ({f"{name}.alpha": (dtype, [])} if alpha else {})


def _file(names: list[str], up: str, down: str, dtype: str = "F16", alpha: bool = True) -> Sound:
    tensors: dict[str, tuple[str, list[int]]] = {}
    for number, name in enumerate(names):
        tensors |= _layer(name, up, down, (8 + 4 * number, 4, 12), dtype, alpha)
    return Sound(tensors)


_UNET = [f"lora_unet_down_blocks_{i}_attentions_0_transformer_blocks_0_attn1_to_{p}" for i in range(2) for p in "qkv"]
SOUND = {
    "kohya": _file(_UNET, ".lora_up.weight", ".lora_down.weight"),
    "comfyui": _file([f"diffusion_model.double_blocks.{i}.img_attn.qkv" for i in range(4)], ".lora_up.weight",
                     ".lora_down.weight", "F32"),
    "diffusers": _file([f"transformer.single_transformer_blocks.{i}.attn.to_q" for i in range(4)], ".lora_B.weight",
                       ".lora_A.weight", "BF16", alpha=False),
    "fp8": _file(_UNET[:3], ".lora_up.weight", ".lora_down.weight", "F8_E4M3"),
    "text": _file([f"lora_te1_text_model_encoder_layers_{i}_mlp_fc1" for i in range(3)], ".lora_up.weight",
                  ".lora_down.weight"),
}  # fmt: skip


Mutation = Callable[[Sound, random.Random], bytes]


def _changed(change: Callable[[dict[str, Any], str, random.Random], object]) -> Mutation:
    """The header with one thing changed, for a tensor drawn at random."""

    def mutate(sound: Sound, chance: random.Random) -> bytes:
        header = sound.header()
        change(header, chance.choice(list(sound.tensors)), chance)
        return packed(header, sound.data())

    return mutate


def _field(name: str, value: Callable[[Entry, random.Random], object]) -> Mutation:
    return _changed(lambda header, key, chance: header[key].__setitem__(name, value(header[key], chance)))


def _text(change: Callable[[bytes, str, random.Random], bytes]) -> Mutation:
    """The header's text changed, which is spaced as Python does it."""

    def mutate(sound: Sound, chance: random.Random) -> bytes:
        raw = json.dumps(sound.header()).encode()
        return packed(change(raw, chance.choice(list(sound.tensors)), chance), sound.data())

    return mutate


def _compact(change: Callable[[bytes, random.Random], bytes]) -> Mutation:
    """The text of a header without spaces changed."""

    def mutate(sound: Sound, chance: random.Random) -> bytes:
        raw = packed(sound.header(), b"")[8:]
        return packed(change(raw, chance), sound.data())

    return mutate


def _at(raw: bytes, mark: bytes, new: bytes, chance: random.Random) -> bytes:
    """With one of the marks in `raw` replaced."""
    pieces = raw.split(mark)
    place = chance.randrange(1, len(pieces))
    return mark.join(pieces[:place]) + new + mark.join(pieces[place:])


def _whole(change: Callable[[bytes, random.Random], bytes]) -> Mutation:
    """The bytes of the file changed."""
    return lambda sound, chance: change(packed(sound.header(), sound.data()), chance)


def _factor(header: dict[str, Any], chance: random.Random) -> str:
    return chance.choice([key for key in header if key != "__metadata__" and not key.endswith(".alpha")])


def _overlap(header: dict, key: str, chance: random.Random) -> None:
    names = list(header)[1:]
    later = chance.choice(names[1:])
    start, end = header[later]["data_offsets"]
    back = chance.randint(1, header[names[names.index(later) - 1]]["data_offsets"][1])
    header[later]["data_offsets"] = [start - min(back, start), end - min(back, start)]


def _beyond(entry: Entry, chance: random.Random) -> list[int]:
    far = 10 ** chance.randint(7, 17) + chance.randint(0, 9)
    return [at + far for at in entry["data_offsets"]]


def _alias(header: dict, key: str, chance: random.Random) -> None:
    header[key + "2"] = {**header[key]}


def _renamed(header: dict, key: str, name: str) -> None:
    entries = [(name if each == key else each, value) for each, value in header.items()]
    header.clear()
    header.update(entries)


def _hole(sound: Sound, chance: random.Random) -> bytes:
    header, size = sound.header(), chance.choice((1, 8, 4096))
    later = list(sound.tensors)[chance.randint(0, len(sound.tensors) - 1) :]
    for name in later:
        header[name]["data_offsets"] = [at + size for at in header[name]["data_offsets"]]
    return packed(header, sound.data() + bytes(size))


def _without(sound: Sound, chance: random.Random) -> bytes:
    gone = _factor(sound.header(), chance)
    rest = Sound({name: value for name, value in sound.tensors.items() if name != gone})
    return packed(rest.header(), rest.data())


def _reshaped(sound: Sound, chance: random.Random) -> bytes:
    """A rank that its partner does not have, and the data for it."""
    name = _factor(sound.header(), chance)
    dtype, (rows, columns) = sound.tensors[name]
    up = name.endswith((".lora_up.weight", ".lora_B.weight"))
    shape = [rows, columns + 1] if up else [rows + chance.randint(1, 3), columns]
    other = Sound({**sound.tensors, name: (dtype, shape)})
    return packed(other.header(), other.data())


def _retyped(sound: Sound, chance: random.Random) -> bytes:
    """A factor of whole numbers or truth values."""
    name = _factor(sound.header(), chance)
    other = Sound({**sound.tensors, name: (chance.choice(("I32", "U8", "BOOL")), sound.tensors[name][1])})
    return packed(other.header(), other.data())


def _flattened(sound: Sound, chance: random.Random) -> bytes:
    name = _factor(sound.header(), chance)
    dtype, shape = sound.tensors[name]
    other = Sound({**sound.tensors, name: (dtype, chance.choice(([prod(shape)], [1] * 4 + shape)))})
    return packed(other.header(), other.data())


def _twice(sound: Sound, chance: random.Random) -> bytes:
    """The same factor under another spelling."""
    name = _factor(sound.header(), chance)
    spelled = name
    for one, other in ((".lora_up.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_A.weight")):
        spelled = name.replace(one, other) if one in name else name.replace(other, one) if other in name else spelled
    tensors = {**sound.tensors, spelled: sound.tensors[name]}
    return packed(Sound(tensors).header(), Sound(tensors).data())


def _values(bad: dict[str, list[bytes]], alpha: bool, last: bool = False, odd: bool = False) -> Mutation:
    """One number of the data made what it must not be, or the very last one; `odd`: where data start at an odd byte."""

    def mutate(sound: Sound, chance: random.Random) -> bytes:
        if alpha and not any(name.endswith(".alpha") for name in sound.tensors):
            sound = Sound(sound.tensors | {next(iter(sound.tensors)).split(".lora")[0] + ".alpha": ("F32", [])})
        header, data = sound.header(), bytearray(sound.data())
        names = [name for name in sound.tensors if name.endswith(".alpha") == alpha]
        if last:
            sound = Sound({name: sound.tensors[name] for name in sorted(sound.tensors, key=names.__contains__)})
            header, data = sound.header(), bytearray(sound.data())
        name = names[-1] if last else chance.choice(names)
        dtype = sound.tensors[name][0]
        start, end = header[name]["data_offsets"]
        at = end - SIZES[dtype] if last else start + SIZES[dtype] * chance.randrange((end - start) // SIZES[dtype])
        data[at : at + SIZES[dtype]] = chance.choice(bad[dtype])
        raw = packed(header, b"")[8:]
        return packed(raw + b" " * ((len(raw) + odd) % 2), bytes(data))

    return mutate


_NAN = {"F32": [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"], "F16": [b"\0~", b"\0|", b"\0\xfc"],
        "BF16": [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], "F8_E4M3": [b"\x7f", b"\xff"]}  # fmt: skip
_ALPHA = {"F32": [*_NAN["F32"], b"\0\x50\xc3G"], "F16": [*_NAN["F16"], b"\0x"],
          "BF16": [*_NAN["BF16"], b"\xc3G"], "F8_E4M3": _NAN["F8_E4M3"]}  # fmt: skip
_CONTROL = ("\n", "\x00", "\x1b[2J", "\u202e", "\u200b", "\u2028", "\ud83d")
_JUNK = ("NaN", "Infinity", "-Infinity", "1e400", "0.5", "9" * 25, "1" * 5000)

MUTATIONS: dict[str, tuple[Mutation, str]] = {
    # the file
    "cut off": (_whole(lambda raw, r: raw[: r.randrange(8, len(raw))]), "cut short|not JSON|UTF-8"),
    "cut off in the length": (_whole(lambda raw, r: raw[: r.randrange(8)]), "cut short"),
    "trailing bytes": (_whole(lambda raw, r: raw + bytes(r.choice((1, 7, 512, 70_000)))), "trailing bytes"),
    "polyglot": (_whole(lambda raw, r: raw + r.choice((b"PK\x05\x06" + bytes(18), b"<script>"))), "trailing bytes"),
    "header length wrong": (_whole(lambda raw, r: (len(raw) * r.randint(2, 9)).to_bytes(8, "little") + raw[8:]), "claims"),
    "giant header": (_whole(lambda raw, r: (2 ** r.choice((24, 33, 40, 63))).to_bytes(8, "little") + raw[8:]), "claims a header"),
    "zip": (_whole(lambda raw, r: b"PK\x03\x04" + r.randbytes(r.randint(40, 90))), "zip archive"),
    "pickle": (_whole(lambda raw, r: b"\x80" + bytes([r.randint(2, 5)]) + r.randbytes(6) + raw), "Python pickle"),
    # the header's text
    "space first": (_text(lambda raw, key, r: r.choice((b" ", b"\n", b"\xef\xbb\xbf", b"[")) + raw), "does not start with"),
    "bad UTF-8": (_text(lambda raw, key, r: raw.replace(key.encode(), r.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80")) + key.encode(), 1)), "UTF-8"),
    "text after": (_text(lambda raw, key, r: raw + r.choice((b"{}", b"x", b"\x00", b"//"))), "not JSON"),
    "comma": (_text(lambda raw, key, r: raw[:-1] + b",}"), "not JSON"),
    "deep": (_text(lambda raw, key, r: raw[:-1] + b', "x": ' + b"[" * r.randint(1000, 20_000) + b"}"), "nested too deeply|not JSON|more memory"),
    "deep tables": (_text(lambda raw, key, r: raw[:-1] + b', "x": ' + b'{"a":' * r.randint(1500, 9000) + b"}"), "nested too deeply|not JSON|more memory"),
    "duplicate tensor": (_text(lambda raw, key, r: raw[:-1] + b", " + json.dumps(key).encode() + b': {"dtype": "F32"}}'), "twice"),
    "duplicate field": (_text(lambda raw, key, r: raw.replace(b'{"dtype"', b'{"shape": [1], "dtype"')), "twice"),
    "duplicate metadata": (_text(lambda raw, key, r: raw.replace(b'"ss_network_dim"', b'"modelspec.title": "x", "ss_network_dim"')), "twice"),
    "not whole": (_text(lambda raw, key, r: raw.replace(b'"shape": [', b'"shape": [' + r.choice(_JUNK).encode() + b", ", 1)), "in its header"),
    "many tables": (_text(lambda raw, key, r: raw[:-1] + b"".join(b', "t%d": {}' % i for i in range(50_000)) + b"}"), "more memory"),
    "long list": (_text(lambda raw, key, r: raw.replace(b'"shape": [', b'"shape": [' + b"1, " * r.randint(150, 9000), 1)), "impossible shape"),
    "much metadata": (_text(lambda raw, key, r: raw.replace(b'"ss_network_dim"', b"".join(b'"%x":"",' % i for i in range(r.randint(76_000, 78_000))) + b'"ss_network_dim"')), "more memory"),
    "long metadata": (_text(lambda raw, key, r: raw.replace(b'"ss_network_dim"', b'"k":"' + r.choice((b"x" * 7_500_000, b"\\ud83d\\ude00" * 168_000, b"\xf0\x9f\x98\x80" + b"x" * 2_020_000)) + b'", "ss_network_dim"')), "more memory"),
    # the text of a header that is nearly what the safetensors library writes
    "leading zero": (_compact(lambda raw, r: _at(raw, b'"shape":[', b'"shape":[0', r).replace(b"[0]", b"[00]").replace(b"[0,", b"[00,")), "not JSON"),
    "foreign digits": (_compact(lambda raw, r: _at(raw, b'"data_offsets":[', b'"data_offsets":[' + r.choice(("\u0661", "\uff11", "\u00b2")).encode(), r)), "not JSON"),
    "no comma": (_compact(lambda raw, r: _at(raw, b'},"', b'}"', r)), "not JSON"),
    "brace between": (_compact(lambda raw, r: _at(raw, b'},"', r.choice((b'}}"', b'}},"', b'},{"')), r)), "not JSON"),
    "raw control": (_compact(lambda raw, r: _at(raw, b'":{"dtype"', bytes([r.randrange(32)]) + b'":{"dtype"', r)), "not JSON"),
    "tensor as metadata": (_compact(lambda raw, r: raw.replace(b'{"__metadata__":', b'{"__metadata__":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"x":')), "not text"),
    "late metadata": (_compact(lambda raw, r: raw[:-1] + r.choice((b',"__metadata__":{"a":"b"}}', b',"__metadata__":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'))), "twice"),
    "spaces within": (_compact(lambda raw, r: _at(raw, b',"shape"', r.choice((b"\xc2\xa0", b"\x0b", b"\x0c")) + b',"shape"', r)), "not JSON"),
    # what the header says
    "metadata no table": (_changed(lambda h, key, r: h.__setitem__("__metadata__", r.choice(("x", [], 1, True)))), "not a table"),
    "metadata no text": (_changed(lambda h, key, r: h["__metadata__"].__setitem__("k", r.choice((1, None, {}, [], True)))), "not text"),
    "metadata surrogate": (_changed(lambda h, key, r: h["__metadata__"].__setitem__(*r.sample(["\ud800", "k\udfff"], 2))), "not valid Unicode"),
    "control character": (_changed(lambda h, key, r: _renamed(h, key, r.choice(_CONTROL) + key)), "control characters"),
    "no name": (_changed(lambda h, key, r: _renamed(h, key, "")), "name of 0"),
    "endless name": (_changed(lambda h, key, r: _renamed(h, key, key * r.randint(60, 200))), "name of"),
    "entry no table": (_changed(lambda h, key, r: h.__setitem__(key, r.choice(([1], "x", 7, None, True)))), "other fields than"),
    "field gone": (_changed(lambda h, key, r: h[key].pop(r.choice(list(h[key])))), "other fields than"),
    "field more": (_changed(lambda h, key, r: h[key].__setitem__(r.choice(("file", "Dtype", "__proto__")), "/etc/passwd")), "other fields than"),
    "unknown dtype": (_field("dtype", lambda e, r: r.choice(("C64", "f32", "", "F4", None, 4, [], {}))), "unknown dtype"),
    "wrong dtype": (_field("dtype", lambda e, r: "F64"), "bytes for"),
    "negative size": (_field("shape", lambda e, r: [-n for n in e["shape"]] or [-1]), "impossible shape"),
    "huge size": (_field("shape", lambda e, r: r.choice(([2**60, 2**60], [2**62], [10**18, 1]))), "impossible shape"),
    "true as a size": (_field("shape", lambda e, r: [True, *e["shape"]]), "impossible shape"),
    "no sizes": (_field("shape", lambda e, r: r.choice((None, 8, "8", {}, ["8"], [None]))), "impossible shape"),
    "many sizes": (_field("shape", lambda e, r: [1] * r.randint(9, 60) + e["shape"]), "impossible shape"),
    "size too large": (_field("shape", lambda e, r: [*(e["shape"] or [1]), r.randint(2, 99)]), "bytes for"),
    "zero-size claim": (_changed(lambda h, key, r: h[key].update(shape=[200_000, 20_000 * r.randint(1, 9)], data_offsets=[h[key]["data_offsets"][0]] * 2)), "holds 0 bytes"),
    "nothing": (_changed(lambda h, key, r: h.__setitem__("x.diff", {"dtype": "F32", "shape": [0, r.randint(1, 10**9)], "data_offsets": h[key]["data_offsets"][:1] * 2})), "holds no data"),
    "no offsets": (_field("data_offsets", lambda e, r: r.choice((None, [], [0], [0, 1, 2], "0", [None, 1], ["0", "4"]))), "impossible data_offsets"),
    "true as an offset": (_field("data_offsets", lambda e, r: [r.choice((True, False)), e["data_offsets"][1]]), "impossible data_offsets"),
    "negative offset": (_field("data_offsets", lambda e, r: [at - 10**6 for at in e["data_offsets"]]), "impossible data_offsets"),
    "offsets backwards": (_field("data_offsets", lambda e, r: e["data_offsets"][::-1]), "impossible data_offsets"),
    "offset beyond": (_field("data_offsets", _beyond), "cut short|hole"),
    "overlap": (_changed(_overlap), "overlaps|same bytes|hole"),
    "alias": (_changed(_alias), "same bytes as"),
    "hole": (_hole, "hole of"),
    # what makes no LoRA
    "factor gone": (_without, "without the"),
    "ranks disagree": (_reshaped, "factors of different ranks"),
    "whole numbers": (_retyped, "stores the factor"),
    "dimensions": (_flattened, "dimensions"),
    "two spellings": (_twice, "same factor"),
    "nothing but metadata": (lambda sound, r: packed({"__metadata__": {"k": str(r.random())}}, b""), "no tensors"),
    # what only the numbers tell
    "NaN or infinite": (_values(_NAN, alpha=False), "NaN or infinite"),
    "last number": (_values(_NAN, alpha=False, last=True), "NaN or infinite"),
    "odd start": (_values(_NAN, alpha=False, odd=True), "NaN or infinite"),
    "alpha": (_values(_ALPHA, alpha=True), "outside -10000 to 10000"),
}  # fmt: skip
IN_THE_NUMBERS = {"NaN or infinite", "last number", "odd start", "alpha"}


def mutants(each: int = 2) -> Iterator[tuple[str, bytes, str]]:
    """(what was done, the file's bytes, words of the refusal): `each` of every mutation and sound file, no two alike."""
    seen = set()
    for kind, (mutate, words) in MUTATIONS.items():
        for name, sound in SOUND.items():
            chance = random.Random(f"{kind} {name}")
            for _ in range(each):
                for _ in range(8):  # draws that repeat an earlier one
                    raw = mutate(sound, chance)
                    if raw not in seen:
                        seen.add(raw)
                        yield f"{kind}, {name}", raw, words
                        break
