"""JSON inside headers: whatever strangers write there, what is made of it can be worked with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import card, formats, lineage, nested
from lora_loom.lora_core.files.faults import UnsafeFileError
from lora_loom.lora_core.files.fitting import fitted
from lora_loom.lora_core.files.label import Label, labelled
from lora_loom.lora_core.files.lineage import Parent
from lora_loom.lora_core.files.words import trigger_words
from lora_loom.lora_core.stack import attribution
from lora_loom.lora_core.stack.rows import Row
from safetensors.torch import save_file

HUGE = "9" * 400
ODD = {
    "lists 300 deep": "[" * 300 + "]" * 300,
    "tables 300 deep": '{"a":' * 300 + "1" + "}" * 300,
    "lists 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "a chain of parents": '[{"name":"a","license":"MIT","parents":' * 150 + "[]" + "}]" * 150,
    "a number of 400 digits": f'{{"a":{{"b":{HUGE},"c":{HUGE}.5}}}}',
    "a number of 5,000 digits": f'{{"a":{{"b":{"9" * 5000}}}}}',
    "no numbers": '{"a":{"b":NaN,"c":1e999,"d":-Infinity}}',
    "half a character": '{"a":{"\\ud83d":1,"\\ud83d\\ude00":1}}',
    "numbers for tables": '{"a":1,"dataset":2,"sets":[3]}',
    "tables for lists": '{"dataset":{"sets":{"a":1}},"errors":3}',
    "a list of numbers": "[1,2,3]",
    "null": "null",
    "no JSON": "{'a': 1}",
    "nothing": "",
}
KEYS = ("ss_tag_frequency", "trained_words", "lora_loom.parents", "lora_loom.settings", "lora_loom.merge",
        "lora_loom.continued_from", "ssmd_cover_images", "ss_datasets")  # fmt: skip


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_what_is_read_is_shallow_and_finite_and_can_be_written(text: str) -> None:
    value = nested.value_of(text)
    written = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    assert b"9" * 30 not in written and isinstance(nested.table_of(text), dict)
    assert written.count(b"[") + written.count(b"{") <= 2 * nested.DEEPEST


def test_ordinary_values_are_what_json_says() -> None:
    value = {"a": [1, 2.5, -3e-9, {"b": None, "\u732b": "\U0001f431"}, True], "c": {"d": [[[]]]}}
    for spelled in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert nested.value_of(spelled) == value
    deepest = json.loads("[" * nested.DEEPEST + "]" * nested.DEEPEST)
    assert nested.value_of(json.dumps(deepest)) == deepest and nested.value_of(json.dumps([deepest])) != [deepest]


def test_the_youngest_of_a_long_chain_of_parents_stay() -> None:
    found = lineage.parents_of({"lora_loom.parents": ODD["a chain of parents"]})
    generations = 0
    while found:
        generations, found = generations + 1, found[0]["parents"]
    assert generations == nested.DEEPEST // 2


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_no_text_of_a_header_stops_what_is_made_of_the_file(text: str, tmp_path: Path) -> None:
    """Reading, words, parents, attribution, labels, redaction, and a header that is made to fit."""
    tensors = {"x.lora_up.weight": torch.ones(8, 2), "x.lora_down.weight": torch.ones(2, 8)}
    save_file(tensors, path := tmp_path / "a.safetensors", dict.fromkeys(KEYS, text))
    metadata = formats.read(path).metadata
    assert isinstance(trigger_words(metadata), tuple) and not card.read(path).fault
    parent = Parent.of("a", metadata, 1.0, 1.0, "ab")
    json.dumps([parent.described(), attribution.entry(Row("a", 1.0, 1.0), metadata, "ab"), lineage.tags([metadata])])
    assert lineage.rights([parent]) is not None
    derived = {
        **lineage.inherited(metadata),
        "lora_loom.parents": json.dumps([parent.described()]),
        "modelspec.description": "x" * 50,
    }
    labelled(derived, Label(redact=True))
    kept, left_out = fitted(derived, lambda about: sum(map(len, about.values())), 60)
    assert left_out and len(json.dumps(kept)) < len(json.dumps(derived)) + 200


@pytest.mark.parametrize("alpha", [HUGE, "NaN", "1e999", "[1]", "true", "null", '"4"'])
def test_an_alpha_in_the_header_that_is_no_number_is_named(alpha: str, tmp_path: Path) -> None:
    tensors = {"transformer.x.lora_B.weight": torch.ones(8, 2), "transformer.x.lora_A.weight": torch.ones(2, 8)}
    config = f'{{"transformer.lora_alpha": {alpha}, "transformer.r": 2}}'
    save_file(tensors, path := tmp_path / "a.safetensors", {"lora_adapter_metadata": config})
    with pytest.raises(UnsafeFileError, match="'a.safetensors' has an alpha of"):
        formats.read(path)
