"""Licences of parents, and what is left of them."""

from __future__ import annotations

import json

import pytest
from lora_loom.lora_core.files.fitting import fitted
from lora_loom.lora_core.files.lineage import Parent, authors, parents_of, rights, tags, triggers
from lora_loom.lora_core.files.rights import Rights, intersection, rights_of


@pytest.mark.parametrize(
    ("name", "commercial", "derivatives", "credit", "same"),
    [
        ("CC-BY-4.0", True, True, True, False),
        ("cc by-nc-sa 4.0", False, True, True, True),
        ("CC-BY-NC-ND-4.0", False, False, True, False),
        ("CC0-1.0", True, True, False, False),
        ("Apache-2.0", True, True, True, False),
        ("MIT", True, True, True, False),
        ("CreativeML OpenRAIL-M", True, True, False, True),
        ("FLUX.1 [dev] Non-Commercial License", False, True, True, True),
        ("CC BY-NC", False, True, True, False),
        ("by-nc-sa-4.0", False, True, True, True),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", False, False, True, False),
        ("https://creativecommons.org/publicdomain/zero/1.0/", True, True, False, False),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International", False, False, True, False),
        ("Creative Commons Attribution-ShareAlike 4.0", True, True, True, True),
        ("Attribution-NonCommercial-NoDerivs", False, False, True, False),
        ("creativeml-openrail-m", True, True, False, True),
        ("Open-RAIL++", True, True, False, True),
        ("All rights reserved", False, False, True, None),
        ("no derivatives, no merges", None, False, None, None),
        ("MIT, non-commercial", False, True, True, True),
        ("AGPL-3.0", True, True, True, True),
        ("fair-ai-public-license-1.0-sd", True, True, False, True),
        ("flux-1-dev-non-commercial-license", False, True, True, True),
        ("made by Ada", None, None, None, None),
        ("by Ada", None, None, None, None),
        ("non-commercial, no derivatives", False, False, True, True),
        ("ask me", None, None, None, None),
        ("summit licence", None, None, None, None),
    ],
)
def test_known_licences(name, commercial, derivatives, credit, same):
    found = rights_of(name)
    assert (found.commercial, found.derivatives, found.credit, found.same_licence) == (
        commercial,
        derivatives,
        credit,
        same,
    )
    assert found.licence == name


def test_a_right_is_left_when_all_give_it_and_a_duty_stays():
    found = intersection(map(rights_of, ("CC-BY-4.0", "CC-BY-NC-4.0", "CC0-1.0", "CC-BY-4.0")))
    assert found == Rights(("CC-BY-4.0", "CC-BY-NC-4.0", "CC0-1.0"), False, True, True, False)
    assert found.licence == "CC-BY-4.0 AND CC-BY-NC-4.0 AND CC0-1.0"
    assert json.loads(found.to_json()) == {
        "commercial": "no",
        "credit": "yes",
        "derivatives": "yes",
        "same_licence": "no",
    }


def test_what_is_not_known_stays_open_unless_another_settles_it():
    found = intersection(map(rights_of, ("", "CC-BY-NC-4.0")))
    assert (found.commercial, found.derivatives, found.credit, found.same_licence) == (False, None, True, None)
    assert found.licence == "CC-BY-NC-4.0 AND LicenseRef-unknown"
    assert intersection(map(rights_of, ("", ""))).licence == ""
    assert (
        intersection([rights_of("MIT OR Apache-2.0"), rights_of("CC0-1.0")]).licence
        == "(MIT OR Apache-2.0) AND CC0-1.0"
    )


def test_lineage_of_lineage():
    header = {
        "modelspec.author": "Ada", "modelspec.license": "CC-BY-4.0", "modelspec.trigger_phrase": "ink, wash",
        "sshs_model_hash": "ab" * 32, "lora_loom.parents": '[{"name": "old"}]', "ss_steps": "900",
        "ss_dataset_dirs": '{"Jane": 1}', "modelspec.description": "x" * 999,
    }  # fmt: skip
    parent = Parent.of("ink", header, 0.7, 0.0, "ab" * 32)
    assert parent.described() == {
        "name": "ink", "sha256": "ab" * 32, "strength": 0.7, "text_strength": 0.0, "author": "Ada",
        "license": "CC-BY-4.0", "trigger": "ink, wash", "parents": [{"name": "old"}], "header": {"ss_steps": "900"},
    }  # fmt: skip
    other = Parent.of(
        "paper", {"modelspec.author": "Bo, ada", "modelspec.trigger_phrase": "Ink, paper"}, 1.0, 1.0, "cd", "adapter"
    )
    assert (other.sha256, other.text_strength, other.described()["hash_of"]) == ("cd", None, "adapter")
    assert authors([parent, other]) == "Ada, Bo" and triggers([parent, other]) == "ink, wash, paper"
    assert rights([parent, other]).licence == "CC-BY-4.0 AND LicenseRef-unknown"


def test_a_new_label_does_not_wash_what_a_merge_was_made_of():
    made_of = json.dumps([
        {"name": "a", "license": "CC-BY-NC-4.0"},
        {"name": "b", "parents": [{"name": "c", "license": "CC-BY-ND-4.0", "parents": 5}, "odd"]},
    ])  # fmt: skip
    relabelled = Parent.of("mine", {"modelspec.license": "CC0-1.0", "lora_loom.parents": made_of}, 1.0, 1.0, "ab")
    found = rights([relabelled])
    assert (found.commercial, found.derivatives, found.credit) == (False, False, True)
    assert found.licence == "CC0-1.0 AND CC-BY-NC-4.0 AND CC-BY-ND-4.0"


@pytest.mark.parametrize("text", ["", "{", '{"name": "old"}', "[" * 100_000])
def test_parents_that_cannot_be_read(text):
    assert parents_of({"lora_loom.parents": text}) == []


def test_tags_of_all_parents():
    texts = ('{"a": {"cat": 2, "dog": 1}}', '{"a": {"cat": 3}, "b": {"sky": 1, "odd": "x"}, "c": 5}', "no", "[]")
    assert tags({"ss_tag_frequency": text} for text in texts) == {"a": {"cat": 5, "dog": 1}, "b": {"sky": 1}, "c": {}}


def test_a_long_lineage_gives_way_in_the_header():
    """First the errors of layers, then details from the headers of the merged files; names, hashes and licences "
    "stay."""
    parents = [
        {"name": "a", "sha256": "ab", "header": {"ss_steps": "9" * 200}, "parents": [{"name": "b", "header": {}}]}
    ]
    text = {
        "lora_loom.merge": json.dumps(
            {"error": 0.1, "errors": {"w" * 90: 0.1}, "converted": [{"error": 0.2, "errors": {"w": 0.2}}]}
        ),
        "lora_loom.parents": json.dumps(parents),
    }

    def size(metadata):
        return sum(map(len, metadata.values()))

    kept, left_out = fitted(text, size, size(text) - 1)
    assert left_out == ["the errors of single layers"]
    assert json.loads(kept["lora_loom.merge"]) == {"error": 0.1, "converted": [{"error": 0.2}]}
    kept, left_out = fitted(text, size, 170)
    assert left_out[1:] == ["details from the headers of the merged files"]
    assert json.loads(kept["lora_loom.parents"]) == [{"name": "a", "sha256": "ab", "parents": [{"name": "b"}]}]


def test_a_family_tree_that_is_too_large_loses_its_oldest():
    def tree(depth: int) -> list:
        return [{"name": "x", "sha256": "ab" * 32, "parents": tree(depth - 1) if depth else 5} for _ in range(6)]

    text = {"lora_loom.parents": json.dumps(tree(3))}

    def size(metadata):
        return sum(map(len, metadata.values()))

    kept, left_out = fitted(text, size, 30_000)
    assert (
        left_out == ["details from the headers of the merged files", "the ancestors of generation 4"]
        and size(kept) <= 30_000
    )
    (parent, *_) = json.loads(kept["lora_loom.parents"])
    assert parent["parents"][0]["parents"][0] == {"name": "x", "sha256": "ab" * 32}
    assert fitted(text, size, 700)[1][-1] == "the ancestors of generation 2"
