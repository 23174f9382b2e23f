"""What other programs wrote of a LoRA beside it: read in every format, and harmless whatever is in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_loom.lora_core.files import card, side_files
from lora_loom.lora_core.files.permissions import Permissions
from PIL import Image
from safetensors.torch import save_file

NAME = "ink.v2.safetensors"
RIGHTS = {
    "allowNoCredit": False, "allowCommercialUse": ["Image", "RentCivit"], "allowDerivatives": True,
    "allowDifferentLicense": False,
}  # fmt: skip
IN_WORDS = (
    "credit the author, you may sell pictures, run it as a service, merges allowed, merges under the same permissions"
)
ANSWERS = Permissions(False, ("Image", "RentCivit"), True, False)
CIVITAI = {
    "trainedWords": ["inkwash, black ink", "brush"], "baseModel": "Illustrious", "creator": {"username": "ada"},
    "model": {"name": "Ink & Wash", "tags": ["style", "ink"], **RIGHTS}, "name": "v2",
    "description": "<p>Loose <b>ink</b>.<br>From 0.6 &amp; up; a &lt; b.</p><p></p><p></p><p>Bye</p>",
}  # fmt: skip
NOTES = "Loose ink.\nFrom 0.6 & up; a < b.\n\nBye"
GOOD: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "Civitai Helper": ("ink.v2.civitai.info", CIVITAI, {
        "title": "Ink & Wash", "words": ("inkwash, black ink", "brush"), "base": "Illustrious", "author": "ada",
        "notes": NOTES, "tags": ("style", "ink"), "permissions": IN_WORDS, "answers": ANSWERS,
    }),
    "Lora-Manager": ("ink.v2.metadata.json", {
        "model_name": "Ink", "base_model": "SDXL 1.0", "preview_url": "C:\\loras\\other.webp", "notes": "mine",
        "usage_tips": '{"strength": 0.75, "clip_skip": 2}', "favorite": True, "tags": ["style"], "civitai": CIVITAI,
        "modelDescription": "theirs",
    }, {
        "title": "Ink", "base": "SDXL 1.0", "preview": "other.webp", "notes": "mine", "strength": "0.75",
        "favourite": True, "tags": ("style",), "words": ("inkwash, black ink", "brush"), "author": "ada",
        "permissions": IN_WORDS, "answers": ANSWERS,
    }),
    "A1111": ("ink.v2.json", {
        "description": "theirs", "sd version": "SDXL", "activation text": "inkwash, Brush,, inkwash", "notes": "",
        "preferred weight": 0.8, "negative text": "photo",
    }, {"base": "SDXL", "words": ("inkwash", "Brush"), "notes": "theirs", "strength": "0.8"}),
    "rgthree": (f"{NAME}.rgthree-info.json", {
        "name": "Ink - v2", "baseModel": "Pony", "userNote": "<lora:x:1> is mine, a < b", "strengthMax": 1.2,
        "trainedWords": [{"word": "1girl", "count": 90, "metadata": True}, {"word": "inkwash", "civitai": True},
                         {"word": "own", "user": True}, {"civitai": True}],
        "raw": {"civitai": CIVITAI},
    }, {
        "title": "Ink - v2", "base": "Pony", "notes": "<lora:x:1> is mine, a < b", "words": ("inkwash", "own"),
        "strength": "1.2", "author": "ada", "permissions": IN_WORDS, "answers": ANSWERS,
    }),
    "Stability Matrix": ("ink.v2.cm-info.json", {
        "ModelName": "Ink", "UserTitle": None, "BaseModel": "SDXL 1.0", "TrainedWords": ["inkwash"], "Tags": ["style"],
        "ModelDescription": "<p>Long</p>", "VersionDescription": "",
    }, {"title": "Ink", "base": "SDXL 1.0", "words": ("inkwash",), "tags": ("style",), "notes": "Long"}),
    "a text file": ("ink.v2.txt", "\ufeffuse inkwash\r\nat 0.8\x00", {"notes": "use inkwash\n\nat 0.8"}),
}  # fmt: skip


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A sound one whose header says nothing."""
    return write(tmp_path / NAME)


def write(path: Path, **about: str) -> Path:
    tensors = {"x.lora_up.weight": torch.ones(8, 2), "x.lora_down.weight": torch.ones(2, 8)}
    save_file(tensors, path, {key.replace("__", "."): value for key, value in about.items()})
    return path


def put(lora: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (lora.parent / name).write_bytes(text.encode())


@pytest.mark.parametrize("program", GOOD)
def test_every_format_is_read(lora: Path, program: str) -> None:
    name, content, wanted = GOOD[program]
    put(lora, name, content)
    found = side_files.told(lora)
    assert found.values == wanted and set(found.source.values()) == {program}
    told = card.read(lora).to_dict()
    shown = {key: value for key, value in wanted.items() if key not in ("preview", "answers")}
    assert {key: told[key] for key in shown} == shown and told["source"] == dict.fromkeys(shown, program)
    assert json.dumps(told)


def test_the_formats_are_those_that_are_tried(tmp_path: Path) -> None:
    assert {side.program for side in side_files.FORMATS} == GOOD.keys()
    names = side_files.beside(tmp_path / NAME)
    assert {name for name, _, _ in GOOD.values()} < set(names) and "ink.v2.preview.png" in names


def test_the_header_wins_but_for_what_it_only_suggests(tmp_path: Path) -> None:
    counted = json.dumps({"10_ink": {"1girl": 20}})
    lora = write(tmp_path / NAME, modelspec__title="Mine", ss_tag_frequency=counted, modelspec__description="as it is")
    assert card.read(lora).words == ("1girl",)
    put(lora, "ink.v2.civitai.info", CIVITAI)
    told = card.read(lora)
    assert (told.title, told.notes, told.words) == ("Mine", "as it is", ("inkwash, black ink", "brush"))
    assert told.source.keys() == {"words", "base", "author", "tags", "permissions"}
    write(lora, modelspec__trigger_phrase="sks")
    assert card.read(lora).words == ("sks",) and "words" not in card.read(lora).source


def test_of_several_the_first_that_says_something_is_told(lora: Path) -> None:
    for name, content, _ in GOOD.values():
        put(lora, name, content)
    put(lora, "ink.v2.metadata.json", {"model_name": "unknown", "base_model": "Unknown", "notes": " "})
    told = card.read(lora)
    assert (told.title, told.base, told.strength) == ("Ink - v2", "Pony", "1.2")
    assert (told.source["title"], told.source["tags"]) == ("rgthree", "Civitai Helper")


WRONG = [
    1,
    -0.5,
    True,
    None,
    "",
    [],
    {},
    [[]],
    [None, 1, {"word": 3, "user": True}],
    {"name": {"a": []}},
    "x" * 300_000,
]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("side", side_files.FORMATS, ids=lambda side: side.ending)
def test_wrong_types_are_left_out(lora: Path, side: side_files.Format, value: Any) -> None:
    content: dict[str, Any] = {}
    for place in {each for places in side.places.values() for each in places}:
        *tables, last = place.split(".")
        table = content
        for key in tables:
            inner = table.setdefault(key, {})
            table = inner if isinstance(inner, dict) else {}
        table[last] = json.loads(json.dumps(value))
    put(lora, (NAME if side.after_all else "ink.v2") + side.ending, content)
    told = card.read(lora)
    assert not told.fault and all(len(text) <= 600 for text in texts(told.to_dict()))
    assert isinstance(told.words, tuple) and told.favourite in (True, False)


def texts(told: dict[str, Any]) -> list[str]:
    return [text for each in told.values() for text in (each if isinstance(each, (tuple, dict)) else [str(each)])]


HOSTILE = {
    "no JSON": "{'a': 1}", "a list": "[1]", "a text": '"x"', "nothing": "", "cut": '{"model_name": "Ink',
    "deep": '{"model_name":' * 100_000, "lists 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "more than fits into memory": '{"notes": "x", "a":[' + "{}," * 600_000 + "1]}",
    "a long number": '{"preferred weight": ' + "9" * 5000 + "}",
    "no number": '{"preferred weight": 1e999, "strengthMax": NaN}', "bytes": "\udcff\udcfe\x00",
    "tags in tags": '{"description": "' + "<b" * 200_000 + '"}', "half a character": '{"notes": "\\ud83d"}',
    "too large": '{"notes": "x"}' + " " * side_files.LARGEST,
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_harmless(lora: Path, content: str) -> None:
    for side in side_files.FORMATS[:-2]:
        path = lora.parent / ((NAME if side.after_all else "ink.v2") + side.ending)
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    told = card.read(lora)
    assert (told.fault, told.title, told.words, told.strength) == ("", "", (), "")
    assert json.dumps(told.to_dict()).encode() and len(told.notes) <= 600
    assert not told.notes or content in (HOSTILE["half a character"], HOSTILE["tags in tags"])


def test_markup_is_text_but_for_the_layout_of_descriptions(lora: Path) -> None:
    title = "<img src=x onerror=alert(1)>"
    told = {"model": {"name": title}, "description": f"{title}<script>x</script>", "trainedWords": [title]}
    put(lora, "ink.v2.civitai.info", told)
    found = card.read(lora)
    assert (found.title, found.words, found.notes) == (title, (title,), "<script>x</script>")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"allowNoCredit": True, "allowCommercialUse": "{Image,Sell}", "allowDerivatives": False},
         "no credit needed, you may sell pictures, sell it, no merges"),
        ({"allowCommercialUse": "None"}, "no commercial use"), ({"allowCommercialUse": []}, "no commercial use"),
        ({"allowNoCredit": "yes", "allowCommercialUse": 3}, ""), ([], ""),
    ],
)  # fmt: skip
def test_permissions_in_words(lora: Path, given: Any, words: str) -> None:
    put(lora, "ink.v2.civitai.info", {"model": given})
    assert card.read(lora).permissions == words


def test_a_preview_that_a_side_file_names_is_shown_from_the_same_folder_only(lora: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    inner = write(deep / NAME)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "other.webp")
    absolute = f"{tmp_path.as_posix()}/other.webp"
    for name in ("../other.webp", "/etc/passwd", "other.webp\x00", "..", "c:other.webp", "other.svg", absolute):
        put(inner, "ink.v2.metadata.json", {"preview_url": name})
        assert not card.read(inner).picture and card.picture(inner) is None
    put(lora, "ink.v2.metadata.json", {"preview_url": "http://x/other.webp"})
    assert card.read(lora).picture and card.picture(lora) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_and_a_folder_are_not_waited_for(lora: Path) -> None:
    os.mkfifo(lora.parent / "ink.v2.json")
    (lora.parent / "ink.v2.civitai.info").mkdir()
    assert card.read(lora).words == ()
