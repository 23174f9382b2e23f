"""Checks that the nodes and the page speak every language of locales/, and say nothing there that they no longer mean.

A translation lies beside its English in tests/locales/. After a change there, or of what a node says:
python -m pytest tests/nodes/test_locales.py --write-contract, which also drops what nobody says any more.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from harness.calls import pack_nodes
from harness.comfyui import ROOT
from harness.locales import LANGUAGES, LOCALES, TABLES, WORD, Said, Table, as_text, files, found, said, table, words
from harness.scripts import untold
from harness.sentences import HOLE, sentences

KEPT = re.compile(r"%\w+%|<[^<>]+>|\d+(?:\.\d+)?(?:e-\d+)?|CFG|VAE|KSampler|Markdown|JSON|CUDA|GGUF|DoRA|rsLoRA")
OURS = {"KSampler": ("KSampler", "K采样器", "Kサンプラー")}  # ComfyUI's own name for it in the language
MARKS = {"not saved", "unreadable caption", "no caption", "trigger alone", "near copy", "mask?"}  # looked up by name
NO_TEXTS = {  # of a script, which a person does not read or every person reads as they are
    "library/bar.js": {"Enter"}, "measures/measures.js": {"Health", "Interference", "Passport", "Report"},
    "stack/menu.js": {"Del"},
    "stack/editor.js": {"Undo", "Redo"}, "stack/stack.js": {"None"},
    "dataset/adding.js": {"Files"}, "dataset/book.js": {"-mask files", *MARKS}, "dataset/filters.js": MARKS,
    "dataset/words.js": MARKS, "page/dialog.js": {"loom 0"},
}  # fmt: skip


@cache
def nodes() -> dict[str, dict[str, Any]]:
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in pack_nodes()}


@cache
def everything() -> dict[str, Said]:
    return {f"{node}.{'.'.join(each.place)}": each for node, info in nodes().items() for each in said(node, info)}


def lacking(known: Table) -> list[str]:
    """What is said in English and not in the table, each with where it is."""
    of_nodes = [f"{place}: {each.key}" for place, each in everything().items() if not found(known, each)]
    return of_nodes + [f"web/js: {word}" for word in sorted(words()) if not known["words"].get(word)]


def stale(known: Table) -> list[tuple[str, str]]:
    """What is in the table and said nowhere in English."""
    keys = {part: {each.key for each in everything().values() if each.part == part} for part in ("names", "texts")}
    keys["names"] |= {each.english for each in everything().values() if each.part == "names"}
    keys |= {"words": words(), "categories": {info["category"].split("/")[1] for info in nodes().values()}}
    keys["server"] = {key for key in known["server"] if re.sub(r"\{\w+\}", HOLE, key) in sentences()}
    return [(part, key) for part in known for key in known[part] if key not in keys[part]]


def changed(english: str, translated: str, options: tuple[str, ...] = ()) -> list[str]:
    """What a translation must leave as it is, and does not: numbers, placeholders, tags, values of the input."""
    values = [value for value in options if re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", english)]
    kept = [*KEPT.findall(english), *re.findall(r"\{\w+\}", english), *values]
    return [each for each in kept if not any(name in translated for name in OURS.get(each, (each,)))]


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return request.param


def test_everything_is_said_in_the_language(language: str) -> None:
    assert lacking(table(language)) == []


def test_every_text_of_the_page_is_looked_up() -> None:
    """In web/js: `word("...")` where it is shown, or `phrase("...")` in a table of what is looked up later."""
    scripts = ROOT / "web" / "js"
    names = {path.relative_to(scripts).as_posix(): path for path in scripts.rglob("*.js")}
    found = {
        name: set(untold(path.read_text(encoding="utf-8"))) - NO_TEXTS.get(name, set()) for name, path in names.items()
    }
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_nothing_is_said_that_is_no_longer_meant(request: pytest.FixtureRequest, language: str) -> None:
    known = table(language)
    if request.config.getoption("--write-contract", default=False):
        for part, key in stale(known):
            if part != "server":  # where nothing would tell that a sentence has lost its translation
                del known[part][key]
        (TABLES / f"{language}.json").write_text(as_text(known), encoding="utf-8", newline="\n")
    assert stale(table(language)) == []


def test_each_language_knows_the_same_sentences_of_the_server() -> None:
    one, *others = (list(table(language)["server"]) for language in LANGUAGES)
    assert all(other == one for other in others)


def test_numbers_placeholders_and_values_are_left_as_they_are(language: str) -> None:
    known = table(language)
    wrong = {key: changed(key, text) for part in ("words", "server") for key, text in known[part].items()}
    for place, each in everything().items():
        if each.part == "texts":
            wrong[place] = changed(each.key, found(known, each) or "", each.options)
    assert {place: lost for place, lost in wrong.items() if lost} == {}


def test_the_front_end_reads_each_text_as_it_is_written(language: str) -> None:
    """It takes these signs for its own in names and descriptions, and a text with a space at its end is a slip."""
    names = [text for part in ("names", "categories") for text in table(language)[part].values()]
    names += [info[key] for info in nodes().values() for key in ("display_name", "description")]
    names += [
        table(language)["texts"][info[key]] for info in nodes().values() for key in ("display_name", "description")
    ]
    assert [text for text in names if re.search(r"[{}@|]", text)] == []
    assert [
        text for part in table(language).values() for text in part.values() if text != text.strip() or not text
    ] == []


@pytest.mark.parametrize("each", ["en", *LANGUAGES])
def test_files_are_those_of_the_table(request: pytest.FixtureRequest, each: str) -> None:
    for path, content in files(each, nodes()).items():
        if request.config.getoption("--write-contract", default=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(as_text(content), encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == as_text(content), "write it: see the top of this file"


def test_no_other_files() -> None:
    wanted = {path for each in ("en", *LANGUAGES) for path in files(each, nodes())}
    assert {path for path in LOCALES.rglob("*") if path.is_file()} == wanted


def test_ids_are_not_translated() -> None:
    """The names that workflows and the API use come from the nodes alone: a table is asked for labels only."""
    for node, info in nodes().items():
        inputs = {name.replace(".", "_") for group in ("required", "optional") for name in info["input"].get(group, {})}
        for each in ("en", *LANGUAGES):
            definition = files(each, nodes())[LOCALES / each / "nodeDefs.json"][node]
            assert set(definition.get("inputs", {})) == inputs


# -- each check can fail -----------------------------------------------------------------------------------------------


def test_a_changed_tooltip_is_named() -> None:
    known = table("zh")
    text = known["texts"].pop("The base model. Training does not change it.")
    known["texts"]["The base model. It was changed."] = text
    assert lacking(known) == ["LoraLoom_TrainLora.inputs.model.tooltip: The base model. Training does not change it."]
    assert stale(known) == [("texts", "The base model. It was changed.")]


def test_a_changed_sentence_of_the_server_is_named() -> None:
    known = table("zh")
    known["server"] = {"stopped at {step} of {total}": "", "halted at {step} of {total}": ""}
    assert stale(known) == [("server", "halted at {step} of {total}")]


@pytest.mark.parametrize(
    ("english", "translated", "options"),
    [
        ("Must be 0.05.", "Moet 0.5 zijn.", ()),
        ("%title% is replaced", "title wordt vervangen", ()),
        ("to {end}", "tot {eind}", ()),
        ("auto: the best", "het beste", ("auto", "weights")),
    ],
)
def test_what_is_lost_is_found(english: str, translated: str, options: tuple[str, ...]) -> None:
    assert changed(english, translated, options)


def test_words_of_a_script_are_found() -> None:
    script = 'word("a \\u00d7 b", { b }) + phrase("off") + password("x") + word(name)'
    assert WORD.findall(script) == ['"a \\u00d7 b"', '"off"']


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ('made.title = "Take it off"', ["Take it off"]),
        ("words(`${count} left ${on ? `as ${word('x')} was` : 'Off'}`)", ["0 left 0", "as 0 was", "Off"]),
        (
            'button("loom-a loom-b", word("Take it off")); key === "Enter"; ["Home", "End"].includes(key) // Not this.',
            [],
        ),
        ("text.match(/[\"`] is it/); import('../page/dom.js'); query = `name=${name}&kind=a b`", []),
    ],
)
def test_texts_of_a_script_are_told_from_code(script: str, found: list[str]) -> None:
    assert untold(script) == found
